"""One run of a model of pictures before its weights load: does it run, with the stated tensors?"""

from __future__ import annotations

import contextlib
import traceback
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.config.user_modules import users_line
from mmdeploy_ext.families import hosts
from mmdeploy_ext.families.images import picture_of
from mmdeploy_ext.families.nearest import PARTS_WAY
from mmdeploy_ext.util.errors import ConfigError, Mm2OnnxError, UsageError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.families.images import ImageFamily

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
def own_forward(model: nn.Module, height: int, width: int) -> Iterator[None]:
    """Raise ConfigError with the module's path if the model fails in the block."""
    try:
        yield
    except Mm2OnnxError:
        raise
    except Exception as error:
        module = failing_module(model, error) or type(model).__name__
        reason = f'{type(error).__name__}: {one_line(error)}{users_line(error)}'
        raise ConfigError(
            f'{module}: the model does not run on an image of {height} x {width}: {reason}; correct the '
            'config, or pass a --shape that the model supports'
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
    sizes = [(min(SIDE, options.height), min(SIDE, options.width)), (options.height, options.width)]
    error: Mm2OnnxError | None = None
    for height, width in dict.fromkeys(sizes):
        try:
            _run(family, model, options.replace(height=height, width=width, batch=1))
            return None
        except Mm2OnnxError as failure:
            error = failure
    return error


def check_export(family: ImageFamily, cfg: Any, options: Options, model: nn.Module) -> None:
    """Check resolved options of a picture model: for other programs, size, and tensors (`check_forward`).

    Raises:
        UsageError: an option does not go with the model.
        ConfigError: as `check_forward`.
    """
    hosts.check(options, family.preprocess_rule(cfg), family.spec(model, options), family.facts(model))
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


def _run(family: Any, model: nn.Module, options: Options) -> None:
    spec = family.spec(model, options)
    first = spec.inputs[0]
    if first.axes[1:2] != (3,):
        return  # features of pictures, such as the form `regions` takes
    stage = family.stages(model, options)[0]
    picture = np.zeros((1, picture_channels(model), options.height, options.width), np.float32)
    feeds = spec.with_defaults({first.name: picture})
    if not feeds.keys() >= set(stage.inputs):
        return  # a camera has no default
    like = next(model.parameters())
    tensors = [torch.from_numpy(feeds[name]).to(like.device) for name in stage.inputs]
    try:
        with own_forward(model, options.height, options.width), torch.no_grad():
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
