"""The graphs of ATSS: their contracts, and the chain of modules that keeps them.

The network is mmdet's own detector. Source of the algorithm: mmdet 2.28.2
`models/dense_heads/{atss_head,base_dense_head}.py`.

Glossary: B batch, A anchors of a level or of all, C classes, H, W network input in pixels, n detections.
"""

from __future__ import annotations

import copy
import operator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.contract.spec import ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.exporting.ops.deform_conv import spell_out_leading_offsets
from mmdeploy_ext.exporting.postprocess.bbox2d import DenseBoxPostprocess, capped, nms_config
from mmdeploy_ext.exporting.postprocess.sizes import hw
from mmdeploy_ext.exporting.same_bytes import SameBytes
from mmdeploy_ext.runtime.atss import model as runtime

if TYPE_CHECKING:
    from mmdeploy_ext.contract.option import Options

KINDS = ('cls_score', 'bbox_pred', 'centerness')
FULL_NAMES = ('dets', 'labels', 'candidates')
"""Outputs of the `full` form; the last with a cap alone."""


def raw_names(num_levels: int) -> tuple[str, ...]:
    """Return the names of the raw outputs: by kind, then by level."""
    return tuple(f'{kind}_{level}' for kind in KINDS for level in range(num_levels))


class RawNetwork(nn.Module):
    """Backbone, neck and head of the upstream detector behind flat tensors."""

    def __init__(self, model: nn.Module) -> None:
        """Keep the detector; its parameters keep their names below `model.`."""
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the network.

        Args:
            image: (B, 3, H, W) float32, normalised.

        Returns:
            `cls_score_i` (B, C, h, w), `bbox_pred_i` (B, 4, h, w), `centerness_i` (B, 1, h, w), kind by kind;
            logits, deltas, logits.
        """
        outputs = self.model.bbox_head(self.model.extract_feat(image))
        flat = tuple(tensor for kind in outputs for tensor in kind)
        return tuple(tap(name, tensor) for name, tensor in zip(raw_names(len(outputs[0])), flat, strict=True))


class Decode(nn.Module):
    """Anchors, box decoding and sigmoid for all levels."""

    def __init__(self, head: nn.Module) -> None:
        """Keep the head for its anchor generator and box coder; none of its layers is used."""
        super().__init__()
        self.priors = copy.copy(head.prior_generator)
        with SameBytes():  # roots of the ratios
            self.priors.base_anchors = self.priors.gen_base_anchors()
        self.coder = head.bbox_coder
        self.num_classes = head.cls_out_channels

    def forward(
        self, *raw: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Decode the raw outputs.

        Returns:
            Per level boxes (B, A, 4) xyxy in pixels, not clipped; class scores (B, A, C); centerness (B, A).
        """
        num_levels = len(raw) // len(KINDS)
        cls_scores, bbox_preds, centernesses = (
            raw[kind * num_levels : (kind + 1) * num_levels] for kind in range(3)
        )
        boxes = [self._boxes(level, deltas) for level, deltas in enumerate(bbox_preds)]
        scores = [_rows(logits, self.num_classes).sigmoid() for logits in cls_scores]
        return boxes, scores, [_rows(logits, 1)[..., 0].sigmoid() for logits in centernesses]

    def _boxes(self, level: int, deltas: torch.Tensor) -> torch.Tensor:
        """Decode one level: (B, a*4, h, w) deltas to (B, A, 4) boxes, as `delta2bbox`, not clipped."""
        anchors = self.priors.single_level_grid_priors(
            deltas.shape[-2:], level, dtype=deltas.dtype, device=deltas.device
        )
        centre = (anchors[:, :2] + anchors[:, 2:]) * 0.5
        size = anchors[:, 2:] - anchors[:, :2]
        deltas = _rows(deltas, 4) * deltas.new_tensor(self.coder.stds) + deltas.new_tensor(self.coder.means)
        bound = float(np.float32(np.abs(np.log(WH_RATIO_CLIP))))
        centre = centre + size * deltas[..., :2]
        half = size * deltas[..., 2:].clamp(min=-bound, max=bound).exp() * 0.5
        return torch.cat([centre - half, centre + half], dim=-1)


WH_RATIO_CLIP = 16 / 1000
"""mmdet's default bound of predicted size ratios (`DeltaXYWHBBoxCoder.decode`)."""


