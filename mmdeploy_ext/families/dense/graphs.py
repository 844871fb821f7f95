"""The graphs of dense heads: their contracts, and the chain of modules that keeps them.

The modules are in `forms.py`; `heads.py` describes a head.

Glossary: B batch, A priors of all levels, H, W network input in pixels, h, w size of a level's maps.
"""

import types

from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.errors import ConfigError, UsageError
from mmdeploy_ext.families.dense.forms import (
    DecodeForm,
    DenseFullForm,
    decode_names,
    described,
    flat_outputs,
    num_levels,
    raw_names,
)
from mmdeploy_ext.families.dense.heads import facts_of, generator_of, kind_of, thresholds
from mmdeploy_ext.families.parts import dense_graphs, detector_parts
from mmdeploy_ext.families.parts.image_tensors import (
    box_outputs,
    image_input,
    optional_inputs,
    results_and_candidates,
)

PIXELS = ColumnGroup(name='xyxy', unit='pixel')
"""Columns of boxes, and their unit."""
FACTOR_MEANINGS = dict(
    centerness='centerness, 0..1',
    objectness='objectness, 0..1',
    iou_pred='predicted IoU, 0..1',
    confidence='confidence of the sides, 0..1',
)
"""Name of a score factor -> meaning."""
RAW_MEANINGS = dict(
    cls_score=('class logits', 'logit'),
    centerness=('centerness logits', 'logit'),
    objectness=('objectness logits', 'logit'),
    iou_pred=('logits of the predicted IoU', 'logit'),
    shape_pred=('logarithms of the size of guided anchors', ''),
    loc_pred=('logits of where anchors are', 'logit'),
    bbox_cls=('bucket logits of the sides', 'logit'),
    bbox_reg=('offsets in the buckets of the sides', ''),
    heatmap=('class scores of centres, 0..1', ''),
    wh=('width and height, strides', ''),
    offset=('place of the centre in its cell, strides', ''),
    pred_map=('per anchor x y logits, w h logarithms, objectness and class logits', ''),
)
"""Name of a raw output -> meaning and unit."""
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
"""Coder -> meaning of `bbox_pred`."""


def spec(model: nn.Module, options: Options) -> GraphSpec:
    """Return the contract of the form of the options.

    The outputs of 'raw' are those of the head, of 'decode' boxes and scores of all priors, of 'full' results.
    The inputs of 'full' are also `img_shape`, which no operator uses if the head does not clip boxes,
    `scale_factor`, and of a head whose pictures are padded all around `border`.

    Args:
        model: the detector.
        options: options of the export.

    Raises:
        ConfigError: the maps have another stride than the head decodes by.
        UsageError: a fixed size that is smaller than the head takes (`detector_parts.smallest`), or, of the
            forms 'decode' and 'raw', that the model does not run on.
    """
    _check_stride(model)
    bordered, stride = described(model).bordered, max(facts_of(model.bbox_head)['strides'])
    smallest = detector_parts.smallest(model.bbox_head, stride, detector_parts.round_down(model))
    if not options.dynamic and min(options.height, options.width) < smallest:
        raise UsageError(
            f'--shape {options.height} {options.width}: each side has to be at least {smallest} pixels for '
            f'this model, whose largest stride is {stride}'
        )
    padded = 'all around' if bordered else 'bottom and right'
    image = image_input(options, smallest, detector_parts.multiple(model), padded)
    inputs = [image]
    if options.form == 'full':
        clips = bool(kind_of(model.bbox_head).clips(model.bbox_head))
        inputs += optional_inputs(image.axes[0], clips, bordered)
        max_per_img = thresholds(model.bbox_head).max_per_img
        outputs = results_and_candidates(box_outputs, options, max_per_img)
    elif options.form == 'decode':
        outputs = _decode_outputs(model, options)
    else:
        outputs = _raw_outputs(model, options)
    return GraphSpec(f'dense/{options.form}', tuple(inputs), outputs)


def _decode_outputs(model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
    head, priors_per_cell = described(model), generator_of(model.bbox_head).num_base_priors
    batch, priors = dense_graphs.prior_axes(priors_per_cell, feature_shapes(model, options), options)
    meaning = f'class score times {head.factor}' if options.score_form == 'product' else 'class scores, 0..1'
    shape = (batch, priors, int(model.bbox_head.num_classes))
    boxes = 'x1 y1 x2 y2 per prior, level by level, not clipped'
    specs = dict(
        boxes=TensorSpec('boxes', 'float32', (batch, priors, 4), boxes, 'pixel', (PIXELS,)),
        scores=TensorSpec('scores', 'float32', shape, meaning),
        level_sizes=TensorSpec('level_sizes', 'int64', (num_levels(model),), 'rows of boxes per level'),
    )
    if head.factor:
        specs[head.factor] = TensorSpec(head.factor, 'float32', (batch, priors), FACTOR_MEANINGS[head.factor])
    return tuple(specs[name] for name in decode_names(model, options))


def _raw_outputs(model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
    head, generator = described(model), generator_of(model.bbox_head)
    coder = kind_of(model.bbox_head).coder(model.bbox_head)
    meaning = BOX_MEANINGS.get(coder['type'], '')
    if coder.get('around_points'):
        meaning += ', from the point of the cell'
    meanings = dict(RAW_MEANINGS, bbox_pred=(meaning, ''))
    if head.activation == 'none':
        meanings['cls_score'] = ('class scores, 0..1', '')
    shapes = feature_shapes(model, options)
    return dense_graphs.raw_outputs(head.outputs, meanings, generator.num_base_priors, shapes, options)


def feature_shapes(model: nn.Module, options: Options) -> list[tuple[int, int]]:
    """Return (h, w) of each level at the size of an export; of a dynamic one (0, 0) each.

    UsageError: the model does not take the size.
    """
    return detector_parts.map_sizes(model, flat_outputs, num_levels(model), options)


def _check_stride(model: nn.Module) -> None:
    """Refuse (ConfigError) maps of another stride than a head without a generator of priors is decoded by."""
    head = model.bbox_head
    if kind_of(head).has_generator:
        return
    side, (stride,) = 2 * max(detector_parts.multiple(model), 32), facts_of(head)['strides']
    small = types.SimpleNamespace(dynamic=False, height=side, width=side)
    if (shape := feature_shapes(model, small)[0]) != (side // stride, side // stride):
        raise ConfigError(
            f'{type(head).__name__}: its maps have a stride of {side / shape[0]:g} pixels; expected {stride}'
        )


def stages(model: nn.Module, options: Options) -> list[Stage]:
    """Return the stages of the graph: the network, and what the form of the options adds to it."""
    network, head = model, described(model)
    return dense_graphs.form_stages(
        dense_graphs.RawNetwork(network, raw_names(model), flat_outputs),
        raw_names(model),
        options,
        decode=lambda: (DecodeForm(model, options.score_form == 'product'), decode_names(model, options)),
        full=lambda: DenseFullForm(model, options.max_candidates),
        extra_inputs=('border',) if head.bordered else (),
    )
