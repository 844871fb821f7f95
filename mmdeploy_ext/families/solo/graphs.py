"""The graphs of SOLO: tensors and modules.

Source of the fork layout: zhangjinsong3/SOLOv2.tensorRT 790835b.
Glossary: B batch, C classes, S grid cells of all levels, G grid lines of all levels, E channels of a dynamic
kernel, D channels of a level, H4, W4 a quarter of the network input, n instances, h, w size of their masks.
"""

import torch
from torch import nn

from mmdeploy_ext.base.source_code import nearest_base
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.mask import MaskPostprocess, mask_config
from mmdeploy_ext.exporting.postprocess.soft_masks import DynamicMasks, LevelMasks, ProductMasks, SoftMasks
from mmdeploy_ext.families.common.image_graphs import (
    Axis,
    image_input,
    mask_inputs,
    mask_outputs,
    results_and_candidates,
)
from mmdeploy_ext.families.solo.facts import SoloFacts
from mmdeploy_ext.families.solo.networks import LEVELS, BatchedNetwork, ForkNetwork, SoloFeatures, SoloLevels
from mmdeploy_ext.spec.facts import plain
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec

SIZE_MULTIPLE = 32
"""Divisor of SOLOv2's input sides: its mask branch doubles maps."""
RAW_NAMES = {  # head -> outputs of the form `raw` in the layout 'batched'
    'SOLOHead': ('cate_pred', 'seg_pred'),
    'DecoupledSOLOHead': ('cate_pred', 'seg_pred_x', 'seg_pred_y'),
    'DecoupledSOLOLightHead': ('cate_pred', 'seg_pred_x', 'seg_pred_y'),
    'SOLOV2Head': ('cate_pred', 'kernel_pred', 'seg_pred'),
}
MEANINGS = {
    'cate': 'class scores of grid cells after sigmoid and points NMS',
    'kernel': 'dynamic 1x1 kernels of grid cells',
    'seg': 'soft masks of grid cells, 0..1',
    'features': 'mask features; a soft mask is the sigmoid of features times kernel',
    'x': 'soft masks of grid columns, 0..1; a cell has the product of its column and its row',
    'y': 'soft masks of grid rows, 0..1',
}
ROWS = 'level by level, row by row'


def kind(head: nn.Module) -> str:
    return nearest_base(type(head), LEVELS)


def fork_is_flat(head: nn.Module) -> bool:
    return kind(head) == 'SOLOV2Head' and bool(head.dcn_apply_to_all_conv)


def fork_names(head: nn.Module, batch: int = 1) -> tuple[str, ...]:
    """Return the fork's output names in order; all but `seg_pred` end in the level."""
    levels = range(head.num_levels)
    if fork_is_flat(head):
        numbers = [''] if batch == 1 else [f'_{image}' for image in range(batch)]
        per_image = [f'{name}{number}' for name in ('cate_pred', 'kernel_pred') for number in numbers]
        return (*per_image, 'seg_pred')
    if kind(head) == 'SOLOV2Head':
        return (*(f'{name}_{level}' for name in ('cate_pred', 'kernel_pred') for level in levels), 'seg_pred')
    masks = ('seg_preds',) if kind(head) == 'SOLOHead' else ('seg_preds_x', 'seg_preds_y')
    return tuple(f'{name}_{level}' for name in (*masks, 'cate_pred') for level in levels)


def logit_names(head: nn.Module) -> tuple[str, ...]:
    return tuple(f'cate_logits_{level}' for level in range(head.num_levels))


def mask_stride(head: nn.Module) -> int:
    return int(getattr(head, 'mask_stride', 4))


def facts_of(head: nn.Module) -> SoloFacts:
    return SoloFacts(
        **plain(mask_config(head.test_cfg)),
        head=kind(head),
        num_classes=int(head.cls_out_channels),
        num_grids=[int(grid) for grid in head.num_grids],
        strides=[int(stride) for stride in head.strides],
        mask_stride=mask_stride(head),
    )


