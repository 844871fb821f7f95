"""What families of LiDAR detectors share: what they refuse, how they are built, and their sweeps."""

import abc
import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmdet3d.models import build_model, detectors, middle_encoders, voxel_encoders
from mmdet3d.models.builder import DETECTORS, HEADS
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.core.config import replaced_entry, test_pipeline
from mmdeploy_ext.core.errors import ConfigError, UsageError
from mmdeploy_ext.families.base import BACKBONE, find_family
from mmdeploy_ext.families.building import build_without_weights, names_of_class
from mmdeploy_ext.families.parts.generated import crowded, generated
from mmdeploy_ext.families.parts.info_files import generated_dataset
from mmdeploy_ext.families.parts.parts import parts_of, prefix_of
from mmdeploy_ext.families.parts.pillars import DYNAMIC_ENCODER, ENCODERS, SCATTER, has_pillars
from mmdeploy_ext.families.parts.samples import arrays
from mmdeploy_ext.families.parts.sparse_graph import check_form, load_whole
from mmdeploy_ext.families.parts.special_frames import plain_sweep
from mmdeploy_ext.families.parts.sweep_samples import dumped, moments, sweep
from mmdeploy_ext.families.parts.voxel_grid import grid_size, rule_of_layer
from mmdeploy_ext.families.replaced import Replaced, replaced_of_class
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.preprocess.points import VoxelRule
from mmdeploy_ext.proving.levels.limits import limit_between
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import Stepper, Sweep
from mmdeploy_ext.weights.checkpoint import Checkpoint

DETECTOR_METHODS = (
    *('forward', 'forward_test', 'simple_test', 'simple_test_pts', 'extract_feat', 'extract_pts_feat'),
    'voxelize',
)
FOLLOWED = (
    *((kind, DETECTOR_METHODS) for kind in (detectors.MVXTwoStageDetector, detectors.CenterPoint)),
    *((kind, DETECTOR_METHODS) for kind in (detectors.VoxelNet, detectors.DynamicVoxelNet)),
    *((getattr(voxel_encoders, name), ('forward',)) for name in (*ENCODERS, DYNAMIC_ENCODER)),
    *((getattr(voxel_encoders, name), ('forward',)) for name in ('HardSimpleVFE', 'DynamicSimpleVFE')),
    (middle_encoders.PointPillarsScatter, ('forward', 'forward_single', 'forward_batch')),
)
"""Methods of detectors of points that their graphs and runtimes compute by themselves."""
COLUMNS = dict(LoadPointsFromFile=[0, 1, 2], LoadPointsFromMultiSweeps=[0, 1, 2, 4])
"""Step that loads points -> columns that it keeps where a config does not say."""
DYNAMIC_DETECTOR = 'DynamicVoxelNet'
"""The detector whose voxels hold all their points."""
FEW, MANY = 19, 700
"""Boxes that lowered limits of candidates let through, fewer than other limits do, and raised limits."""


