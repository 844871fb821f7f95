"""Names, shapes and meanings of the graphs of the SOLO family, and what cannot be exported.

Glossary: see `export.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.core.errors import ConfigError, UsageError
from mmdeploy_ext.exporting.postprocess.mask import capped, mask_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from mmdeploy_ext.contract.options import Options

Axis = int | str
LAYOUTS = ('batched', 'fork')
SIZE_MULTIPLE = 32
"""SOLOv2's mask branch doubles its maps until they meet; others do not (mmdet raises there, too)."""
RAW_NAMES = {
    'SOLOHead': ('cate_pred', 'seg_pred'),
    'DecoupledSOLOHead': ('cate_pred', 'seg_pred_x', 'seg_pred_y'),
    'DecoupledSOLOLightHead': ('cate_pred', 'seg_pred_x', 'seg_pred_y'),
    'SOLOV2Head': ('cate_pred', 'kernel_pred', 'seg_pred'),
}
MEANINGS = {
    'cate': 'class scores of grid cells after sigmoid and points NMS',
    'kernel': 'dynamic 1x1 kernels of grid cells',
    'seg': 'soft masks of grid cells, 0..1',
    'features': 'mask features; a soft mask is the sigmoid of their product with a kernel',
    'x': 'soft masks of grid columns, 0..1; a cell has the product of its column and its row',
    'y': 'soft masks of grid rows, 0..1',
}
ROWS = 'level after level, each row by row'
WHOLE = '0 means those of the input, up to a multiple of 8'


def kind(head: nn.Module) -> str:
    """Return the registered name of a head."""
    return type(head).__name__


def raw_names(head: nn.Module) -> tuple[str, ...]:
    """Return the names of the `raw` outputs."""
    return RAW_NAMES[kind(head)]


def feature_names(head: nn.Module) -> tuple[str, ...]:
    """Return the names of what `SOLOHead`'s network hands to its post-processing."""
    return ('cate_pred', *(f'mask_feat_{level}' for level in range(head.num_levels)))


def full_names(options: Options) -> tuple[str, ...]:
    """Return the names of the `full` outputs."""
    return ('masks', 'scores', 'labels', *(['candidates'] if options.max_candidates else []))


def fork_is_flat(head: nn.Module) -> bool:
    """Return whether the fork flattens this head: its `SOLOv2Head`, not its `SOLOv2LightHead`."""
    return kind(head) == 'SOLOV2Head' and bool(head.dcn_apply_to_all_conv)


def fork_names(head: nn.Module, batch: int = 1) -> tuple[str, ...]:
    """Return the fork's output names in its order; a batch numbers what it has per image."""
    levels = range(head.num_levels)
    if fork_is_flat(head):
        numbers = [''] if batch == 1 else [f'_{image}' for image in range(batch)]
        per_image = [f'{name}{number}' for name in ('cate_pred', 'kernel_pred') for number in numbers]
        return (*per_image, 'seg_pred')
    if kind(head) == 'SOLOV2Head':
        return (*(f'{name}_{level}' for name in ('cate_pred', 'kernel_pred') for level in levels), 'seg_pred')
    masks = ('seg_preds',) if kind(head) == 'SOLOHead' else ('seg_preds_x', 'seg_preds_y')
    return tuple(f'{name}_{level}' for name in (*masks, 'cate_pred') for level in levels)


def mask_stride(head: nn.Module) -> int:
    """Return pixels of the input per pixel of the soft masks."""
    return int(getattr(head, 'mask_stride', 4))


def check_layout(options: Options) -> None:
    """Refuse a batch axis of outputs that have none.

    Raises:
        UsageError: names the option.
    """
    if options.layout == 'fork' and options.dynamic:
        raise UsageError('--layout fork: its outputs have no batch axis; export it without --dynamic-export')


