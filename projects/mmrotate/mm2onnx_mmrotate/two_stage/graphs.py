"""The graphs of two-stage detectors of rotated boxes: their contracts, and the modules that keep them.

The rows of every form are proposals, which are chosen by their scores: engines that round otherwise may
order them otherwise. So tensors behind the proposals are not compared row by row, but by the results that
are made of them.

`model` is mmrotate's detector, `options` are those of the export.

Glossary: B batch, K proposals of an image, padded up to their limit, C classes, G boxes per region, n results
of the image that has most, H, W network input in pixels.
"""

import torch
from torch import Tensor, nn

from mm2onnx_mmrotate.contract import rotated_outputs
from mm2onnx_mmrotate.suppression import RotatedSuppression, rotated_nms_config
from mm2onnx_mmrotate.two_stage.boxes import Boxes
from mm2onnx_mmrotate.two_stage.heads import is_oriented, last_head, output_columns
from mm2onnx_mmrotate.two_stage.proposals import proposals_of
from mmdeploy_ext.exporting.postprocess.suppression import NO_CANDIDATE
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.common.image_graphs import RawNetwork, clip_size, image_input, optional_inputs
from mmdeploy_ext.families.images import GraphSpec, Options, Stage, TensorSpec
from mmdeploy_ext.families.regions import generator_of, part_of, smallest_input, stages_of

FORMS = ('full', 'decode', 'raw')
"""What graphs end with: results, boxes and scores before suppression, outputs of the last head."""
NO_LOGIT = -1e4
"""Class logit of such a row, whose background has 0."""
FULL_NAMES = ('dets', 'labels')
"""Outputs of the form 'full'."""


def level_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the maps that regions are pooled from."""
    extractors = (
        part_of(model.roi_head, 'bbox_roi_extractor', stage) for stage in range(stages_of(model.roi_head))
    )
    return tuple(
        f'features_{level}' for level in range(max(extractor.num_inputs for extractor in extractors))
    )


def proposal_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the outputs of the head of proposals, by kind, then by level."""
    levels = range(len(generator_of(model.rpn_head).strides))
    return tuple(f'rpn_{kind}_{level}' for kind in ('cls', 'reg') for level in levels)


