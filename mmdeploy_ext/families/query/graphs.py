"""The graphs of detectors of queries: contracts and modules."""

import itertools
import weakref

import torch
from torch import nn

from mmdeploy_ext.exporting.postprocess.panoptic import map_output
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.common.image_graphs import (
    box_outputs,
    image_input,
    mask_inputs,
    mask_outputs,
    optional_inputs,
)
from mmdeploy_ext.families.common.mask_heads import threshold
from mmdeploy_ext.families.common.pasting import mask_output, size_inputs, with_pasting
from mmdeploy_ext.families.common.query_networks import NAMES, NETWORKS, query_head
from mmdeploy_ext.families.common.regions import has_masks
from mmdeploy_ext.families.first_run import picture_channels
from mmdeploy_ext.families.query import masks, regions
from mmdeploy_ext.families.query.postprocess import FULL_NAMES, QueryFullForm, max_per_img
from mmdeploy_ext.families.query.supported_parts import attends_inside_masks, kind_of
from mmdeploy_ext.graphs.passes.grid_sample import replace_grid_sample
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec

SIZE_DEFAULT = '0 means the input size'
MASK_MULTIPLE = 32
"""Divisor of the sides of an input with masks, which have a quarter of the sides."""
PROBE = 256
"""Side of the input by which strides are measured, pixels."""
_STRIDES: weakref.WeakKeyDictionary[nn.Module, tuple[int, ...]] = weakref.WeakKeyDictionary()


def strides(model: nn.Module) -> tuple[int, ...]:
    if model not in _STRIDES:
        image = next(model.parameters()).new_zeros((1, picture_channels(model), PROBE, PROBE))
        with torch.no_grad():
            _STRIDES[model] = tuple(PROBE // level.shape[-1] for level in model.extract_feat(image))
    return _STRIDES[model]


def count_tokens(model: nn.Module, height: int, width: int) -> int:
    return sum(-(-height // stride) * -(-width // stride) for stride in strides(model))


def num_proposals(model: nn.Module) -> int:
    head = query_head(model)
    two_stage = getattr(head, 'as_two_stage', False)
    return int(head.transformer.two_stage_num_proposals) if two_stage else 0


def smallest(model: nn.Module) -> int:
    """Return the side, pixels, of the smallest square with enough tokens."""
    fewest = num_proposals(model)
    return next(side for side in itertools.count(1) if count_tokens(model, side, side) >= fewest)


def spec(model: nn.Module, options: Options) -> GraphSpec:
    tokens = count_tokens(model, options.height, options.width)
    detector_parts.check_tokens(tokens, options, 'two_stage_num_proposals', num_proposals(model))
    image = image_input(options, smallest(model), detector_parts.multiple(model))
    batch = image.axes[0]
    inputs = (image, *optional_inputs(batch, clips=True))
    return GraphSpec(f'query/{options.form}', inputs, box_outputs(batch, max_per_img(query_head(model))))


def stages(model: nn.Module, options: Options) -> list[Stage]:
    network = NETWORKS[kind_of(query_head(model))](model)
    passes = (replace_grid_sample,) if options.grid_sample == 'gather' else ()
    inputs = ('input', 'img_shape', 'scale_factor', *NAMES)
    return [
        Stage('network', network, ('input', 'img_shape'), network.names, passes=passes),
        Stage('postprocess', QueryFullForm(model), inputs, FULL_NAMES),
    ]


def mask_image(model: nn.Module, options: Options) -> TensorSpec:
    step = max(detector_parts.multiple(model), MASK_MULTIPLE)
    return image_input(options, step, step)


def masks_spec(model: nn.Module, options: Options) -> GraphSpec:
    image = mask_image(model, options)
    batch, rows = image.axes[0], masks.max_per_image(model.panoptic_fusion_head)
    inputs = image, *mask_inputs(batch, SIZE_DEFAULT)
    return GraphSpec('query/full', inputs, mask_outputs(batch, rows))


def masks_stages(model: nn.Module, options: Options) -> list[Stage]:
    form = masks.MasksFullForm(model.panoptic_fusion_head)
    inputs = 'img_shape', 'ori_shape', *masks.NAMES
    return [*mask_networks(model, options), Stage('postprocess', form, inputs, masks.MASKS_FULL)]


def mask_networks(model: nn.Module, options: Options) -> list[Stage]:
    if not attends_inside_masks(model.panoptic_head):
        return [Stage('network', masks.MaskFormerNetwork(model), ('input', 'img_shape'), masks.NAMES)]
    passes = (replace_grid_sample,) if options.grid_sample == 'gather' else ()
    names = masks.pixel_names(model.panoptic_head)
    return [
        Stage('network', masks.Mask2FormerPixels(model), ('input',), names, passes=passes),
        Stage('queries', masks.Mask2FormerQueries(model), ('input', *names), masks.NAMES),
    ]


def panoptic_spec(model: nn.Module, options: Options) -> GraphSpec:
    image = mask_image(model, options)
    batch = image.axes[0]
    content, original = mask_inputs(batch, SIZE_DEFAULT)
    if options.form == 'full':
        return GraphSpec('query/full', (image, content, original), map_output(batch))
    inputs = (image,) if attends_inside_masks(model.panoptic_head) else (image, content)
    head = model.panoptic_head
    quarter = (options.height // masks.RATIO, options.width // masks.RATIO)
    if options.dynamic:
        quarter = ('H4', 'W4')
    meaning = 'class logits of queries, the last column is no class'
    columns, rows = int(head.num_classes) + 1, (batch, head.num_queries)
    outputs = (
        TensorSpec('logits', 'float32', (*rows, columns), meaning, 'logit'),
        TensorSpec('mask_logits', 'float32', (*rows, *quarter), 'masks of queries', 'logit'),
    )
    return GraphSpec('query/raw', inputs, outputs)


def panoptic_stages(model: nn.Module, options: Options) -> list[Stage]:
    networks = mask_networks(model, options)
    if options.form == 'raw':
        return networks
    form = masks.QueryMapFullForm(model.panoptic_fusion_head)
    return [*networks, Stage('fusion', form, ('img_shape', 'ori_shape', *masks.NAMES), ('panoptic',))]


def regions_spec(model: nn.Module, options: Options) -> GraphSpec:
    image = image_input(options, smallest=1, multiple=detector_parts.multiple(model))
    batch, rows = image.axes[0], int(model.roi_head.test_cfg.max_per_img)
    outputs = box_outputs(batch, rows)
    outputs += (mask_output(model, options, batch, rows),) if has_masks(model) else ()
    inputs = (image, *optional_inputs(batch, clips=True), *size_inputs(options, batch))
    return GraphSpec('query/full', inputs, outputs)


def regions_stages(model: nn.Module, options: Options) -> list[Stage]:
    network, form = regions.RegionsNetwork(model), regions.RegionsFullForm(model)
    chain = [
        Stage('region_network', network, ('input', 'img_shape'), network.names),
        Stage('postprocess', form, ('scale_factor', *network.names), form.names),
    ]
    if not has_masks(model):
        return chain
    return with_pasting(chain, options, threshold(model.roi_head.test_cfg))
