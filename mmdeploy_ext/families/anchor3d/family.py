"""LiDAR detectors with anchors: supported configs and their modules."""

from collections.abc import Mapping
from typing import Any

from mmdet3d.models import builder

from mmdeploy_ext.base.config import test_cfg_key
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.anchor3d.graphs import facts_of, graphs
from mmdeploy_ext.families.anchor3d.reference import AnchorReference
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import anchor_heads
from mmdeploy_ext.families.common.anchor_heads import PER_CLASS_HEAD, check_anchor_head
from mmdeploy_ext.families.common.detector_parts import part_cfg, test_cfg_of
from mmdeploy_ext.families.common.lidar_models import DYNAMIC_DETECTOR, UNTRACED, check_points_side
from mmdeploy_ext.families.common.lidar_parts import prefix_of
from mmdeploy_ext.families.common.sweep_samples import SweepMethods
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.models.building import names_of_class

HEADS = ('Anchor3DHead', 'FreeAnchor3DHead', PER_CLASS_HEAD)
REGION_PROPOSAL_HEAD = 'PartA2RPNHead'
"""A head of mmdet3d that is derived from `Anchor3DHead` and belongs to a detector of two stages."""
DETECTORS = ('VoxelNet', 'MVXFasterRCNN', 'SASSD', DYNAMIC_DETECTOR)
READ = ('use_rotate_nms', 'nms_thr', 'max_num')


def check_head(filename: str, model: Mapping[str, Any]) -> None:
    key = f'{prefix_of(model)}bbox_head'
    check_anchor_head(filename, f'model.{key}', model[key])


def check_limits(cfg: Any) -> None:
    key, test = test_cfg_key(cfg), test_cfg_of(cfg)
    if prefix_of(cfg.model):
        key, test = f'{key}.pts', test.get('pts') or {}
    if missing := [name for name in READ if test.get(name) is None]:
        raise ConfigError(f'{cfg.filename}: {key} has no {", ".join(missing)}, which mmdet3d requires')
    max_num = test['max_num']
    if not isinstance(max_num, int) or max_num < 1:
        raise ConfigError(f'{cfg.filename}: {key}.max_num={max_num!r}, expected a positive whole number')


class AnchorFamily(SweepMethods, SequenceFamily):
    name = 'anchor3d'
    untraced = (*UNTRACED, *anchor_heads.UNTRACED)
    graphs, reference = staticmethod(graphs), staticmethod(AnchorReference)
    facts = staticmethod(facts_of)

    def claims(self, cfg: Any) -> Claim:
        if not set(names_of_class(builder.DETECTORS, cfg.model.get('type'))) & set(DETECTORS):
            return Claim.NO
        head = part_cfg(cfg.model, f'{prefix_of(cfg.model)}bbox_head')
        heads = set(names_of_class(builder.HEADS, head.get('type')))
        return Claim.DETECTOR if heads & set(HEADS) and REGION_PROPOSAL_HEAD not in heads else Claim.NO

    def check_parts(self, filename: str, model: Mapping[str, Any]) -> None:
        check_points_side(filename, model, 'a LiDAR detector with anchors', HEADS)
        check_head(filename, model)

    def check(self, cfg: Any, options: Options) -> None:
        super().check(cfg, options)
        check_limits(cfg)
