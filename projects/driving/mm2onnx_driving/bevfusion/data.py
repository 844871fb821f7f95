"""The frames of BEVFusion."""

from pathlib import Path
from typing import Any

from mm2onnx_driving.bevfusion.fork import RepositoryMoments, with_truth
from mm2onnx_driving.bevfusion.samples import dumped, frame, moments
from mmdeploy_ext.families.sequence_data import SequenceData
from mmdeploy_ext.families.synthetic.info_files import generated_dataset
from mmdeploy_ext.families.synthetic.moments import fused_frames
from mmdeploy_ext.spec.preparation import FusionRule


class BEVFusionData(SequenceData):
    compared = ('cells', 'depth', 'bev')
    frame, moments = staticmethod(frame), staticmethod(moments)
    dumped_frame, generated_sweeps = staticmethod(dumped), staticmethod(fused_frames)

    def generated_dataset(self, folder: Path, cfg: Any, rule: FusionRule) -> dict[str, Any]:
        default = 'NuScenesDataset' if rule.views is None else 'FusionNuScenesDataset'
        dataset = generated_dataset(folder, cfg, dict(type=default), rule.views, rule.voxels)
        if cfg.get('fork'):
            with_truth(Path(dataset['ann_file']))
            dataset.update(type=RepositoryMoments, fork=cfg.fork)
        return dataset
