"""A part's form over all calls, and its exported module of flat tensors."""

from __future__ import annotations

import collections
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.base.arrays import to_array
from mmdeploy_ext.base.errors import ConfigError, shape_text
from mmdeploy_ext.proving.parts.arrays import given_arrays, marked, stacks_of
from mmdeploy_ext.proving.parts.part import Tree, call_with, same_leaf
from mmdeploy_ext.proving.parts.record import (
    PartCall,
    named,
    place_of_draw,
    random_constants,
    same_values,
    seeded,
)
from mmdeploy_ext.proving.parts.results import filled
from mmdeploy_ext.spec.comparison import compare_named, same_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.proving.parts.part import Part


@dataclasses.dataclass(frozen=True)
class Link:
    """A step's argument that an earlier step returned.

    Attributes:
        argument: name of the tensor among the arguments.
        step: index of the earlier step.
        result: name of the tensor among its results.
    """

    argument: str
    step: int
    result: str


@dataclasses.dataclass(frozen=True)
class PartForm:
    """The common form of all calls of a part.

    Attributes:
        part: the part.
        arguments: names of the tensors among the arguments of the first step.
        keys: keys of metas with arrays as inputs -> index of the step that gets them.
        outputs: names of the tensors among the results of the last step.
        links: per step, sources of its tensors; none for the first.
        dynamic: tensor name -> axis -> name of its size, for axes that differ between calls.
        seeded: random numbers use one seed.
        fixed: keys of metas with constant arrays: the graph is for one rig.
    """

    part: Part
    arguments: tuple[str, ...]
    keys: dict[str, int]
    outputs: tuple[str, ...]
    links: tuple[tuple[Link, ...], ...]
    dynamic: dict[str, dict[int, str]]
    seeded: bool = False
    fixed: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.arguments, *self.keys)

    def inputs_of(self, call: PartCall) -> dict[str, torch.Tensor]:
        """Return name -> tensor of the inputs of a call."""
        tensors = dict(call.steps[0].arguments.tensors)
        device = next(iter(tensors.values())).device if tensors else None
        for key, step in self.keys.items():
            tensors[key] = array_input(call.steps[step].stacks[key]).to(device)
        return {name: tensors[name] for name in self.inputs}

    def outputs_of(self, call: PartCall) -> dict[str, np.ndarray]:
        """Return name -> array of the outputs of a call."""
        tensors = call.steps[-1].result.tensors
        return {name: to_array(tensors[name]) for name in self.outputs}


def array_input(array: np.ndarray) -> torch.Tensor:
    """Return an array of the metas as fed: float32 or int64."""
    return torch.from_numpy(np.ascontiguousarray(array, np.float32 if array.dtype.kind == 'f' else np.int64))


def form_of(part: Part, calls: Sequence[PartCall]) -> PartForm:
    """Return the form of a part, without the arrays of metas, see `with_keys`.

    ConfigError: calls have different forms, code between the steps changes values, or an input is changed
    in place.
    """
    first = calls[0]
    for call in calls[1:]:
        _check_same_form(part, first, call)
    for call in calls:
        for step, of_step in zip(part.steps, call.steps, strict=True):
            if of_step.changed:
                raise ConfigError(
                    f'--parts {part.text}: {step.text} changes its argument {of_step.changed[0]} in place '
                    f'({call.title}); a graph cannot change its inputs'
                )
    if not first.steps[-1].result.tensors:
        raise ConfigError(f'--parts {part.text}: returns no tensor, so a graph would have no output')
    arguments = tuple(first.steps[0].arguments.tensors)
    outputs = tuple(first.steps[-1].result.tensors)
    links = tuple(_links(part, calls, index) for index in range(len(part.steps)))
    return PartForm(part, arguments, {}, outputs, links, {})


