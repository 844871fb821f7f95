"""The graphs of FCOS3D and PGD: contracts and modules.

Source: mmdet3d 1.0.0rc6, `get_bboxes` of models/dense_heads/{fcos_mono3d,pgd}_head.py and
core/post_processing/box3d_nms.py `box3d_multiclass_nms`.
Glossary: B batch, A cells, of a level or of all, C classes, D values of a box, K attributes, n results of the
fullest picture, H, W network input in pixels, h, w size of a level's maps.
"""

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.suppression import gather_rows, rows_of
from mmdeploy_ext.families.common import detector_parts, image_graphs
from mmdeploy_ext.families.common.image_graphs import clip_size, image_input, optional_inputs
from mmdeploy_ext.families.common.suppression3d import best_rows, padded, result_specs, suppressed
from mmdeploy_ext.families.monocular.facts import Depth, PointsFacts
from mmdeploy_ext.families.monocular.networks import PointsNetwork, output_names, raw_names
from mmdeploy_ext.families.monocular.runtime import decoding
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, Stage, TensorSpec

RAW_MEANINGS = dict(
    cls_score=('class logits', 'logit'),
    bbox_pred=('offset of the centre (pixels), depth and sizes (m), yaw relative to the ray (rad), rest', ''),
    dir_cls_pred=('logits of both directions', 'logit'),
    depth_cls_pred=('logits of depth bins', 'logit'),
    weight=('logarithms of depth weights', ''),
    attr_pred=('logits of attributes', 'logit'),
    centerness=('centerness logits', 'logit'),
)
METRES, SIZES = ColumnGroup('x y z', (0, 1, 2), 'm'), ColumnGroup('sizes', (3, 4, 5), 'm')
YAW, VELOCITY = ColumnGroup('yaw', (6,), 'rad'), ColumnGroup('velocity', (7, 8), 'm/s')
"""Columns of boxes, and their units."""
BOX = 'x y z of the bottom centre and sizes (m), yaw (rad), velocity (m/s), in the frame of the camera'


def camera_input(batch: int | str) -> TensorSpec:
    """Return the spec of the cameras, float32 also in a float16 graph."""
    meaning = 'camera frame to pixels of the network input, times depth; the last row is 0 0 0 1'
    return TensorSpec('cam2img', 'float32', (batch, 4, 4), meaning, single=True)


def code_size(head: nn.Module) -> int:
    return int(head.bbox_coder.bbox_code_size)


def depth_facts(head: nn.Module) -> Depth | None:
    if not getattr(head, 'use_depth_classifier', False):
        return None
    (low, high), count, division = head.depth_range, int(head.num_depth_cls), head.division
    steps, first = np.arange(count), max(low, 1)
    if division == 'uniform':
        bins = steps * float(head.depth_unit)
    elif division == 'linear':
        bins = low + (high - low) / (count * (count - 1)) * steps * (steps + 1)
    else:
        bins = np.log(first) + steps * np.log(high / first) / (count - 1)
        bins = np.exp(bins) if division == 'log' else bins
    return Depth(
        bins=[float(value) for value in bins],
        logarithms=division == 'loguniform',
        direct=float(torch.sigmoid(head.fuse_lambda.detach())),
        uncertain=head.weight_dim != -1,
    )


def facts_of(model: nn.Module) -> PointsFacts:
    head, test = model.bbox_head, model.bbox_head.test_cfg
    return PointsFacts(
        num_classes=int(head.num_classes),
        code_size=code_size(head),
        strides=[int(stride) for stride in head.strides],
        dir_offset=float(head.dir_offset),
        depth=depth_facts(head),
        attributes=int(head.num_attrs) if head.pred_attrs else 0,
        sides=bool(head.pred_bbox2d),
        nms_pre=int(test.get('nms_pre', -1)),
        score_thr=float(test['score_thr']),
        nms_thr=float(test['nms_thr']),
        max_per_img=int(test['max_per_img']),
    )


def result_names(model: nn.Module, form: str) -> tuple[str, ...]:
    head, names = model.bbox_head, ['boxes', 'scores']
    if form == 'full':
        names.append('labels')
    if head.pred_attrs:
        names.append('attributes' if form == 'full' else 'attr_pred')
    if head.pred_bbox2d:
        names.append('bboxes')
    return tuple(names)


def box_groups(head: nn.Module) -> tuple[ColumnGroup, ...]:
    return (METRES, SIZES, YAW, VELOCITY) if code_size(head) == 9 else (METRES, SIZES, YAW)


def spec(model: nn.Module, options: Options) -> GraphSpec:
    head = model.bbox_head
    smallest = detector_parts.smallest(head, max(head.strides)) if options.dynamic else 1
    image = image_input(options, smallest, detector_parts.multiple(model))
    batch, inputs = image.axes[0], [image]
    if options.form != 'raw':
        inputs.append(camera_input(batch))
        if head.pred_bbox2d:
            inputs.append(optional_inputs(batch, clips=True)[0])
    makers = dict(raw=raw_outputs, decode=decode_outputs, full=full_outputs)
    return GraphSpec(f'monocular/{options.form}', tuple(inputs), makers[options.form](model, options, batch))


def map_sizes(model: nn.Module, options: Options) -> list[tuple[int, int]]:
    """Return (h, w) of each level; (0, 0) for dynamic sizes."""
    head = model.bbox_head
    return detector_parts.map_sizes(
        model, lambda detector, image: detector.extract_feat(image), len(head.strides), options
    )


