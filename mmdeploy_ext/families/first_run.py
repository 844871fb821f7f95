"""One run of a model of pictures before its weights load: does it run, with the stated tensors?"""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.errors import ConfigError, ExportError, Mm2OnnxError, UsageError, one_line
from mmdeploy_ext.base.source_code import has_known_modules
from mmdeploy_ext.base.user_modules import users_line
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.exporting.export import run
from mmdeploy_ext.families import host_programs
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.images import picture_of
from mmdeploy_ext.families.no_family import PARTS_WAY
from mmdeploy_ext.upstream.operators.operator import current_form, operators_as

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.families.images import ImageFamily
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.tensors import Stage

SIDE = 128
"""Longest side of a trial's first picture, pixels: the coarsest maps of most detectors are one cell."""

INTERNAL = 'INTERNAL ASSERT FAILED'
"""In what a kernel says of values, such as regions of untrained weights; a wrong config fails by sizes."""

_TRIED: weakref.WeakKeyDictionary[nn.Module, dict[str, Mm2OnnxError | None]] = weakref.WeakKeyDictionary()


def failing_module(model: nn.Module, error: BaseException) -> str:
    """Return the path of the innermost module of `model` in a traceback, or ''."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ''
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found = names.get(id(frame.f_locals.get('self')), '') or found
    return found


@contextlib.contextmanager
def own_forward(
    model: nn.Module, sample: str, advice: str = 'pass a --shape that the model supports'
) -> Iterator[None]:
    """Raise ConfigError with the module's path if the model fails in the block, on a `sample`."""
    try:
        yield
    except Mm2OnnxError:
        raise
    except Exception as error:
        module = failing_module(model, error) or type(model).__name__
        reason = f'{type(error).__name__}: {one_line(error)}{users_line(error)}'
        raise ConfigError(
            f'{module}: the model does not run on {sample}: {reason}; correct the config, or {advice}'
        ) from error


def check_forward(family: Any, model: nn.Module, options: Options) -> None:
    """Run the network of a picture model for each form, on its smallest picture or at its own size.

    Raises ConfigError if forward fails at both sizes, or gives other tensors than the stages state.
    """
    tried = _TRIED.setdefault(model, {})
    if options.form not in tried:
        tried[options.form] = _failure(family, model, options)
    if (error := tried[options.form]) is not None:
        raise error


def _failure(family: Any, model: nn.Module, options: Options) -> Mm2OnnxError | None:
    error: Mm2OnnxError | None = None
    for smaller in _sizes(options):
        try:
            _run(family, model, smaller)
            return None
        except Mm2OnnxError as failure:
            error = failure
    return error


def _sizes(options: Options) -> list[Options]:
    """Return the options with the smallest picture and with their own, once if it is the same."""
    sizes = [(min(SIDE, options.height), min(SIDE, options.width)), (options.height, options.width)]
    return [options.replace(height=height, width=width, batch=1) for height, width in dict.fromkeys(sizes)]


def check_translation(family: Any, model: nn.Module, options: Options) -> None:
    """Export the network of a model with classes that we do not know, on its trial's picture, and drop it.

    Raises ExportError, as for an operator that the exporter does not have.
    """
    if has_known_modules(model):
        return
    model = prepared(model)
    for graph in contract_of(family, options).graphs(model, options):
        if graph.example and graph.stages:
            stage = graph.stages[0]
            _translate(stage, tuple(graph.example[name] for name in stage.inputs), options)
    for smaller in _sizes(options) if 'form' in options else ():
        try:
            _run(family, model, smaller)
        except Mm2OnnxError:
            continue
        stage, tensors = _network(family, model, smaller)
        if tensors:
            _translate(stage, tensors, smaller)
        return


def check_export(family: ImageFamily, cfg: Any, options: Options, model: nn.Module) -> None:
    """Check resolved options of a picture model: for other programs, size, and tensors (`check_forward`).

    Raises:
        UsageError: an option does not go with the model.
        ConfigError: as `check_forward`.
    """
    host_programs.check(options, family.preprocess_rule(cfg), family.spec(model, options), family, model)
    if options.dynamic:
        smallest = picture_of(family, model, options).smallest
        if min(options.height, options.width) < smallest:
            raise UsageError(
                f'--shape {options.height} {options.width}: a file of any size needs sides of at least '
                f'{smallest} pixels for this model, because it is traced at such a size'
            )
    check_forward(family, model, options)


def picture_channels(model: nn.Module) -> int:
    """Return the channels of the input of a detector from `detector.build`; 3 for others."""
    return getattr(model, 'picture_channels', 3)


def _network(family: Any, model: nn.Module, options: Options) -> tuple[Stage, tuple[torch.Tensor, ...]]:
    """Return the first stage and its inputs for a black picture; () if it takes others."""
    spec, stage = family.spec(model, options), family.stages(model, options)[0]
    first = spec.inputs[0]
    if first.axes[1:2] != (3,):
        return stage, ()  # features of pictures, such as the form `regions` takes
    picture = np.zeros((1, picture_channels(model), options.height, options.width), np.float32)
    feeds = spec.with_defaults({first.name: picture})
    if not feeds.keys() >= set(stage.inputs):
        return stage, ()  # a camera has no default
    like = next(model.parameters())
    return stage, tuple(torch.from_numpy(feeds[name]).to(like.device) for name in stage.inputs)


def _translate(stage: Stage, tensors: tuple[torch.Tensor, ...], options: Options) -> None:
    dynamic = {}
    for name, tensor in zip(stage.inputs, tensors, strict=True) if options.get('dynamic') else ():
        dynamic[name] = {axis: f'{name}_{axis}' for axis in (0, *range(2, tensor.dim()))}
    stage = dataclasses.replace(stage, exporter=stage.exporter or options.exporter)
    try:
        with operators_as(stage.operators or current_form()):
            run(stage, tensors, dynamic, options.opset)
    except ExportError as error:
        if INTERNAL not in str(error):
            raise


def _run(family: Any, model: nn.Module, options: Options) -> None:
    stage, tensors = _network(family, model, options)
    if not tensors:
        return
    try:
        with own_forward(model, f'an image of {options.height} x {options.width}'), torch.no_grad():
            outputs = stage.module(*tensors)
    except ConfigError as error:
        if INTERNAL in str(error):
            return
        raise
    count = len(outputs) if isinstance(outputs, tuple | list) else 1
    if count != len(stage.outputs):
        raise ConfigError(
            f'{type(model).__name__}: returns {count} tensors, expected {len(stage.outputs)}: '
            f'{", ".join(stage.outputs)}; {PARTS_WAY}'
        )