def with_keys(form: PartForm, calls: Sequence[PartCall], model: torch.nn.Module) -> PartForm:
    """Add the arrays of metas as inputs to a form; `model` runs the first call again.

    ConfigError: an array computed in numpy changes between calls, or there is no input.
    """
    form = dataclasses.replace(form, keys=_keys(form, calls[0], model))
    for index in range(len(form.part.steps)):
        _check_arrays(form, calls, index)
    if not form.inputs:
        raise ConfigError(f'--parts {form.part.text}: gets no tensor, so a graph would have no input')
    return dataclasses.replace(form, dynamic=_dynamic_axes(form, calls))


def _keys(form: PartForm, call: PartCall, model: torch.nn.Module) -> dict[str, int]:
    """Return keys of metas with arrays read only through torch -> index of their step.

    Equal values show candidate keys. For each the part runs twice with other numbers in the metas and the
    same tensor for them: it must use the tensor and return the same results.
    """
    candidates: dict[str, int] = {}
    for index, step in enumerate(call.steps):
        for source in (source for entered in step.entered for source in entered.sources):
            candidates.setdefault(source.key, index)
    keys = {}
    for key, index in candidates.items():
        if key in form.fixed:
            continue
        trial = dataclasses.replace(form, keys={key: index})
        modules = [PartModule(model, trial, call, modules_among(call, model), seed) for seed in (1, 2)]
        inputs = list(trial.inputs_of(call).values())
        try:
            with torch.no_grad():
                first, second = (module(*(tensor.clone() for tensor in inputs)) for module in modules)
        except Exception:  # also read as a size or an index
            continue
        is_taken = all(key in module.taken for module in modules)
        if is_taken and all(map(same_values, first, second)):
            keys[key] = index
    return keys


def _check_same_form(part: Part, first: PartCall, call: PartCall) -> None:
    for step, expected, got in zip(part.steps, first.steps, call.steps, strict=True):
        for side in ('arguments', 'result'):
            forms = getattr(expected, side).form(), getattr(got, side).form()
            if forms[0] != forms[1]:
                names = [
                    name for name in {**forms[0], **forms[1]} if forms[0].get(name) != forms[1].get(name)
                ]
                name = names[0]
                raise ConfigError(
                    f'--parts {part.text}: calls of {step.text} have different forms: {side} {name}: '
                    f'{forms[0].get(name, "absent")} in {first.title}, {forms[1].get(name, "absent")} in '
                    f'{call.title}; a graph supports only one of them'
                )
        modules = expected.arguments.modules, got.arguments.modules
        changed = [name for name in modules[0] if modules[0][name] is not modules[1].get(name)]
        if changed:
            raise ConfigError(
                f'--parts {part.text}: {step.text} gets another module as {changed[0]} in {call.title} '
                f'than in {first.title}; export the module that calls it'
            )


def _links(part: Part, calls: Sequence[PartCall], index: int) -> tuple[Link, ...]:
    if not index:
        return ()
    links = []
    for name in calls[0].steps[index].arguments.tensors:
        found: list[tuple[int, str]] | None = None
        for call in calls:
            tensor = call.steps[index].arguments.tensors[name]
            equal = [
                (earlier, result)
                for earlier in range(index)
                for result, value in call.steps[earlier].result.tensors.items()
                if same_values(value, tensor)
            ]
            found = equal if found is None else [entry for entry in found if entry in equal]
        if not found:
            raise ConfigError(
                f'--parts {part.text}: {part.steps[index].text} gets {name}, which is not a result of '
                f'{" or ".join(step.text for step in part.steps[:index])}: code between them changes '
                'values. Export them as separate parts'
            )
        links.append(Link(name, *found[0]))
    return tuple(links)


