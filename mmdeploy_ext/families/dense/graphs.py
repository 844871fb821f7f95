"""The graphs of dense heads: contracts, and the modules behind mmdet's detector.

Source: mmdet 2.28.2 `models/dense_heads/base_dense_head.py`, and the heads' own files.
Glossary: B batch, a priors of a cell, A priors of a level or of all, C classes, L levels, H, W network input
in pixels, h, w size of a level's maps, n detections of the fullest image (or `max_candidates`) before
`Head.votes`.
"""

import dataclasses
import types

import torch
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.bbox2d import DenseBoxPostprocess
from mmdeploy_ext.families.common import detector_parts, image_graphs
from mmdeploy_ext.families.common.dense_heads import OWN, kind_of
from mmdeploy_ext.families.common.image_graphs import (
    FULL_NAMES,
    box_outputs,
    image_input,
    optional_inputs,
    results_and_candidates,
)
from mmdeploy_ext.families.dense.heads import Decode, check_results, facts_of
from mmdeploy_ext.runtime.box_coders import Traced
from mmdeploy_ext.runtime.dense_facts import DenseFacts
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, Stage, TensorSpec
from mmdeploy_ext.upstream.operators.operator import hw, length

PIXELS = ColumnGroup(name='xyxy', unit='pixel')
"""Columns of boxes, and their unit."""
FACTOR_MEANINGS = dict(
    centerness='centerness, 0..1',
    objectness='objectness, 0..1',
    iou_pred='predicted IoU, 0..1',
    confidence='confidence of the sides, 0..1',
)
RAW_MEANINGS = dict(
    cls_score=('class logits', 'logit'),
    centerness=('centerness logits', 'logit'),
    objectness=('objectness logits', 'logit'),
    iou_pred=('logits of the predicted IoU', 'logit'),
    shape_pred=('logarithms of the size of guided anchors', ''),
    loc_pred=('logits of anchor locations', 'logit'),
    bbox_cls=('bucket logits of the box sides', 'logit'),
    bbox_reg=('offsets in the buckets of the box sides', ''),
    heatmap=('class scores of centres, 0..1', ''),
    wh=('width and height, strides', ''),
    offset=('position of the centre in its cell, in strides', ''),
    pred_map=('per anchor x y logits, w h logarithms, objectness and class logits', ''),
)
BOX_MEANINGS = dict(
    delta='box deltas dx dy dw dh',
    guided='box deltas dx dy dw dh',
    tblr='box sides top bottom left right',
    distance='distances left top right bottom, pixels',
    base_length='logarithms of the distances left top right bottom',
    integral='logits of the distributions of left top right bottom',
    scaled='x1 y1 x2 y2, strides',
    yolox='centre and logarithms of the size, strides',
)


def spec(model: nn.Module, options: Options) -> GraphSpec:
    _check_stride(model)
    check_results(model.bbox_head, options.form)
    facts = model_facts(model)
    bordered, stride = facts.head.bordered, max(facts.strides)
    smallest = detector_parts.smallest(model.bbox_head, stride, detector_parts.round_down(model))
    padded = 'all around' if bordered else 'bottom and right'
    image = image_input(options, smallest, detector_parts.multiple(model), padded)
    inputs = [image]
    if options.form == 'full':
        inputs += optional_inputs(image.axes[0], facts.clip_border, bordered)
        outputs = results_and_candidates(box_outputs, options, facts.max_per_img)
    elif options.form == 'decode':
        outputs = _decode_outputs(model, options)
    else:
        outputs = _raw_outputs(model, options)
    return GraphSpec(f'dense/{options.form}', tuple(inputs), outputs)


