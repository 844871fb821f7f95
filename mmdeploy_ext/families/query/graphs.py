"""The graphs of detectors of masks by queries: contracts and modules."""

from torch import nn

from mmdeploy_ext.exporting.postprocess.panoptic import map_output
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.common.image_graphs import image_input, mask_inputs, mask_outputs
from mmdeploy_ext.families.query import masks
from mmdeploy_ext.families.query.supported_parts import attends_inside_masks
from mmdeploy_ext.graphs.passes.grid_sample import replace_grid_sample
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec

SIZE_DEFAULT = '0 means the input size'
MASK_MULTIPLE = 32
"""Divisor of the sides of an input with masks, which have a quarter of the sides."""


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