def _check_arrays(form: PartForm, calls: Sequence[PartCall], index: int) -> None:
    """Refuse an array that is not an input but changes between calls."""
    before: dict[tuple[str, int], np.ndarray] = {}
    for call in calls:
        counts: collections.Counter[str] = collections.Counter()
        for entered in call.steps[index].entered:
            place = entered.place, counts[entered.place]
            counts[entered.place] += 1
            if any(source.key in form.keys or source.key in form.fixed for source in entered.sources):
                continue
            if not np.array_equal(before.setdefault(place, entered.array), entered.array):
                raise ConfigError(
                    f'--parts {form.part.text}: an array of shape {shape_text(entered.array.shape)} that '
                    'changes from call to call is computed in numpy and enters torch at '
                    f'{entered.place or "?"}; export a part that begins after that line'
                )


def _dynamic_axes(form: PartForm, calls: Sequence[PartCall]) -> dict[str, dict[int, str]]:
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for call in calls:
        tensors = {**form.inputs_of(call), **form.outputs_of(call)}
        for name, tensor in tensors.items():
            shapes.setdefault(name, []).append(tuple(tensor.shape))
    dynamic: dict[str, dict[int, str]] = {}
    letters: dict[tuple[int, ...], str] = {}
    for name, of_name in shapes.items():
        for axis, sizes in enumerate(zip(*of_name, strict=True)):
            if len(set(sizes)) > 1:  # axes of equal sizes in all calls share a name
                letter = letters.setdefault(sizes, f'{name.replace(".", "_")}_{axis}')
                dynamic.setdefault(name, {})[axis] = letter
    return dynamic


class PartModule(torch.nn.Module):
    """A model's part from flat tensors to flat tensors."""

    def __init__(
        self,
        model: torch.nn.Module,
        form: PartForm,
        call: PartCall,
        modules_of: Mapping[str, str],
        seed: int = 0,
    ) -> None:
        """Bind a part.

        Args:
            model: the whole model.
            form: of the part.
            call: has the values of everything but inputs.
            modules_of: name of a module argument -> its path in `model`.
            seed: of the marks in arrays of `form.keys`.
        """
        super().__init__()
        owners = [step.owner_in(model) for step in form.part.steps]
        self.owners = torch.nn.ModuleList(dict.fromkeys(owners))
        methods = [getattr(owner, step.method) for owner, step in zip(owners, form.part.steps, strict=True)]
        arguments = [
            step.arguments.replace(
                {
                    name: model.get_submodule(modules_of[name])
                    for name in step.arguments.modules
                    if name in modules_of
                }
            )
            for step in call.steps
        ]

        self.taken: set[str] = set()
        taken = self.taken

        def run(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            given = dict(zip(form.inputs, tensors, strict=True))
            results: list[dict[str, torch.Tensor]] = []
            for index, method in enumerate(methods):
                values = dict(given) if not index else {}
                for link in form.links[index]:
                    value = results[link.step][link.result]
                    shape = arguments[index].tensors[link.argument].shape
                    values[link.argument] = value if value.dim() == len(shape) else value.reshape(shape)
                own = marked(arguments[index].copied(), form.keys, seed)
                nested = own.nested(values)
                stacks = {key: stack for key, stack in stacks_of(nested).items() if key in form.keys}
                with given_arrays(stacks, given, taken), random_constants(form.seeded):
                    results.append(Tree.of(named(call_with(method, nested))).tensors)
            return distinct([results[-1][name] for name in form.outputs], tensors)

        self._run = run  # a function: torch copies modules to export them

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._run(tensors)


def distinct(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return outputs, copied if they are an input, a weight or another output."""
    seen = {id(tensor) for tensor in inputs}
    result = []
    for tensor in outputs:
        is_taken = id(tensor) in seen or isinstance(tensor, torch.nn.Parameter)
        result.append(tensor.clone() if is_taken else tensor)
        seen.add(id(tensor))
    return tuple(result)


def modules_among(call: PartCall, model: torch.nn.Module) -> dict[str, str]:
    """Return name of a module argument -> its path in the model."""
    paths = {id(module): path for path, module in model.named_modules()}
    return {
        name: paths[id(module)]
        for step in call.steps
        for name, module in step.arguments.modules.items()
        if id(module) in paths
    }


# Checks, before anything is written, that a part fits into a graph.


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