def check_levels(filename: str, head: Mapping[str, Any]) -> None:
    """Refuse grids and strides of different numbers, which mmdet refuses without a word.

    Raises:
        ConfigError: names both.
    """
    grids, strides = head.get('num_grids') or [], head.get('strides') or (4, 8, 16, 32, 64)
    if len(grids) != len(strides):
        raise ConfigError(
            f'{filename}: model.mask_head has num_grids={list(grids)} and strides={list(strides)}; expected '
            f'as many of each'
        )


def check_head(filename: str, head: Mapping[str, Any], options: Options) -> None:
    """Refuse heads and sizes whose graph would be wrong.

    Args:
        filename: of the config, for the message.
        head: `model.mask_head` of the config.
        options: with the shape resolved.

    Raises:
        ConfigError: names the key.
        UsageError: a shape.
    """
    if head.get('dynamic_conv_size', 1) != 1:
        raise ConfigError(
            f'{filename}: model.mask_head.dynamic_conv_size={head.dynamic_conv_size}; SOLOv2 exports with 1'
        )
    if not (head.get('loss_cls') or {}).get('use_sigmoid', True):
        raise ConfigError(f'{filename}: model.mask_head.loss_cls.use_sigmoid is False; expected True')
    grids = head.num_grids
    if min(options.height, options.width) < max(grids):
        raise UsageError(
            f'--shape {options.height} {options.width}: each side has to be at least the largest grid of the '
            f'model, {max(grids)} pixels'
        )
    cells = sum(grid**2 for grid in grids) * int(head.get('num_classes', 80))
    if options.max_candidates > cells:
        raise UsageError(f'--max-candidates {options.max_candidates}: the model has only {cells} candidates')
    if head['type'] == 'SOLOV2Head' and (options.height % SIZE_MULTIPLE or options.width % SIZE_MULTIPLE):
        raise UsageError(
            f'--shape {options.height} {options.width}: SOLOv2 takes sizes that are multiples of '
            f'{SIZE_MULTIPLE}'
        )


def graph_spec(head: nn.Module, options: Options) -> GraphSpec:
    """Return the contract of a graph."""
    fixed = options.batch, options.height, options.width
    batch, height, width = ('B', 'H', 'W') if options.dynamic else fixed
    image = TensorSpec(
        'input',
        'float32',
        (batch, 3, height, width),
        'normalised images, padded bottom and right',
        smallest=max(head.num_grids),
        multiple=SIZE_MULTIPLE if kind(head) == 'SOLOV2Head' else 1,
    )
    if options.form == 'full':
        return GraphSpec('solo/full', (image, *_full_inputs(batch)), _full_outputs(head, options, batch))
    if options.layout == 'fork':
        return GraphSpec('solo/raw-fork', (image,), _fork_outputs(head, options))
    return GraphSpec('solo/raw', (image,), _raw_outputs(head, options, batch))


def _full_inputs(batch: Axis) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec(
            'img_shape',
            'float32',
            (batch, 2),
            f'height and width before padding, which masks are cropped to; {WHOLE}',
            'pixel',
            default=0.0,
        ),
        TensorSpec(
            'ori_shape',
            'int64',
            (2,),
            f'height and width of the original images, which masks are resized to; {WHOLE}',
            'pixel',
            default=0,
        ),
    )


def _full_outputs(head: nn.Module, options: Options, batch: Axis) -> tuple[TensorSpec, ...]:
    config, cap = mask_config(head.test_cfg), options.max_candidates
    rows: Axis = capped(cap, config.nms_pre, config.max_per_img) if cap else 'n'
    outputs = (
        TensorSpec(
            'masks',
            'bool',
            (batch, rows, 'h', 'w'),
            'pixels of the instances at ori_shape',
            compare='detections',
        ),
        TensorSpec(
            'scores',
            'float32',
            (batch, rows),
            'in descending order; padded with zeros',
            compare='detections',
        ),
        TensorSpec(
            'labels', 'int64', (batch, rows), 'class indices; -1 where a row is padding', compare='detections'
        ),
    )
    if not cap:
        return outputs
    meaning = f'(cell, class) pairs over the score threshold; more than {cap}: the rest was cut off'
    return (*outputs, TensorSpec('candidates', 'int64', (batch,), meaning, compare='detections'))