def raw_outputs(model: nn.Module, options: Options, batch: int | str) -> tuple[TensorSpec, ...]:
    head = model.bbox_head
    columns = dict(
        cls_score=int(head.num_classes),
        bbox_pred=sum(head.group_reg_dims),
        dir_cls_pred=2,
        depth_cls_pred=int(getattr(head, 'num_depth_cls', 0)),
        weight=int(getattr(head, 'weight_dim', 0)),
        attr_pred=int(head.num_attrs),
        centerness=1,
    )
    outputs = [(name, columns[name]) for name in output_names(head)]
    sizes = map_sizes(model, options)
    return image_graphs.raw_outputs(outputs, RAW_MEANINGS, [1] * len(sizes), sizes, options)


def decode_outputs(model: nn.Module, options: Options, batch: int | str) -> tuple[TensorSpec, ...]:
    head = model.bbox_head
    cells = 'A' if options.dynamic else sum(height * width for height, width in map_sizes(model, options))
    scores = 'class scores times centerness (and confidence of the depth)'
    depth = depth_facts(head)
    if depth is None or not depth.uncertain:  # the factor of an uncertainty may exceed 1
        scores += ', 0..1'
    tensors = dict(
        boxes=TensorSpec('boxes', 'float32', (batch, cells, code_size(head)), BOX, groups=box_groups(head)),
        scores=TensorSpec(
            'scores',
            'float32',
            (batch, cells, int(head.num_classes)),
            scores,
        ),
        attr_pred=TensorSpec(
            'attr_pred', 'float32', (batch, cells, int(head.num_attrs)), 'logits of attributes', 'logit'
        ),
        bboxes=TensorSpec(
            'bboxes', 'float32', (batch, cells, 4), 'x1 y1 x2 y2 in the original image', 'pixel'
        ),
    )
    return tuple(tensors[name] for name in result_names(model, 'decode'))


def full_outputs(model: nn.Module, options: Options, batch: int | str) -> tuple[TensorSpec, ...]:
    specs = [*result_specs(batch, code_size(model.bbox_head), BOX)]
    names = result_names(model, 'full')
    if 'attributes' in names:
        meaning = 'indices of attributes'
        specs.append(TensorSpec('attributes', 'int64', (batch, 'n'), meaning, compare='detections'))
    if 'bboxes' in names:
        axes, meaning = (batch, 'n', 4), 'x1 y1 x2 y2 in the network input'
        specs.append(TensorSpec('bboxes', 'float32', axes, meaning, 'pixel', compare='detections'))
    return tuple(specs)


def stages(model: nn.Module, options: Options) -> list[Stage]:
    head = model.bbox_head
    raw = raw_names(head)
    chain = [Stage('network', PointsNetwork(model), ('input',), raw)]
    sizes = ('input', 'img_shape') if head.pred_bbox2d else ()
    if options.form != 'raw':
        form = DecodeForm(model) if options.form == 'decode' else FullForm(model)
        inputs = ('cam2img', *sizes, *raw)
        chain.append(Stage('postprocess', form, inputs, result_names(model, options.form)))
    return chain


def cell_points(maps: torch.Tensor, stride: int) -> torch.Tensor:
    """Return x and y (A, 2) of each cell's middle, pixels, row by row."""
    height, width = maps.shape[2:]
    y, x = (torch.arange(count, device=maps.device).to(maps.dtype) * stride for count in (height, width))
    grid = torch.stack([x[None].expand(height, -1), y[:, None].expand(-1, width)], 2)
    return grid.reshape(-1, 2) + stride // 2


class Decode(nn.Module):
    """Maps of the network to a box of every cell, level by level."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.facts, self.names = facts_of(model), output_names(model.bbox_head)

    def forward(self, cam2img: torch.Tensor, *sizes_and_maps: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """Return for each level: name of an output of 'decode' -> (B, A, columns).

        Args:
            cam2img: (B, 4, 4).
            sizes_and_maps: maps in the order of `raw_names`; for models with 2D boxes first image (B, 3, H,
                W), used for its size, and img_shape (B, 2), h, w before padding, 0 for the input size.
        """
        maps, clip_hw, levels = sizes_and_maps, None, []
        if self.facts.sides:
            image, img_shape, *maps = sizes_and_maps
            clip_hw = clip_size(image, img_shape)
        count = len(self.facts.strides)
        for level, stride in enumerate(self.facts.strides):
            level_maps = dict(zip(self.names, maps[level::count], strict=True))
            rows = {name: rows_of(tensor, tensor.shape[1]) for name, tensor in level_maps.items()}
            points = cell_points(level_maps['cls_score'], stride)
            levels.append(decoding.rows_of_results(torch, rows, points, cam2img, clip_hw, self.facts))
        return levels


class DecodeForm(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.decode, self.names = Decode(model), result_names(model, 'decode')

    def forward(self, *cameras_and_maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        levels = self.decode(*cameras_and_maps)
        return tuple(tap(name, torch.cat([level[name] for level in levels], 1)) for name in self.names)


class FullForm(nn.Module):
    """The form 'full': the best cells, suppression within classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.decode, self.names = Decode(model), result_names(model, 'full')

    def forward(self, *cameras_and_maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of 'full', (B, n, ...), best first; rows behind are zero, label -1."""
        facts = self.decode.facts
        levels = [best_rows(level, facts.nms_pre) for level in self.decode(*cameras_and_maps)]
        rows = {name: torch.cat([level[name] for level in levels], 1) for name in levels[0]}
        above = decoding.seen_from_above(torch, rows['boxes'])
        limits = facts.score_thr, facts.nms_thr, facts.max_per_img
        best, cells, labels = suppressed(above, rows['scores'], *limits)
        results = dict(boxes=gather_rows(rows['boxes'], cells), scores=best, labels=labels)
        if facts.attributes:
            results['attributes'] = gather_rows(rows['attr_pred'], cells).max(2)[1]
        if facts.sides:
            results['bboxes'] = gather_rows(rows['bboxes'], cells)
        return padded({name: results[name] for name in self.names})
