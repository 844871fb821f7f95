"""VAD's detector and data set at test time. Source: hustvl/VAD 1688c4b, `VAD/VAD.py`."""

from typing import Any

from mmdet.datasets import DATASETS
from mmdet.models import DETECTORS
from torch import Tensor

from mm2onnx_driving.layers.bev_view.detector import BevDetector
from mm2onnx_driving.layers.datasets.bev_dataset import BevNuScenesDataset
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(DATASETS)
class VADCustomNuScenesDataset(BevNuScenesDataset):
    """The data set of the view, plus the command."""

    def get_data_info(self, index: int) -> dict[str, Any]:
        return dict(super().get_data_info(index), ego_fut_cmd=self.data_infos[index]['gt_ego_fut_cmd'])


@registered_if_named(DETECTORS)
class VAD(BevDetector):
    """Objects with trajectories, lines and plans."""

    def forward_test(self, img_metas: list, img: list[Tensor], **data: Any) -> list[dict]:
        """Return one dict, 'pts_bbox' -> the dict of `VADHead.get_bboxes`, and the command."""
        (result,) = super().forward_test(img_metas, img, **data)
        return [dict(pts_bbox=dict(result['pts_bbox'], ego_fut_cmd=data['ego_fut_cmd'][0]))]

    def result_of(self, sample: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value.to('cpu') if name == 'boxes_3d' else value.cpu() for name, value in sample.items()
        }
