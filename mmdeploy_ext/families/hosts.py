"""Graphs of pictures as other programs feed them: uint8 pixels, no inputs with defaults.

Glossary: B batch, C channels, H, W network input in pixels.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmdeploy_ext.contract.options import CHANNELS, INPUT
from mmdeploy_ext.contract.spec import Graph, GraphSpec, Pixels, Stage, TensorSpec
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.families.parts.image_graphs import clip_size, optional_inputs

if TYPE_CHECKING:
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.preprocess.pictures import PreprocessRule

IMG_SHAPE = 'img_shape'


def check(options: Options, rule: PreprocessRule, spec: GraphSpec) -> None:
    """Raise UsageError if options for other programs conflict with each other or the preprocessing."""
    if options.input == INPUT.default:
        options.refuse([CHANNELS], 'goes with --input uint8')
        return
    picture, typed = spec.inputs[0], f'--input {options.input}'
    if len(picture.axes) != 4 or picture.axes[1] != len(rule.mean):
        raise UsageError(f'{typed}: the form {options.form!r} takes {picture.name!r}, which is no picture')
    if rule.centred or rule.resize == 'warp':
        raise UsageError(f'{typed}: the test pipeline pads around the picture; leave it out')
    if rule.to_float32:
        raise UsageError(f'{typed}: the test pipeline resizes in float32 (to_float32=True); set it to False')


def hosted(family: Family, graph: Graph, options: Options, rule: PreprocessRule) -> Graph:
    if family.samples != 'images':
        return graph
    spec = graph.spec
    if options.input != INPUT.default:
        check(options, rule, spec)
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
    if options.required_inputs:
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


def _with_pixels(spec: GraphSpec, pixels: Pixels) -> GraphSpec:
    picture, *others = spec.inputs
    batch, channels, height, width = picture.axes
    picture = dataclasses.replace(
        picture,
        dtype='uint8',
        axes=(batch, height, width, channels) if pixels.last else picture.axes,
        meaning='pictures, 0 to 255, padded with any value bottom and right of img_shape',
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