class LidarFamily(SequenceFamily):
    """Detectors of points alone, without a memory: a sparse backbone or pillars, and a dense head."""

    of_config = "the grid is the config's"
    task = 'bbox3d'
    used_by: ClassVar[Mapping[str, str]] = {
        '': 'sweep SWEEP.bin --config {config} --checkpoint {checkpoint} --onnx {file}'
    }
    files = ('backbone', 'head')
    samples = 'sweeps'
    frame, moments = staticmethod(sweep), staticmethod(moments)
    dump_tensors, dumped_frame = staticmethod(arrays), staticmethod(dumped)
    generated_sweeps = staticmethod(generated)
    compared = ()  # the outputs of both files, see `SequenceFamily.compared`

    def replaced(self, model: nn.Module) -> Iterator[Replaced]:
        """Yield the methods of the detector, its encoders, its head and the head's box coder."""
        parts = parts_of(model)
        for part in (model, parts.voxel_encoder, parts.middle_encoder, parts.head):
            yield from replaced_of_class(part, self.followed)
        coder, methods = self.followed[-1]
        yield Replaced(parts.head.bbox_coder, coder.__name__, methods)

    @abc.abstractmethod
    def check_parts(self, filename: str, model: Mapping[str, Any]) -> None:
        """Refuse detectors whose parts are not exported."""

    def generated_dataset(self, folder: Path, cfg: Any, rule: VoxelRule) -> dict[str, Any]:
        """Write moments of a LiDAR alone."""
        return generated_dataset(folder, cfg, 'NuScenesDataset', voxels=rule)

    def check(self, cfg: Any, options: Options) -> None:
        if options.fp16_io:
            raise UsageError(f'--fp16-io: points and the map between both graphs of {self.name} stay float32')
        self.check_parts(cfg.filename, cfg.model)
        check_points_loaded(cfg)
        encoder = cfg.model[f'{prefix_of(cfg.model)}middle_encoder']
        check_form(cfg.filename, options, encoder.type != SCATTER)

    def voxel_layer(self, model: nn.Module) -> tuple[nn.Module, str, int]:
        """Return the layer of the detector; mmdet3d's encoders take z, y, x."""
        return parts_of(model).voxel_layer, 'zyx', self.reference(model).width

    def crowded_sweeps(self, rule: VoxelRule, options: Options) -> Iterable[Sweep]:
        """Yield sweeps that reach a rule's limits."""
        return crowded(rule)

    def plain_sample(self, rule: VoxelRule, sample: Sweep) -> Sweep:
        """Return a sweep of one point."""
        return plain_sweep(sample, rule.point_cloud_range)

    @contextlib.contextmanager
    def with_limit(self, model: nn.Module, runner: Stepper, found: Detections3D) -> Iterator[int]:
        """See `SequenceFamily.with_limit`; nodes have settings of their own."""
        rule = getattr(runner, 'box_rule', None)
        limit = limit_between(found, rule.groups(found.labels)) if rule is not None else 0
        with _with_limits(model, runner, {rule.limit: limit} if limit else {}):
            yield limit

    def other_limits(
        self, model: nn.Module, runner: Stepper, spec: GraphSpec
    ) -> Iterator[tuple[str, contextlib.AbstractContextManager[None]]]:
        """Yield fewer candidates, more results, and more of both; nodes have settings of their own."""
        rule = getattr(runner, 'box_rule', None)
        if rule is None:
            return
        cells = min(math.prod(tensor.axes[2:]) for tensor in spec.outputs)  # mmdet3d chooses in each class
        candidates = {name: getattr(rule, name) for name in rule.candidates}
        limited = {name: count for name, count in candidates.items() if count and count > 0}
        for name, count in limited.items():
            fewer = min(FEW, count)
            yield f'{name} {fewer}', _with_limits(model, runner, {name: fewer})
        results = getattr(rule, rule.limit)
        more = {} if results is None else {rule.limit: raised(results)}
        yield f'{rule.limit} raised', _with_limits(model, runner, more)
        more |= {name: raised(count) for name, count in limited.items()}
        if 'max_num' in limited:
            more['max_num'] = min(more['max_num'], cells)
        yield 'all limits raised', _with_limits(model, runner, more)

    def build(self, cfg: Any) -> nn.Module:
        self.check_parts(cfg.filename, cfg.model)
        model = build_without_weights(cfg, build_model, 'img_backbone')
        if not has_pillars(model):
            find_family(cfg, BACKBONE).settings(cfg, model)  # refuses grids that disagree
        return model

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """See `Family.load_weights`; kernels of either spconv layout."""
        if has_pillars(model):
            super().load_weights(model, checkpoint)
        else:
            load_whole(model, checkpoint, f'{parts_of(model).prefix}middle_encoder')

    def preprocess_rule(self, cfg: Any) -> VoxelRule:
        """See `Family.preprocess_rule`: how points become voxels."""
        self.check_parts(cfg.filename, cfg.model)
        prefix = prefix_of(cfg.model)
        if cfg.model[f'{prefix}middle_encoder'].type != SCATTER:
            return find_family(cfg, BACKBONE).preprocess_rule(cfg)
        return rule_of_layer(cfg.model[f'{prefix}voxel_layer'], points_width(cfg.model)[1], 'zyx')

    def timed_methods(self, model: nn.Module) -> dict[str, list[tuple[object, str]]]:
        parts = parts_of(model)
        encoders = parts.voxel_encoder, parts.middle_encoder
        return dict(
            backbone=[(model, 'voxelize'), *((encoder, 'forward') for encoder in encoders)],
            boxes=[(parts.head, 'get_bboxes')],
        )


def is_dynamic(model: Mapping[str, Any]) -> bool:
    """Return whether the detector of a config's model is one whose voxels hold all their points."""
    return DYNAMIC_DETECTOR in names_of_class(DETECTORS, model.get('type'))