def _quarter(head: nn.Module, options: Options) -> tuple[Axis, Axis]:
    """Return H4, W4: SOLOv2's from the input, the others' twice the second level's."""
    if options.dynamic:
        return 'H4', 'W4'
    if kind(head) == 'SOLOV2Head':
        return options.height // mask_stride(head), options.width // mask_stride(head)
    return tuple(2 * _eighth(size) for size in (options.height, options.width))


def _eighth(size: int) -> int:
    for _ in range(3):
        size = (size + 1) // 2
    return size


def _raw_outputs(head: nn.Module, options: Options, batch: Axis) -> tuple[TensorSpec, ...]:
    cells, lines = sum(grid**2 for grid in head.num_grids), sum(head.num_grids)
    quarter = _quarter(head, options)
    classes = head.cls_out_channels
    outputs = [TensorSpec('cate_pred', 'float32', (batch, cells, classes), f'{MEANINGS["cate"]}, {ROWS}')]
    if kind(head) == 'SOLOHead':
        outputs.append(
            TensorSpec('seg_pred', 'float32', (batch, cells, *quarter), f'{MEANINGS["seg"]}, {ROWS}')
        )
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
        stem, _, number = name.rpartition('_')
        grid = head.num_grids[int(number)] if number.isdigit() and not fork_is_flat(head) else 0
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
        outputs.append(TensorSpec(name, 'float32', axes, meaning + (f', level {number}' if grid else '')))
    return tuple(outputs)


def flat_cells(levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return (B, S, D) of levels (B, D, g, g): cells row by row, level after level."""
    return torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2)


def arrange(
    head: nn.Module, scores: Sequence[torch.Tensor], rest: Sequence[Any], layout: str
) -> dict[str, torch.Tensor]:
    """Name the outputs of mmdet's head as a `raw` graph has them.

    Args:
        head: of mmdet.
        scores: per level (B, C, g, g) after points NMS.
        rest: mmdet's other outputs: lists of levels, and SOLOv2's mask features.
        layout: 'batched' or 'fork'.
    """
    if layout == 'fork':
        return _arrange_fork(head, scores, rest)
    if kind(head) == 'SOLOV2Head':
        flat = [flat_cells(rest[0]), rest[1]]
    else:
        flat = [torch.cat(list(levels), dim=1) for levels in rest]
    return dict(zip(raw_names(head), [flat_cells(scores), *flat], strict=True))


def _arrange_fork(
    head: nn.Module, scores: Sequence[torch.Tensor], rest: Sequence[Any]
) -> dict[str, torch.Tensor]:
    last = [level.permute(0, 2, 3, 1) for level in scores]
    if fork_is_flat(head):
        tensors = [*flat_cells(scores).unbind(0), *flat_cells(rest[0]).unbind(0), rest[1]]
    elif kind(head) == 'SOLOV2Head':
        tensors = [*last, *rest[0], rest[1]]
    else:
        tensors = [*(level for levels in rest for level in levels), *last]
    return dict(zip(fork_names(head, len(scores[0])), tensors, strict=True))


def arrange_scores(head: nn.Module, levels: Sequence[torch.Tensor], layout: str) -> dict[str, torch.Tensor]:
    """Name per-level (B, C, g, g) tensors as the outputs that hold the scores."""
    if layout == 'fork' and fork_is_flat(head):
        names, tensors = fork_names(head, len(levels[0])), flat_cells(levels).unbind(0)
        return dict(zip(names[: len(tensors)], tensors, strict=True))
    if layout == 'fork':
        return {f'cate_pred_{index}': level.permute(0, 2, 3, 1) for index, level in enumerate(levels)}
    return dict(cate_pred=flat_cells(levels))
