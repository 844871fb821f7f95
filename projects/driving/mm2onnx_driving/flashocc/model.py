"""Occupancy detectors. Source: Yzichen/FlashOCC 4084861, detectors/bevdet_occ.py, ops/nearest_assign."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models import DETECTORS
from mmdet3d.models import builder
from torch import Tensor

from mm2onnx_driving.flashocc.runtime import CENTER_MAPS, FIRST_ID, VOXEL_CLASSES
from mm2onnx_driving.layers.lift_splat import OWN, LiftSplatDetector
from mmdeploy_ext.upstream.compat.mmdet3d_operators import nearest_assign_forward
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(DETECTORS, builds=tuple(OWN.values()))
class BEVDetOCC(LiftSplatDetector):
    """BEVDet with an occupancy head."""

    def __init__(self, occ_head: Mapping[str, Any], **config: Any) -> None:
        super().__init__(**config)
        self.occ_head = builder.build_head(occ_head)

    def results_of(self, maps: Sequence[Tensor], img_metas: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        return self.occ_head.get_occ(self.occ_head(maps[0]), img_metas)


@registered_if_named(DETECTORS, builds=tuple(OWN.values()))
class BEVDepthOCC(BEVDetOCC):
    """The detector with a camera-aware depth network."""


@registered_if_named(DETECTORS, builds=tuple(OWN.values()))
class BEVDepthPano(BEVDepthOCC):
    """The detector with a head of centres: voxels of objects belong to the nearest one of their class."""

    def __init__(self, aux_centerness_head: Mapping[str, Any], test_cfg: Any = None, **config: Any) -> None:
        super().__init__(test_cfg=test_cfg, **config)
        given = dict(test_cfg=test_cfg and test_cfg.get('pts'), train_cfg=None)
        self.aux_centerness_head = builder.build_head({**aux_centerness_head, **given})
        view = self.img_view_transformer
        self.st = view.grid_lower_bound
        self.sx = view.grid_interval / torch.tensor([1.0, 1.0, self.occ_head.Dz])

    def results_of(
        self, maps: Sequence[Tensor], img_metas: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Tensor]]:
        """Return one dict: `pred_occ` classes and `pano_inst` (X, Y, Z), 18 + instance, or the class."""
        head, (labels,) = self.aux_centerness_head, super().results_of(maps, img_metas)
        shared, labels = head.shared_conv(maps[0]), torch.from_numpy(labels).int().to(maps[0].device)
        branches = {name: getattr(head.task_heads[0], name)(shared) for name in CENTER_MAPS}
        ((centers,), _, (classes,)) = head.get_centers(([branches],), img_metas)
        cells = ((centers - self.st.to(centers)) / self.sx.to(centers)).int()
        ids, instances = classes.int().sort().indices + FIRST_ID, torch.zeros_like(labels)
        table = labels.new_full((self.occ_head.num_classes,), -1)
        table[list(VOXEL_CLASSES)] = torch.arange(len(VOXEL_CLASSES), dtype=torch.int32).to(table)
        present = labels.new_tensor(
            [VOXEL_CLASSES[int(of)] for of in classes.unique() if of < len(VOXEL_CLASSES)]
        )
        nearest_assign_forward(labels, present, table, classes.int(), cells, ids, instances)
        return [dict(pred_occ=labels, pano_inst=instances)]