def _rows(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    """Return (B, a*columns, h, w) as (B, h*w*a, columns)."""
    return tensor.permute(0, 2, 3, 1).reshape(tensor.shape[0], -1, columns)


class DecodeForm(nn.Module):
    """What the `decode` form adds to the network: raw outputs to boxes, scores, centerness."""

    def __init__(self, head: nn.Module, product: bool) -> None:
        """Choose whether centerness is an output of its own or a factor of the scores."""
        super().__init__()
        self.decode = Decode(head)
        self.product = product

    def forward(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return boxes (B, A, 4), scores (B, A, C) and, unless multiplied in, centerness (B, A)."""
        boxes, scores, centerness = (torch.cat(levels, dim=1) for levels in self.decode(*raw))
        if self.product:
            return tap('boxes', boxes), tap('scores', scores * centerness[..., None])
        return tap('boxes', boxes), tap('scores', scores), tap('centerness', centerness)


class FullForm(nn.Module):
    """What the `full` form adds to the network: raw outputs to detections."""

    def __init__(self, head: nn.Module, cap: int = 0) -> None:
        """Read the thresholds from the head's test_cfg; `cap` as in `DenseBoxPostprocess`."""
        super().__init__()
        self.decode = Decode(head)
        self.postprocess = DenseBoxPostprocess(nms_config(head.test_cfg), head.bbox_coder.clip_border, cap)

    def forward(
        self, image: torch.Tensor, img_shape: torch.Tensor, scale_factor: torch.Tensor, *raw: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Post-process.

        Args:
            image: (B, 3, H, W); only its size is used.
            img_shape: (B, 2) float32 h, w before padding; 0 means the input size.
            scale_factor: (B, 4) float32.
            raw: the raw outputs.

        Returns:
            dets (B, n, 5), labels (B, n), and with a cap candidates (B,).
        """
        input_hw = hw(image).to(img_shape)[None]
        clip_hw = torch.where(img_shape > 0, img_shape, input_hw)
        found = self.postprocess(*self.decode(*raw), clip_hw, scale_factor)
        return tuple(tap(name, tensor) for name, tensor in zip(FULL_NAMES, found, strict=False))


PIXELS = ColumnGroup(name='xyxy', unit='pixel')


def _optional_inputs(batch: int | str) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec(
            'img_shape',
            'float32',
            (batch, 2),
            'height and width before padding, which boxes are clipped to; 0 means the input size',
            'pixel',
            default=0.0,
        ),
        TensorSpec(
            'scale_factor',
            'float32',
            (batch, 4),
            'w h w h ratios, input / original; boxes are divided by it',
            default=1.0,
        ),
    )


def _full_outputs(model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
    batch, cap = 'B' if options.dynamic else options.batch, options.max_candidates
    rows = capped(cap, nms_config(model.bbox_head.test_cfg).max_per_img) if cap else 'n'
    outputs = (
        TensorSpec(
            'dets',
            'float32',
            (batch, rows, 5),
            'x1 y1 x2 y2 score in descending score order; pixels of '
            'the network input, of the original image when scale_factor is fed; padded with zeros',
            compare='detections',
        ),
        TensorSpec(
            'labels',
            'int64',
            (batch, rows),
            'class indices; -1 where dets is padding',
            compare='detections',
        ),
    )
    if not cap:
        return outputs
    meaning = f'(anchor, class) pairs over the score threshold; more than {cap}: the rest was cut off'
    return (*outputs, TensorSpec('candidates', 'int64', (batch,), meaning, compare='detections'))


def _decode_outputs(model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
    head = model.bbox_head
    batch, anchors = 'B', 'A'
    if not options.dynamic:
        per_cell = map(len, head.prior_generator.base_anchors)
        cells = [height * width for height, width in _feature_shapes(head, options)]
        batch, anchors = options.batch, sum(map(operator.mul, cells, per_cell))
    boxes = TensorSpec(
        'boxes',
        'float32',
        (batch, anchors, 4),
        'x1 y1 x2 y2 per anchor, level by level, not clipped',
        'pixel',
        (PIXELS,),
    )
    shape = (batch, anchors, head.cls_out_channels)
    if options.score_form == 'product':
        return boxes, TensorSpec('scores', 'float32', shape, 'class score times centerness')
    return (
        boxes,
        TensorSpec('scores', 'float32', shape, 'class scores, 0..1'),
        TensorSpec('centerness', 'float32', (batch, anchors), 'centerness, 0..1'),
    )


def _raw_outputs(model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
    head = model.bbox_head
    shapes = _feature_shapes(head, options)
    per_cell = [len(base) for base in head.prior_generator.base_anchors]
    units = dict(
        cls_score=('class logits', 'logit', head.cls_out_channels),
        bbox_pred=('box deltas dx dy dw dh', '', 4),
        centerness=('centerness logits', 'logit', 1),
    )
    batch = 'B' if options.dynamic else options.batch
    outputs = []
    for kind, (meaning, unit, channels) in units.items():
        for level, (height, width) in enumerate(shapes):
            size = (f'h{level}', f'w{level}') if options.dynamic else (height, width)
            axes = (batch, channels * per_cell[level], *size)
            outputs.append(TensorSpec(f'{kind}_{level}', 'float32', axes, f'{meaning}, level {level}', unit))
    return tuple(outputs)


def _feature_shapes(head: nn.Module, options: Options) -> list[tuple[int, int]]:
    strides = [int(stride[0]) for stride in head.prior_generator.strides]
    return runtime.level_shapes(options.height, options.width, strides)


OUTPUTS = dict(full=_full_outputs, decode=_decode_outputs, raw=_raw_outputs)
"""Form -> its outputs."""


def spec(model: nn.Module, options: Options) -> GraphSpec:
    """Return the contract of a form."""
    batch, height, width = (
        ('B', 'H', 'W') if options.dynamic else (options.batch, options.height, options.width)
    )
    image = TensorSpec(
        'input', 'float32', (batch, 3, height, width), 'normalised images, padded bottom and right'
    )
    outputs = OUTPUTS[options.form](model, options)
    inputs = (image, *_optional_inputs(batch)) if options.form == 'full' else (image,)
    return GraphSpec(f'atss/{options.form}', inputs, outputs)


def stages(model: nn.Module, options: Options, fold: bool = True) -> list[Stage]:
    """Return the network, and what the form adds to it."""
    raw = raw_names(len(model.bbox_head.prior_generator.strides))
    network = spell_out_leading_offsets(fuse(model)) if fold else model
    chain = [Stage('network', RawNetwork(network), ('input',), raw)]
    if options.form == 'decode':
        product = options.score_form == 'product'
        outputs = ('boxes', 'scores') if product else ('boxes', 'scores', 'centerness')
        chain.append(Stage('decode', DecodeForm(model.bbox_head, product), raw, outputs))
    elif options.form == 'full':
        chain.append(
            Stage(
                'postprocess',
                FullForm(model.bbox_head, options.max_candidates),
                ('input', 'img_shape', 'scale_factor', *raw),
                FULL_NAMES if options.max_candidates else FULL_NAMES[:2],
            )
        )
    return chain