def raw_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the outputs of the form 'raw'."""
    return ('regions', 'cls_score', *(name for name, _ in output_columns(last_head(model.roi_head))))


def network_outputs(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    """Return the maps that regions are pooled from, and logits and deltas of the head of proposals.

    `image` is (B, 3, H, W) float32 normalised.
    """
    maps = model.extract_feat(image)
    outputs = [tensor for levels in model.rpn_head(maps) for tensor in levels]
    return (*maps[: len(level_names(model))], *outputs)


class Form(nn.Module):
    """The part of a graph behind the network; `form` is a name of `FORMS`."""

    def __init__(self, model: nn.Module, form: str = 'full') -> None:
        """Keep the heads of regions, and the settings of all post-processing."""
        super().__init__()
        self.form = form
        self.proposals = proposals_of(model.rpn_head)
        self.boxes = Boxes(model.roi_head, is_oriented(model.rpn_head))
        self.config = rotated_nms_config(model.roi_head.test_cfg)
        self.num_levels = len(level_names(model))

    def forward(
        self, image: Tensor, img_shape: Tensor, scale_factor: Tensor, *maps: Tensor
    ) -> tuple[Tensor, ...]:
        """Find proposals and look at their regions; return the outputs of `spec`.

        Args:
            image: (B, 3, H, W); only its size is used.
            img_shape: (B, 2) float32 height and width before padding; 0 means the input size.
            scale_factor: (B, 4) float32 `w h w h`, input / original, which boxes are divided by.
            maps: those of `network_outputs`.
        """
        clip_hw = clip_size(image, img_shape)
        features, heads = maps[: self.num_levels], maps[self.num_levels :]
        proposals, levels = self.proposals(heads, clip_hw)
        present = (levels >= 0)[..., None]
        regions, rows, logits = self.boxes(features, proposals[..., :-1], clip_hw)
        if self.form == 'raw':
            background = torch.arange(logits.shape[2], device=logits.device) + 1 == logits.shape[2]
            logits = torch.where(present, logits, torch.where(background, 0.0, NO_LOGIT).to(logits))
            outputs = (regions, logits, *rows.values())
        else:
            scores = self.boxes.last.activated(logits)
            scores = torch.where(present, scores, torch.full_like(scores, NO_CANDIDATE))
            boxes = self.boxes.last.decode(regions, rows, clip_hw)
            outputs = boxes, scores
            if self.form == 'full':
                ratios = torch.cat([scale_factor, torch.ones_like(scale_factor[:, :1])], 1)
                boxes = boxes / ratios[:, None, None]
                boxes = boxes[:, :, 0] if boxes_per_region(self.boxes.last.head) == 1 else boxes
                outputs = RotatedSuppression(self.config)(boxes, scores)
        return outputs


def output_names(model: nn.Module, form: str) -> tuple[str, ...]:
    """Return the names of the outputs of a form, one of `FORMS`."""
    if form == 'raw':
        return raw_names(model)
    return ('boxes', 'scores') if form == 'decode' else FULL_NAMES


def spec(model: nn.Module, options: Options) -> GraphSpec:
    """Return the contract of the graph; its form and sizes are those of the options."""
    image = image_input(options, smallest_input(model), detector_parts.multiple(model))
    batch = image.axes[0]
    clips = options.form != 'raw' or not is_oriented(model.rpn_head)  # rotated proposals are not clipped
    img_shape, scale_factor = optional_inputs(batch, clips)
    if options.form == 'full':
        inputs, outputs = (image, img_shape, scale_factor), rotated_outputs(batch, 'n')
    elif options.form == 'decode':
        inputs, outputs = (image, img_shape), _decode_outputs(model, batch)
    else:
        inputs, outputs = (image, img_shape), _raw_outputs(model, batch)
    return GraphSpec(f'rotated_two_stage/{options.form}', inputs, outputs)


def boxes_per_region(head: nn.Module) -> int:
    """Return how many boxes a box head gives for a region: 1, or one per class."""
    return 1 if head.reg_class_agnostic else int(head.num_classes)


def _decode_outputs(model: nn.Module, batch: int | str) -> tuple[TensorSpec, ...]:
    head = last_head(model.roi_head)
    per_region = boxes_per_region(head)
    box = 'x y width height and angle of each region, of one box or one per class'
    score = f'class scores, 0..1; {NO_CANDIDATE:g} in padding rows'
    return (
        TensorSpec('boxes', 'float32', (batch, 'K', per_region, 5), box, 'pixel', compare='detections'),
        TensorSpec('scores', 'float32', (batch, 'K', int(head.num_classes)), score, compare='detections'),
    )


def _raw_outputs(model: nn.Module, batch: int | str) -> tuple[TensorSpec, ...]:
    head = last_head(model.roi_head)
    per_region = boxes_per_region(head)
    rotated = is_oriented(model.rpn_head) or stages_of(model.roi_head) > 1
    regions = 'x y width height angle' if rotated else 'x1 y1 x2 y2'
    meanings = dict(
        bbox_pred='box deltas of regions',
        fix_pred='offsets of the corners along the sides, 0..1',
        ratio_pred='covered share of the upright box, 0..1',
    )
    columns = dict(output_columns(head))
    classes = int(head.num_classes) + 1
    logits = 'class logits, the background last; padding rows are background'
    return (
        TensorSpec(
            'regions',
            'float32',
            (batch, 'K', 5 if rotated else 4),
            f"{regions} of the last head's input regions",
            'pixel',
            compare='detections',
        ),
        TensorSpec('cls_score', 'float32', (batch, 'K', classes), logits, 'logit', compare='detections'),
        *(
            TensorSpec(name, 'float32', (batch, 'K', per_region, count), meanings[name], compare='detections')
            for name, count in columns.items()
        ),
    )


def stages(model: nn.Module, options: Options) -> list[Stage]:
    """Return the network, and the part of the form behind it."""
    names = (*level_names(model), *proposal_names(model))
    inputs = ('input', 'img_shape', 'scale_factor', *names)
    form = Form(model, options.form)
    if options.form != 'full':  # boxes stay in pixels of the input
        form, inputs = WithoutScale(form), ('input', 'img_shape', *names)
    return [
        Stage('network', RawNetwork(model, names, network_outputs), ('input',), names),
        Stage('regions', form, inputs, output_names(model, options.form)),
    ]


class WithoutScale(nn.Module):
    """A form whose boxes stay in pixels of the network input."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, image: Tensor, img_shape: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the form; see `Form.forward`."""
        return self.form(image, img_shape, torch.ones_like(img_shape).repeat(1, 2), *maps)
