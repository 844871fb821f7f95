"""Checks, before anything is written, that a part fits into a graph."""

from __future__ import annotations

import collections
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.base.arrays import to_array
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.proving.parts.graph import PartModule, form_of, with_keys
from mmdeploy_ext.proving.parts.part import same_leaf
from mmdeploy_ext.proving.parts.record import place_of_draw, seeded
from mmdeploy_ext.proving.parts.results import filled
from mmdeploy_ext.spec.comparison import compare_named, same_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.proving.parts.graph import PartForm
    from mmdeploy_ext.proving.parts.part import Part
    from mmdeploy_ext.proving.parts.record import PartCall

REPEATED_RTOL = 1e-4
"""Allowed difference when a part runs again on a call's arguments."""
MOST_CALLS = 4
"""Maximum of calls to compare."""


def run_part(
    model: torch.nn.Module,
    form: PartForm,
    call: PartCall,
    tensors: Mapping[str, torch.Tensor],
    paths: Mapping[str, str],
) -> dict[str, np.ndarray]:
    """Return a part's PyTorch outputs for a call's constants and other tensors."""
    module = PartModule(model, form, call, paths)
    with torch.no_grad():
        outputs = module(*(tensor.clone() for tensor in tensors.values()))
    return {name: to_array(tensor) for name, tensor in zip(form.outputs, outputs, strict=True)}


def checked_form(
    model: torch.nn.Module,
    part: Part,
    calls: Sequence[PartCall],
    paths: Mapping[str, str],
    is_seeded: bool = False,
    fixed: Sequence[str] = (),
) -> PartForm:
    """Return the checked form of a part; `model` is fresh, `fixed` as in `PartForm`.

    ConfigError: see `form_of`, `with_keys`, `check_repeated`, `check_constants`.
    """
    form = dataclasses.replace(form_of(part, calls), seeded=is_seeded, fixed=tuple(fixed))
    check_repeated(model, form, calls, paths)
    form = with_keys(form, calls, model)
    check_constants(model, form, calls, paths)
    return form


def check_repeated(
    model: torch.nn.Module, form: PartForm, calls: Sequence[PartCall], paths: Mapping[str, str]
) -> None:
    """Raise ConfigError if a part returns NaN, or other outputs when run again."""
    for call in calls[:MOST_CALLS]:
        run = functools.partial(run_part, model, form, call, form.inputs_of(call), paths)
        own, again = run(), run()
        wrong = _differing(form, call, own)
        if not wrong and same_bits(own, again):
            continue
        name = f'--parts {form.part.text}'
        if nan := _nan(form.outputs_of(call)):
            raise ConfigError(
                f'{name}: {nan} are NaN in PyTorch ({call.title}); check the weights and the samples'
            )
        changed = (
            f'{name}: returns a different {wrong or form.outputs[0]} when it runs again with the arguments '
        )
        changed += f'of {call.title}: it'
        if not same_bits(own, again) and same_bits(_of_one_seed(run), _of_one_seed(run)):
            place = place_of_draw(run)
            raise ConfigError(
                f'{changed} draws random numbers{f" at {place}" if place else ""}. Use --seeded to make '
                'them constants of the graph, or export parts inside it'
            )
        attribute = _changed_attribute(model, run)
        raise ConfigError(
            f'{changed} keeps state{f" in {attribute}" if attribute else ""}. Export parts inside it'
        )


def _of_one_seed(run: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    with seeded():
        return run()


def _nan(outputs: Mapping[str, np.ndarray]) -> str:
    """Return '3 of 12 values of result.0', or ''."""
    for name, array in outputs.items():
        if array.dtype.kind == 'f' and (count := int(np.isnan(array).sum())):
            return f'{count} of {array.size} values of {name}'
    return ''


def _changed_attribute(model: torch.nn.Module, run: Callable[[], Any]) -> str:
    """Return the path of an attribute set by a run, 'head.memory', or ''."""

    def values() -> dict[str, Any]:
        return {
            f'{path}.{name}'.lstrip('.'): value
            for path, module in model.named_modules()
            for name, value in {**vars(module), **module._buffers}.items()
        }

    before = values()
    run()
    return next((name for name, value in values().items() if before.get(name) is not value), '')


def _differing(form: PartForm, call: PartCall, outputs: Mapping[str, np.ndarray]) -> str:
    """Return the first output unlike the recorded one, or ''."""
    rows = compare_named(*filled(form.outputs_of(call), outputs), REPEATED_RTOL)
    return next((row.tensor for row in rows if not row.passed), '')


def check_constants(
    model: torch.nn.Module, form: PartForm, calls: Sequence[PartCall], paths: Mapping[str, str]
) -> None:
    """Refuse a part with a constant that changes between calls and affects the results.

    Runs each call's tensors with the first call's constants; every bit counts.
    ConfigError names the part, and the key and its values.
    """
    first = calls[0]
    for call in calls[:MOST_CALLS]:
        tensors = form.inputs_of(call)
        own = run_part(model, form, call, tensors, paths)
        if wrong := _differing(form, call, own):
            raise ConfigError(
                f'--parts {form.part.text}: gives another {wrong} with {", ".join(form.keys)} of '
                f'{call.title} in float32, which is not precise enough. Export parts inside it'
            )
        changing = changing_constants(first, call)
        if changing and not same_bits(own, run_part(model, form, first, tensors, paths)):
            _refuse(model, form, (first, call), changing, own, paths)


def changing_constants(first: PartCall, call: PartCall) -> dict[str, list[tuple[int, str]]]:
    """Return key -> steps and names of constants that differ between two calls."""
    changing: dict[str, list[tuple[int, str]]] = collections.defaultdict(list)
    for index, (one, other) in enumerate(zip(first.steps, call.steps, strict=True)):
        others = other.arguments.constants
        for name, value in one.arguments.constants.items():
            if name not in others or not same_leaf(value, others[name]):
                changing[key_of(name)].append((index, name))
    return changing


def key_of(name: str) -> str:
    """Return the key of a constant: 'img_shape' of 'img_metas.0.img_shape.1'."""
    words = [word for word in name.split('.') if not word.isdigit()]
    return words[-1] if words else name


def _refuse(
    model: torch.nn.Module,
    form: PartForm,
    calls: tuple[PartCall, PartCall],
    changing: Mapping[str, list[tuple[int, str]]],
    own: Mapping[str, np.ndarray],
    paths: Mapping[str, str],
) -> None:
    first, call = calls
    reaching = []
    for key, places in changing.items():
        steps = list(call.steps)
        for index, name in places:
            value = first.steps[index].arguments.constants[name]
            step = steps[index]
            steps[index] = dataclasses.replace(step, arguments=step.arguments.replace({name: value}))
        changed = dataclasses.replace(call, steps=tuple(steps))
        if not same_bits(own, run_part(model, form, changed, form.inputs_of(call), paths)):
            reaching.append(key)
    keys = reaching or list(changing)
    index, name = changing[keys[0]][0]
    values = [_text(side.steps[index].arguments.constants.get(name)) for side in calls]
    raise ConfigError(
        f'--parts {form.part.text}: {name} is a constant of the graph, changes from call to call and '
        f'reaches the results: {values[0]} in {first.title}, {values[1]} in {call.title} (of '
        f'{", ".join(keys)}); pass samples that agree in it, or export a part that does not read it'
    )


def _text(value: Any) -> str:
    text = ' '.join(repr(value).split())
    return text if len(text) <= 80 else f'{text[:80]}...'
