"""SOLO: supported configs, facts of files."""

from collections.abc import Mapping
from typing import Any

from mmdet.models.builder import HEADS
from torch import nn

from mmdeploy_ext.base.config import refused_by_name
from mmdeploy_ext.base.errors import CheckpointError, ConfigError, UsageError
from mmdeploy_ext.exporting.postprocess.mask import mask_config
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import detector_parts, image_graphs
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.solo import graphs
from mmdeploy_ext.families.solo.facts import SoloFacts
from mmdeploy_ext.families.solo.networks import LEVELS
from mmdeploy_ext.families.solo.reference import SoloReference
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.building import names_of_class
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint
from mmdeploy_ext.upstream.weights.convert.solo_config import checkpoint_grids, config_grids
from mmdeploy_ext.upstream.weights.convert.solo_names import original_head

dense_heads = mmdet_module('mmdet.models.dense_heads')
mask_matrix_nms = mmdet_module('mmdet.core').mask_matrix_nms


class SoloFamily(ImageFamily):
    name = 'solo'
    task = 'mask'
    forms = ('full', 'raw')
    reference = SoloReference
    untraced = (
        *ImageFamily.untraced, '.format_results', 'mask_head.forward', 'mask_head.mask_feature_head.forward',
        'resize_feats', 'get_results', '_get_results_single',
    )  # fmt: skip
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(image_graphs.mask_feeds)

    def facts(self, model: nn.Module) -> SoloFacts:
        return graphs.facts_of(model.mask_head)

    def claims(self, cfg: Any) -> Claim:
        names = names_of_class(HEADS, detector_parts.part_cfg(cfg.model, 'mask_head').get('type'))
        return Claim.HEAD if set(names) & set(LEVELS) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        if options.layout == 'fork' and options.dynamic:
            raise UsageError('--layout fork: its outputs have no batch axis; omit --dynamic-export')
        _check_head(cfg.filename, cfg.model.mask_head, options)
        with refused_by_name(cfg):
            mask_config(detector_parts.test_cfg_of(cfg))

    def most_candidates(self, cfg: Any, options: Options) -> dict[str, int]:
        return dict(max_candidates=pairs_of(cfg.filename, cfg.model.mask_head))

    def build(self, cfg: Any) -> nn.Module:
        _grids_of(cfg.filename, cfg.model.mask_head)
        return super().build(cfg)

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        check_grids(model.mask_head, checkpoint)
        super().load_weights(model, checkpoint)


def check_grids(head: nn.Module, checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a checkpoint of other grids.

    SOLOv2's layers do not show them; the config in a checkpoint of mmdet or `solo_wxinlong.py` does.
    """
    if original_head(checkpoint.state_dict):
        return
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.state_dict.items()}
    grids = list(head.num_grids)
    trained = checkpoint_grids(shapes) or config_grids(checkpoint.meta.get('config'))
    if trained and trained != grids:
        raise CheckpointError(
            f'{checkpoint.path}: was trained on grids of {trained} cells, the config says '
            f'model.mask_head.num_grids={grids}; use the config that this checkpoint was trained with'
        )


def _grids_of(filename: str, head: Mapping[str, Any]) -> list[int]:
    grids, strides = head.get('num_grids'), head.get('strides') or (4, 8, 16, 32, 64)
    are_numbers = isinstance(grids, list | tuple) and all(type(grid) is int and grid > 0 for grid in grids)
    if not are_numbers or len(grids) != len(strides):  # a bare assert of mmdet
        raise ConfigError(
            f'{filename}: model.mask_head has num_grids={grids} and strides={list(strides)}; expected a '
            f'positive number for each stride'
        )
    return list(grids)


def pairs_of(filename: str, head: Mapping[str, Any]) -> int:
    """Return the number of pairs of a cell and a class."""
    return sum(grid**2 for grid in _grids_of(filename, head)) * int(head.get('num_classes', 80))


def _check_head(filename: str, head: Mapping[str, Any], options: Options) -> None:
    if head.get('dynamic_conv_size', 1) != 1:
        raise ConfigError(
            f'{filename}: model.mask_head.dynamic_conv_size={head.dynamic_conv_size}; SOLOv2 supports only 1'
        )
    if not (head.get('loss_cls') or {}).get('use_sigmoid', True):
        raise ConfigError(f'{filename}: model.mask_head.loss_cls.use_sigmoid is False; expected True')
    grids = _grids_of(filename, head)
    if min(options.height, options.width) < max(grids):
        raise UsageError(
            f'--shape {options.height} {options.width}: each side must be at least the largest grid of the '
            f'model, {max(grids)} pixels'
        )
    detector_parts.check_max_candidates(options, pairs_of(filename, head), any_size=True)
    multiple = graphs.SIZE_MULTIPLE
    is_solov2 = 'SOLOV2Head' in names_of_class(HEADS, head['type'])
    if is_solov2 and any(side % multiple for side in (options.height, options.width)):
        raise UsageError(
            f'--shape {options.height} {options.width}: SOLOv2 supports sizes that are multiples of '
            f'{multiple}'
        )
