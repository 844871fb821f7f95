"""The graphs of one-stage detectors of rotated boxes: their contracts, and the modules that keep them.

`model` is mmrotate's detector, `options` are those of the export.

Glossary: B batch, A priors of all levels, n results of the image that has most, H, W network input in pixels,
h, w size of maps.
"""

from torch import nn

from mm2onnx_mmrotate.contract import ANGLE, PIXELS, rotated_outputs
from mm2onnx_mmrotate.dense.forms import DecodeForm, FullForm, decode_names
from mm2onnx_mmrotate.dense.networks import (
    flat_outputs,
    last_head,
    num_levels,
    raw_names,
    with_turned_filters,
)
from mm2onnx_mmrotate.dense.settings import facts_of
from mmdeploy_ext.families.common import detector_parts, image_graphs
from mmdeploy_ext.families.common.image_graphs import image_input, optional_inputs, results_and_candidates
from mmdeploy_ext.families.images import GraphSpec, Options, Stage, TensorSpec

RAW_MEANINGS = dict(
    cls_score=('class logits', 'logit'),
    bbox_pred=('box deltas dx dy dw dh da', ''),
    rois=('boxes of the previous head, refined by deltas: x y width height in pixels, angle in radians', ''),
    angle_cls=('logits of the angle classes', 'logit'),
    angle_pred=('angle, radians', 'rad'),
    centerness=('centerness logits', 'logit'),
    pts_pred=('offsets y x of nine points from the point of the cell, strides', ''),
)
"""Name of a raw output -> meaning and unit."""
DISTANCES = 'distances left top right bottom along the axes of the box, pixels'
"""Meaning of `bbox_pred` of heads of points."""


def spec(model: nn.Module, options: Options) -> GraphSpec:
    """Return the contract of the graph of a detector; its form and sizes are those of the options.

    UsageError: the form is 'decode' or 'raw', of one size, and the model does not take that.
    """
    facts = facts_of(last_head(model))
    smallest = 1  # a file of one size has whatever mmcv does with maps that are smaller than its kernels
    if options.dynamic:
        smallest = detector_parts.smallest(model, max(facts.strides))
    image = image_input(options, smallest, detector_parts.multiple(model))
    inputs = [image]
    if options.form == 'full':
        inputs += optional_inputs(image.axes[0], facts.clip_border)
        outputs = results_and_candidates(rotated_outputs, options, facts.max_per_img)
    elif options.form == 'decode':
        outputs = _decode_outputs(model, options)
    else:
        outputs = _raw_outputs(model, options)
    return GraphSpec(f'rotated_dense/{options.form}', tuple(inputs), outputs)


def _decode_outputs(model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
    facts, shapes = facts_of(last_head(model)), feature_shapes(model, options)
    batch, priors = image_graphs.prior_axes(facts.priors_per_cell, shapes, options)
    factor, *_ = facts.head.factor_from or ('',)
    scores = f'class score times {factor}' if options.score_form == 'product' else 'class scores, 0..1'
    meaning = 'x y width height and angle per prior, level by level, not clipped'
    specs = dict(
        boxes=TensorSpec('boxes', 'float32', (batch, priors, 5), meaning, groups=(PIXELS, ANGLE)),
        scores=TensorSpec('scores', 'float32', (batch, priors, facts.num_classes), scores),
        factors=TensorSpec('factors', 'float32', (batch, priors), f'{factor}, 0..1'),
    )
    return tuple(specs[name] for name in decode_names(model, options))


def _raw_outputs(model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
    facts, shapes = facts_of(last_head(model)), feature_shapes(model, options)
    coder, meanings = facts.coder, dict(RAW_MEANINGS)
    if coder.type == 'distance':
        meanings['bbox_pred'] = (DISTANCES, 'pixel')
        if coder.angles:
            meanings['angle_pred'] = meanings['angle_cls']
    return image_graphs.raw_outputs(facts.head.outputs, meanings, facts.priors_per_cell, shapes, options)


def feature_shapes(model: nn.Module, options: Options) -> list[tuple[int, int]]:
    """Return (h, w) of each level at the size of an export, (0, 0) if it takes any size.

    UsageError: the model does not take the size.
    """
    return detector_parts.map_sizes(model, flat_outputs, num_levels(model), options)


def stages(model: nn.Module, options: Options) -> list[Stage]:
    """Return the network, and what the form of the options adds to it, see `ImageFamily.stages`."""
    return image_graphs.form_stages(
        image_graphs.RawNetwork(with_turned_filters(model), raw_names(model), flat_outputs),
        raw_names(model),
        options,
        decode=lambda: (DecodeForm(model, options.score_form == 'product'), decode_names(model, options)),
        full=lambda: FullForm(model, options.max_candidates),
    )