class SoloFullForm(nn.Module):
    """The form `full`: instances from the network's outputs."""

    def __init__(self, head: nn.Module, cap: int) -> None:
        super().__init__()
        self.facts = facts = facts_of(head)
        self.postprocess = MaskPostprocess(facts, facts.num_grids, facts.strides, facts.mask_stride, cap)
        self.convs = getattr(head, 'conv_mask_list', None)

    def forward(
        self, img_shape: torch.Tensor, ori_shape: torch.Tensor, cate_pred: torch.Tensor, *maps: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return masks (B, n, h, w) bool, scores, labels (B, n), with a cap also the candidates (B,).

        `img_shape` (B or 1, 2) is h, w before padding, `ori_shape` (2,) of the results; 0 means the network
        input, rounded up to a multiple of 8. `cate_pred` (B, S, C) are class scores; padding has empty masks,
        score 0 and label -1.
        """
        results = self.postprocess(cate_pred, self.soft_masks(*maps), img_shape, ori_shape)
        names = ('masks', 'scores', 'labels', 'candidates')
        return tuple(tap(name, tensor) for name, tensor in zip(names, results, strict=False))

    def soft_masks(self, *maps: torch.Tensor) -> SoftMasks:
        """Return the soft masks of cells.

        `maps` are of `SOLOHead` inputs of mask convolutions, per level (B, channels, ...) at twice the
        level's size; of `SOLOV2Head` kernels (B, S, E) and mask features (B, E, H4, W4); decoupled x masks
        and y masks (B, G, H4, W4).
        """
        if self.facts.head == 'SOLOV2Head':
            return DynamicMasks(*maps)
        if self.facts.head != 'SOLOHead':
            return ProductMasks(*maps, self.facts.num_grids)
        weights = [conv.weight.flatten(1) for conv in self.convs]  # a row for each cell
        return LevelMasks(maps, weights, [conv.bias for conv in self.convs], fixed=self.postprocess.cap > 0)


def spec(model: nn.Module, options: Options) -> GraphSpec:
    head = model.mask_head
    image = image_input(options, max(head.num_grids), SIZE_MULTIPLE if kind(head) == 'SOLOV2Head' else 1)
    batch = image.axes[0]
    if options.form == 'full':
        facts = facts_of(head)
        limits = facts.nms_pre, facts.max_per_img
        outputs = results_and_candidates(mask_outputs, options, *limits, pairs='cell')
        return GraphSpec('solo/full', (image, *mask_inputs(batch)), outputs)
    if options.layout == 'fork':
        return GraphSpec('solo/raw-fork', (image,), _fork_outputs(head, options))
    return GraphSpec('solo/raw', (image,), _raw_outputs(head, options, batch))


def _quarter(head: nn.Module, options: Options) -> tuple[Axis, Axis]:
    if options.dynamic:
        return 'H4', 'W4'
    if kind(head) == 'SOLOV2Head':
        return options.height // mask_stride(head), options.width // mask_stride(head)
    return tuple(2 * -(-size // 8) for size in (options.height, options.width))


def _raw_outputs(head: nn.Module, options: Options, batch: Axis) -> tuple[TensorSpec, ...]:
    cells, lines = sum(grid**2 for grid in head.num_grids), sum(head.num_grids)
    quarter = _quarter(head, options)
    classes = head.cls_out_channels
    outputs = [TensorSpec('cate_pred', 'float32', (batch, cells, classes), f'{MEANINGS["cate"]}, {ROWS}')]
    if kind(head) == 'SOLOHead':
        shape = (batch, cells, *quarter)
        outputs.append(TensorSpec('seg_pred', 'float32', shape, f'{MEANINGS["seg"]}, {ROWS}'))
    elif kind(head) == 'SOLOV2Head':
        channels = head.kernel_out_channels
        outputs += [
            TensorSpec('kernel_pred', 'float32', (batch, cells, channels), f'{MEANINGS["kernel"]}, {ROWS}'),
            TensorSpec('seg_pred', 'float32', (batch, channels, *quarter), MEANINGS['features']),
        ]
    else:
        shape = (batch, lines, *quarter)
        outputs += [
            TensorSpec(f'seg_pred_{axis}', 'float32', shape, f'{MEANINGS[axis]}, level by level')
            for axis in 'xy'
        ]
    return tuple(outputs)


def _fork_outputs(head: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
    cells, classes = sum(grid**2 for grid in head.num_grids), head.cls_out_channels
    quarter = _quarter(head, options)
    outputs = []
    for name in fork_names(head, options.batch):
        stem, _, level = name.rpartition('_')
        grid = head.num_grids[int(level)] if level.isdigit() and not fork_is_flat(head) else 0
        if name.startswith('cate_pred'):
            axes = (options.batch, grid, grid, classes) if grid else (cells, classes)
            meaning = MEANINGS['cate']
        elif name.startswith('kernel_pred'):
            channels = head.kernel_out_channels
            axes = (options.batch, channels, grid, grid) if grid else (cells, channels)
            meaning = MEANINGS['kernel']
        elif name == 'seg_pred':
            axes, meaning = (options.batch, head.kernel_out_channels, *quarter), MEANINGS['features']
        else:
            lines = grid**2 if stem == 'seg_preds' else grid
            axes = (options.batch, lines, *quarter)
            meaning = MEANINGS['seg'] if stem == 'seg_preds' else MEANINGS[stem[-1]]
        outputs.append(TensorSpec(name, 'float32', axes, meaning + (f', level {level}' if grid else '')))
    return tuple(outputs)


def stages(model: nn.Module, options: Options) -> list[Stage]:
    head = model.mask_head
    levels = LEVELS[kind(head)](model)
    if options.form == 'raw' and options.layout == 'fork':
        names = fork_names(head, options.batch)
        return [Stage('network', ForkNetwork(levels, fork_is_flat(head)), ('input',), names)]
    if options.form == 'raw':
        names = (*RAW_NAMES[kind(head)], *logit_names(head))
        return [Stage('network', BatchedNetwork(levels, names), ('input',), names)]
    if isinstance(levels, SoloLevels):
        names = ('cate_pred', *(f'mask_feat_{level}' for level in range(head.num_levels)))
        network = SoloFeatures(levels)
    else:
        names = RAW_NAMES[kind(head)]
        network = BatchedNetwork(levels, (*names, *logit_names(head)))
    outputs = ('masks', 'scores', 'labels')
    if options.max_candidates:
        outputs += ('candidates',)
    form = SoloFullForm(levels.head, options.max_candidates)
    return [
        Stage('network', network, ('input',), (*names, *logit_names(head))),
        Stage('postprocess', form, ('img_shape', 'ori_shape', *names), outputs),
    ]