@contextlib.contextmanager
def _with_limits(model: nn.Module, runner: Stepper, limits: Mapping[str, int]) -> Iterator[None]:
    """Give the head of a model and its files other limits for a while, by name."""
    head, rule = parts_of(model).head, getattr(runner, 'box_rule', None)
    with contextlib.ExitStack() as stack:
        for name, limit in limits.items():
            settings = head.test_cfg if name in head.test_cfg else vars(head.bbox_coder)
            stack.enter_context(replaced_entry(settings, name, limit))
        if limits:
            runner.box_rule = dataclasses.replace(rule, **limits)
            stack.callback(setattr, runner, 'box_rule', rule)
        yield


def raised(limit: int) -> int:
    """Return a limit that lets more through, and no number that takes long to suppress."""
    return max(MANY, limit + max(limit // 10, 1))


def check_points_side(filename: str, model: Mapping[str, Any], what: str, heads: Sequence[str]) -> None:
    """Raise ConfigError, which names the key, for encoders and heads that are not exported, and for cameras.

    `what` is exported with `heads`; it is for messages.
    """
    prefix, dynamic = prefix_of(model), is_dynamic(model)
    middle = (model.get(f'{prefix}middle_encoder') or {}).get('type')
    if middle == SCATTER:
        encoders = (DYNAMIC_ENCODER,) if dynamic else ENCODERS
    else:
        encoders = ('DynamicSimpleVFE',) if dynamic else ('HardSimpleVFE',)
    wanted = dict(middle_encoder=('SparseEncoder', SCATTER), voxel_encoder=encoders, bbox_head=heads)
    for name, allowed in wanted.items():
        kind = (model.get(key := prefix + name) or {}).get('type')
        kinds = names_of_class(HEADS, kind) if name == 'bbox_head' else [kind]
        if not set(kinds) & set(allowed):
            raise ConfigError(
                f'{filename}: model.{key}.type={kind!r}; {what} is exported with {" or ".join(allowed)}'
            )
    if middle == SCATTER:
        check_points_of_pillars(filename, model)
    for key in ('img_backbone', 'pts_fusion_layer'):
        if model.get(key):
            raise ConfigError(f'{filename}: model.{key}: {what} is exported for points alone')


def check_points_of_pillars(filename: str, model: Mapping[str, Any]) -> None:
    """Refuse pillars whose number of points does not fit the detector, or whose map upstream cuts short."""
    key, dynamic = f'model.{prefix_of(model)}voxel_layer', is_dynamic(model)
    layer = model[f'{prefix_of(model)}voxel_layer']
    most = int(layer.get('max_num_points', -1))
    if (most < 1) != dynamic:
        raise ConfigError(
            f'{filename}: {key}.max_num_points={most}; {DYNAMIC_DETECTOR} takes -1 (all points of a pillar), '
            f'other detectors a fixed number'
        )
    limits, sizes = layer['point_cloud_range'], layer['voxel_size']
    cells = grid_size(limits, sizes, f'{filename}: {key}')
    scatter = f'{prefix_of(model)}middle_encoder'
    rows, columns = model[scatter]['output_shape']
    if columns < cells[0] or rows < cells[1]:
        raise ConfigError(
            f'{filename}: model.{scatter}.output_shape={[rows, columns]} (rows, columns), but {key} makes '
            f'{cells[1]} rows and {cells[0]} columns of pillars'
        )
    for axis, count in enumerate(cells[:2] if dynamic else ()):
        quotient = (limits[axis + 3] - limits[axis]) / sizes[axis]
        if int(quotient) != count:
            raise ConfigError(
                f'{filename}: {key}: {quotient!r} pillars along {"xy"[axis]}, of which mmdet3d makes '
                f'{int(quotient)}: it mixes points of different pillars; change the range by less than one'
            )


def check_points_loaded(cfg: Any) -> None:
    """Refuse a test pipeline that loads points of another width than the model takes."""
    key, wanted = points_width(cfg.model)
    loaders = [step for step in test_pipeline(cfg) if step.get('type') in COLUMNS]
    if not loaders:
        return
    used = loaders[-1].get('use_dim', COLUMNS[loaders[-1]['type']])  # sweeps are the points that go on
    width = used if isinstance(used, int) else len(used)
    if width != wanted:
        raise ConfigError(
            f'{cfg.filename}: use_dim={used} of {loaders[-1]["type"]} gives {width} values per point, '
            f'model.{key}.in_channels is {wanted}'
        )


def points_width(model: Mapping[str, Any]) -> tuple[str, int]:
    """Return the part of a config's model that says how many values a point has, and D."""
    prefix = prefix_of(model)
    part = 'voxel_encoder' if model[f'{prefix}middle_encoder']['type'] == SCATTER else 'middle_encoder'
    return prefix + part, int(model[prefix + part].get('in_channels', 4))