def _decode_outputs(model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
    facts = model_facts(model)
    head, shapes = facts.head, feature_shapes(model, options)
    batch, priors = image_graphs.prior_axes(facts.priors_per_cell, shapes, options)
    meaning = f'class score times {head.factor}' if options.score_form == 'product' else 'class scores, 0..1'
    shape = (batch, priors, facts.num_classes)
    boxes = 'x1 y1 x2 y2 per prior, level by level, not clipped'
    specs = dict(
        boxes=TensorSpec('boxes', 'float32', (batch, priors, 4), boxes, 'pixel', (PIXELS,)),
        scores=TensorSpec('scores', 'float32', shape, meaning),
        level_sizes=TensorSpec('level_sizes', 'int64', (len(shapes),), 'rows of boxes per level'),
    )
    if head.factor:
        specs[head.factor] = TensorSpec(head.factor, 'float32', (batch, priors), FACTOR_MEANINGS[head.factor])
    return tuple(specs[name] for name in decode_names(model, options))


def _raw_outputs(model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
    facts = model_facts(model)
    head, coder = facts.head, facts.coder
    meaning = BOX_MEANINGS.get(coder.type, '')
    if isinstance(coder, Traced):
        meaning = f'what {coder.code} takes'
    if getattr(coder, 'around_points', False):
        meaning += ', from the point of the cell'
    meanings = dict(RAW_MEANINGS, bbox_pred=(meaning, ''))
    if head.activation == 'none':
        meanings['cls_score'] = ('class scores, 0..1', '')
    shapes = feature_shapes(model, options)
    return image_graphs.raw_outputs(head.outputs, meanings, facts.priors_per_cell, shapes, options)


def feature_shapes(model: nn.Module, options: Options) -> list[tuple[int, int]]:
    """Return (h, w) of each level; (0, 0) for dynamic sizes."""
    return detector_parts.map_sizes(model, flat_outputs, len(model_facts(model).strides), options)


def _check_stride(model: nn.Module) -> None:
    head = model.bbox_head
    if kind_of(head).priors:
        return
    side, (stride,) = 2 * max(detector_parts.multiple(model), 32), facts_of(head).strides
    small = types.SimpleNamespace(dynamic=False, height=side, width=side)
    if (shape := feature_shapes(model, small)[0]) != (side // stride, side // stride):
        raise ConfigError(
            f'{type(head).__name__}: its maps have a stride of {side / shape[0]:g} pixels; expected {stride}'
        )


def stages(model: nn.Module, options: Options) -> list[Stage]:
    check_results(model.bbox_head, options.form)
    return image_graphs.form_stages(
        image_graphs.RawNetwork(model, raw_names(model), flat_outputs),
        raw_names(model),
        options,
        decode=lambda: (DecodeForm(model, options.score_form == 'product'), decode_names(model, options)),
        full=lambda: DenseFullForm(model, options.max_candidates, options.nms_plugin),
        extra_inputs=('border',) if model_facts(model).head.bordered else (),
    )


def model_facts(model: nn.Module) -> DenseFacts:
    """Return the facts of a detector's head; a neck that rounds sizes down breaks `maps_by_stride`."""
    facts = facts_of(model.bbox_head)
    if not detector_parts.round_down(model):
        return facts
    return dataclasses.replace(facts, head=dataclasses.replace(facts.head, maps_by_stride=False))


def raw_names(model: nn.Module) -> tuple[str, ...]:
    facts = facts_of(model.bbox_head)
    return tuple(f'{name}_{level}' for name in facts.head.names for level in range(len(facts.strides)))


def flat_outputs(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Return the head's outputs of normalised images (B, 3, H, W), in the order of `raw_names`."""
    head, kind, names = model.bbox_head, kind_of(model.bbox_head), raw_names(model)
    outputs = kind.flatten(kind.tested(head, head(model.extract_feat(image))))
    if len(outputs) != len(names):
        raise ConfigError(
            f'{type(head).__name__}: returns {len(outputs)} tensors, expected {len(names)}: '
            f'{", ".join(names)}; use {OWN}'
        )
    if not torch.jit.is_tracing():  # the export has run the model once before it traces
        _check_channels(model, outputs)
    return outputs


def _check_channels(model: nn.Module, outputs: list[torch.Tensor]) -> None:
    facts = model_facts(model)
    channels = [columns * priors for _, columns in facts.head.outputs for priors in facts.priors_per_cell]
    for name, tensor, expected in zip(raw_names(model), outputs, channels, strict=True):
        if tensor.shape[1] != expected:
            head = type(model.bbox_head).__name__
            raise ConfigError(
                f'{head}: {name} has {tensor.shape[1]} channels; expected {expected}, else use {OWN}'
            )


class DecodeForm(nn.Module):
    """Raw outputs to boxes, scores and score factors: the form `decode`."""

    def __init__(self, model: nn.Module, product: bool) -> None:
        super().__init__()
        self.decode, self.product = Decode(model.bbox_head, model_facts(model)), product

    def forward(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return boxes (B, A, 4), scores (B, A, C), factors (B, A) and `level_sizes` (L,) int64.

        `raw` are maps (B, a*columns, h, w) in the order of `raw_names`.
        """
        boxes, scores, factors = self.decode(*raw)
        head, sizes = self.decode.facts.head, [level.shape[1] for level in boxes]
        outputs = dict(boxes=torch.cat(boxes, 1), scores=torch.cat(scores, 1))
        if head.factor and self.product:
            outputs['scores'] = outputs['scores'] * torch.cat(factors, 1)[..., None]
        elif head.factor:
            outputs[head.factor] = torch.cat(factors, 1)
        tapped = [tap(name, tensor) for name, tensor in outputs.items()]
        if not head.maps_by_stride:
            tapped.append(torch.stack([length(size) for size in sizes]))
        return tuple(tapped)


def decode_names(model: nn.Module, options: Options) -> tuple[str, ...]:
    head, names = model_facts(model).head, ['boxes', 'scores']
    if head.factor and options.score_form == 'separate':
        names.append(head.factor)
    if not head.maps_by_stride:
        names.append('level_sizes')
    return tuple(names)


class DenseFullForm(nn.Module):
    """Raw outputs to detections: the form `full`."""

    def __init__(self, model: nn.Module, cap: int = 0, plugin: bool = False) -> None:
        super().__init__()
        self.decode = Decode(model.bbox_head, model_facts(model))
        self.postprocess = DenseBoxPostprocess(self.decode.facts, cap, plugin)

    def forward(
        self,
        image: torch.Tensor,
        img_shape: torch.Tensor,
        scale_factor: torch.Tensor,
        *border_and_raw: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return dets (B, n, 5), labels (B, n), and with a cap candidates (B,), their number before the cap.

        Dets are x1 y1 x2 y2 score, in pixels of the original image, best first; padding is zero with label
        -1.

        Args:
            image: (B, 3, H, W); only its size is used.
            img_shape: (B, 2) float32 h, w before padding; 0 means the input size.
            scale_factor: (B, 4) float32 `w h w h`, input / original.
            border_and_raw: raw outputs; with `Head.bordered` first border (B, 2) float32, rows of padding
                above the image and columns left of it.
        """
        input_hw = hw(image).to(img_shape)[None]
        clip_hw = torch.where(img_shape > 0, img_shape, input_hw)
        border, raw = None, border_and_raw
        if self.postprocess.facts.head.bordered:
            border, *raw = border_and_raw
        outputs = self.postprocess(*self.decode(*raw), clip_hw, scale_factor, border)
        return tuple(tap(name, tensor) for name, tensor in zip(FULL_NAMES, outputs, strict=False))
