"""Graphs of pictures as other programs use them: pixels for input, no inputs with defaults, padded outputs.

Glossary: B batch, C channels, H, W network input in pixels, n rows of results, K most results of an image.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.families.common.image_graphs import clip_size, optional_inputs
from mmdeploy_ext.spec.options import CHANNELS, COUNTERS, INPUT, OUTPUTS
from mmdeploy_ext.spec.tensors import VALID, Graph, GraphSpec, Pixels, Stage, TensorSpec

if TYPE_CHECKING:
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.preparation import PreprocessRule

IMG_SHAPE = 'img_shape'
MOST_BOXES = 4095
"""Boxes that EfficientNMS_TRT takes: with 4,096 its kernel writes behind its arrays."""

RESULTS = ({'dets', 'labels'}, {'boxes', 'scores', 'labels'})
"""Outputs of boxes that become those of `DetectionCounts`."""
IS_VALID = 'is_valid'
"""`valid` before it becomes int32: DeepStream has no bool."""
COUNTS = tuple(COUNTERS.values())
"""Outputs that stay beside them."""


def check(options: Options, rule: PreprocessRule, spec: GraphSpec, family: Family, model: nn.Module) -> None:
    """Raise UsageError if options for other programs do not go together or with the model."""
    if options.outputs != OUTPUTS.default:
        _most_results(spec, family.facts(model))
    if options.get('nms_plugin'):
        if not options.required_inputs:
            raise UsageError('--nms-plugin: needs --required-inputs')
        if not 0 < options.max_candidates <= MOST_BOXES:
            raise UsageError(f'--nms-plugin: needs --max-candidates of 1 to {MOST_BOXES}')
    if options.input == INPUT.default:
        options.refuse([CHANNELS], 'requires --input uint8')
        return
    picture, typed = spec.inputs[0], f'--input {options.input}'
    if rule.color_type != 'color':
        raise UsageError(
            f'{typed}: the model has images of color_type={rule.color_type!r}, which the graph cannot '
            'normalise; normalise them in your program'
        )
    if len(picture.axes) != 4 or picture.axes[1] != len(rule.mean):
        raise UsageError(
            f'{typed}: the form {options.form!r} has the input {picture.name!r}, which is not an image'
        )
    if rule.centred or rule.resize == 'warp':
        raise UsageError(
            f'{typed}: the test pipeline pads on all sides, which the graph cannot do; omit the option'
        )
    if rule.to_float32:
        raise UsageError(f'{typed}: the test pipeline resizes in float32 (to_float32=True); set it to False')


def hosted(family: Family, graph: Graph, options: Options, rule: Any, model: nn.Module) -> Graph:
    """Return a graph with what `FOR_HOSTS` ask for, and the bands of a rule of pictures."""
    spec, bands = graph.spec, getattr(rule, 'bands', 3)
    if bands != 3 and spec.inputs[0].axes[1] == 3:
        picture, *others = spec.inputs
        picture = dataclasses.replace(picture, axes=(picture.axes[0], bands, *picture.axes[2:]))
        spec = dataclasses.replace(spec, inputs=(picture, *others))
        graph = dataclasses.replace(graph, spec=spec)
    if options.get('input', INPUT.default) != INPUT.default:
        check(options, rule, spec, family, model)
        pixels = pixels_of(options, rule)
        normalised = spec.inputs[0].name
        spec = _with_pixels(spec, pixels)
        graph = dataclasses.replace(
            graph,
            spec=spec,
            make=lambda stages=graph.make: [
                Stage(
                    'pixels',
                    NormalisedPixels(pixels, rule),
                    (normalised, IMG_SHAPE),
                    (f'{normalised}_normalised',),
                ),
                *(_reading(stage, normalised, f'{normalised}_normalised') for stage in stages()),
            ],
        )
    if options.get('outputs', OUTPUTS.default) != OUTPUTS.default:
        graph = _with_counts(graph, spec, _most_results(spec, family.facts(model)))
        spec = graph.spec
    if options.get('nms_plugin'):
        graph = dataclasses.replace(graph, make=lambda stages=graph.make: _with_plugin(stages()))
    if options.get('required_inputs'):
        inputs = tuple(
            tensor if tensor.default is None else dataclasses.replace(tensor, required=True)
            for tensor in spec.inputs
        )
        graph = dataclasses.replace(graph, spec=dataclasses.replace(spec, inputs=inputs))
    return graph


def pixels_of(options: Options, rule: PreprocessRule) -> Pixels:
    network_order = 'rgb' if rule.to_rgb else 'bgr'
    swapped = len(rule.mean) == 3 and options.channels not in ('', network_order)
    return Pixels(rule.mean, rule.std, swapped, options.input == 'uint8-nhwc')


def _reading(stage: Stage, name: str, other: str) -> Stage:
    return dataclasses.replace(
        stage, inputs=tuple(other if entry == name else entry for entry in stage.inputs)
    )


def _with_plugin(stages: list[Stage]) -> list[Stage]:
    return [
        stage if stage.name == 'network' else dataclasses.replace(stage, operators='plugin')
        for stage in stages
    ]


def _most_results(spec: GraphSpec, facts: Any) -> int:
    outputs = {tensor.name: tensor for tensor in spec.outputs if tensor.name not in (*COUNTS, VALID)}
    typed = '--outputs efficient-nms'
    if outputs.keys() not in RESULTS or ('dets' in outputs and outputs['dets'].axes[2] != 5):
        raise UsageError(
            f'{typed}: requires a model of upright boxes without masks; the outputs are '
            f'{", ".join(outputs)}: export without it'
        )
    rows = outputs['labels'].axes[1]
    most = rows if isinstance(rows, int) else getattr(facts, 'max_per_img', -1)
    if most is None or most <= 0:
        raise UsageError(
            f'{typed}: test_cfg.max_per_img={most} has no limit; set one with --cfg-options '
            'model.test_cfg.max_per_img=100, or export with --max-candidates'
        )
    return most


def _with_counts(graph: Graph, spec: GraphSpec, most: int) -> Graph:
    kept = {tensor.name: tensor for tensor in spec.outputs if tensor.name in (*COUNTS, VALID)}
    names = tuple(tensor.name for tensor in spec.outputs if tensor.name not in kept)
    flags = {VALID: dataclasses.replace(kept.pop(VALID), dtype='int32')} if VALID in kept else {}
    labels = spec.tensor('labels')
    pads, batch = isinstance(labels.axes[1], str), labels.axes[0]
    pixels = 'x1 y1 x2 y2 in the same pixels as dets; padded with zeros'
    columns = (
        ('num_dets', 'int32', (batch, 1), 'number of results'),
        ('det_boxes', 'float32', (batch, most, 4), pixels),
        ('det_scores', 'float32', (batch, most), 'scores in descending order; padded with zeros'),
        ('det_classes', 'int32', (batch, most), 'class indices; padded with -1'),
    )
    outputs = (*(TensorSpec(*column, compare='detections') for column in columns), *flags.values())

    def stages(make: Any = graph.make) -> list[Stage]:
        *chain, last = make()
        last = dataclasses.replace(
            last,
            outputs=tuple(IS_VALID if name in flags else name for name in last.outputs),
            varying=(*last.varying, *(names if pads else ())),
        )
        read = (*names, *(IS_VALID for _ in flags))
        module = DetectionCounts(read, most, pads)
        return [*chain, last, Stage('efficient_nms', module, read, tuple(one.name for one in outputs))]

    return dataclasses.replace(
        graph, spec=dataclasses.replace(spec, outputs=(*outputs, *kept.values())), make=stages
    )


class DetectionCounts(nn.Module):
    """Results as TensorRT's EfficientNMS gives them, of results whose padding is last and has label -1."""

    def __init__(self, names: tuple[str, ...], most: int, pads: bool) -> None:
        super().__init__()
        self.names, self.most, self.pads = names, most, pads

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return num_dets (B, 1), boxes (B, K, 4), scores and classes (B, K), and `valid` if it is read."""
        results = dict(zip(self.names, tensors, strict=True))
        labels = self._constant(results['labels'], -1)
        if 'dets' in results:
            dets = self._constant(results['dets'], 0)
            boxes, scores = dets[..., :4], dets[..., 4]
        else:
            boxes, scores = self._constant(results['boxes'], 0), self._constant(results['scores'], 0)
        count = (labels >= 0).sum(dim=1, keepdim=True)
        valid = [results[IS_VALID].to(torch.int32)] if IS_VALID in results else []
        return count.to(torch.int32), boxes, scores, labels.to(torch.int32), *valid

    def _constant(self, rows: torch.Tensor, value: int) -> torch.Tensor:
        if not self.pads:
            return rows
        padding = torch.full((self.most, *rows.shape[2:]), value, dtype=rows.dtype, device=rows.device)
        padding = padding.expand(rows.shape[0], *padding.shape)
        return torch.cat([rows, padding], dim=1)[:, : self.most]


def _with_pixels(spec: GraphSpec, pixels: Pixels) -> GraphSpec:
    picture, *others = spec.inputs
    batch, channels, height, width = picture.axes
    picture = dataclasses.replace(
        picture,
        dtype='uint8',
        axes=(batch, height, width, channels) if pixels.last else picture.axes,
        meaning='images, 0 to 255, padded at the bottom and right of img_shape with any value',
        pixels=pixels,
    )
    size = 'height and width before padding; 0 means the input size'
    used = dict(unused=False, meaning=size)
    if IMG_SHAPE not in spec.input_names:
        others.insert(0, optional_inputs(batch, clips=True)[0])
    inputs: list[TensorSpec] = [picture]
    for tensor in others:
        inputs.append(dataclasses.replace(tensor, **used) if tensor.name == IMG_SHAPE else tensor)
    return dataclasses.replace(spec, inputs=tuple(inputs))


class NormalisedPixels(nn.Module):
    """Normalise pixels as mmdet's `Normalize` and fill padding as its `Pad`."""

    def __init__(self, pixels: Pixels, rule: PreprocessRule) -> None:
        super().__init__()
        self.swapped, self.last = pixels.swapped, pixels.last
        for name, values in dict(mean=pixels.mean, std=pixels.std, pad_val=rule.pad_val).items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])

    def forward(self, pixels: torch.Tensor, img_shape: torch.Tensor) -> torch.Tensor:
        """Return normalised images (B, C, H, W) float32; `img_shape` (B, 2) is h, w before padding."""
        images = pixels.float()
        if self.last:
            images = images.permute(0, 3, 1, 2)
        if self.swapped:
            images = images[:, [2, 1, 0]]
        images = (images - self.mean) * (1 / self.std)
        size = clip_size(images, img_shape)
        rows = torch.arange(images.shape[2], device=images.device).to(size)
        columns = torch.arange(images.shape[3], device=images.device).to(size)
        inside = (rows < size[:, :1])[:, None, :, None] & (columns < size[:, 1:])[:, None, None, :]
        return torch.where(inside, images, self.pad_val)
