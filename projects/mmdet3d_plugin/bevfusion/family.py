"""BEVFusion's family: which configs it claims, what it refuses, and what the other modules give."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.contract.families.streampetr import CONTRACT
from mmdeploy_ext.contract.options import DRIVE
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import Claim, build_without_weights, register_family
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.inputs.fusion import FusionRule
from projects.mmdet3d_plugin.bevfusion.fusion import SENSORS, check_parts
from projects.mmdet3d_plugin.bevfusion.graphs import graphs, postprocess_facts
from projects.mmdet3d_plugin.bevfusion.reference import Reference
from projects.mmdet3d_plugin.bevfusion.samples import dumped, frame, fusion_rule, generated, result
from projects.mmdet3d_plugin.common.weights import load_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from mmdeploy_ext.contract.option import Options
    from mmdeploy_ext.runtime.frames import Stepper
    from mmdeploy_ext.weights.checkpoint import Checkpoint

ONLY = "the files for NVIDIA's engine are not written yet, but for its sparse backbone: export_scn.py"


class BEVFusionFamily(SequenceFamily):
    """`BEVFusion` of cameras and LiDAR with TransFusion's head; it has no memory."""

    name = 'bevfusion_det'
    exports = 'BEVFusion of cameras and LiDAR (projects/mmdet3d_plugin/bevfusion/README.md)'
    near = ('TransFusion', 'BEVFusion', 'LSS')
    of_config = "the grid and the cameras are the config's"
    task = 'points3d'
    used_by: ClassVar[Mapping[str, str]] = {'': 'tools/onnx/graph.py show {file}'}
    options = (dataclasses.replace(CONTRACT, choices=CONTRACT.choices[:1], hint=ONLY), *DRIVE)
    files = ('rig', 'lidar', 'frame')
    samples = 'fused'
    graphs, postprocess_facts = staticmethod(graphs), staticmethod(postprocess_facts)
    frame, result = staticmethod(frame), staticmethod(result)
    dumped_frame = staticmethod(dumped)
    reference, generated_sweeps = staticmethod(Reference), staticmethod(generated)
    compared = ()  # the outputs of all files, see `SequenceFamily.compared`

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`."""
        return Claim.DETECTOR if cfg.model.get('type') == 'BEVFusion' else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `SequenceFamily.check`."""
        if options.precision != 'fp32':
            raise ConfigError(f'{cfg.filename}: BEVFusion is exported in float32; leave --precision out')
        check_model(cfg)

    def build(self, cfg: Any) -> nn.Module:
        """See `Family.build`."""
        from mmdet3d.models import build_model

        check_model(cfg)
        return build_without_weights(cfg, build_model)

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """See `Family.load_weights`; kernels of either spconv layout."""
        load_whole(model, checkpoint, 'encoders.lidar.backbone')

    def num_classes(self, model: nn.Module) -> int:
        """See `Family.num_classes`."""
        return int(model.heads['object'].num_classes)

    def preprocess_rule(self, cfg: Any) -> FusionRule:
        """See `Family.preprocess_rule`."""
        check_model(cfg)
        return fusion_rule(cfg)

    def runner(self, paths: Sequence[str], engine: Mapping[str, Any]) -> Stepper:
        """See `SequenceFamily.runner`."""
        from mmdeploy_ext.runtime.bevfusion_det.model import BEVFusionOnnx

        return BEVFusionOnnx(paths, **engine)

    def timed_methods(self, model: nn.Module) -> dict[str, list[tuple[object, str]]]:
        """See `SequenceFamily.timed_methods`."""
        return dict(
            rig=[(model.encoders['camera']['vtransform'], 'cells')],
            lidar=[(model, 'lidar_view')],
            frame=[(model, 'camera_maps'), (model, 'joined')],
        )

    def dump_tensors(self, model: nn.Module, taps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """See `SequenceFamily.dump_tensors`."""
        return {name: value.detach().cpu().numpy() for name, value in taps.items()}


def check_model(cfg: Any) -> None:
    """Refuse detectors whose parts are not exported.

    Raises:
        ConfigError: names the file and the key.
    """
    model, where = cfg.model, f'{cfg.filename}: model'
    try:
        check_parts(model.get('encoders') or {}, model.get('fuser'), model.get('heads') or {})
    except ConfigError as error:
        raise ConfigError(f'{where}: {error}') from error
    lacking = [name for name in SENSORS if not model.encoders.get(name)]
    if lacking:
        raise ConfigError(f'{where}.encoders has no {lacking[0]}; BEVFusion is exported with both sensors')
    kind = model.encoders.lidar.backbone.get('type')
    if kind != 'BEVFusionSparseEncoder':
        raise ConfigError(
            f'{where}.encoders.lidar.backbone.type={kind!r}; expected BEVFusionSparseEncoder, whose axes are '
            f'x, y, z'
        )


register_family(BEVFusionFamily())
