"""State that functions keep from run to run, wherever it is. A graph has none of it.

It is in globals, closures, attributes of classes and objects. Needs no mmcv.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import dis
import functools
import gc
import hashlib
import itertools
import operator
import random
import sys
import types
import weakref
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.core.arrays import to_array
from mmdeploy_ext.core.foreign_functions import is_users_value
from mmdeploy_ext.core.outer_containers import slot_names, slot_values

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from types import CodeType, FrameType

PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic, torch.dtype, torch.device, torch.Size)
"""Types of values that are compared as they are."""
MAX_VALUES = 300_000
"""Number of values beyond which no more are looked at."""
OPAQUE = ('torch', 'numpy')
"""Packages whose objects have no state that Python code changes, but for modules and the types in `PARTS`."""


def codes_of_run(run: Callable[[], Any], counts: Callable[[CodeType], bool]) -> list[CodeType]:
    """Call `run`, and return the code of the Python functions that ran in it, in the order of first calls.

    Bodies of classes and of modules that it imports are among it. Other threads are not watched. `counts`
    tells of each code object whether it is to be returned.
    """
    codes: dict[int, tuple[CodeType, bool]] = {}  # by id: code of two files may be equal

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == 'call' and id(code) not in codes:
            codes[id(code)] = code, counts(code)

    previous = sys.getprofile()
    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(previous)
    return [code for code, is_counted in codes.values() if is_counted]


def functions_of(codes: Iterable[CodeType]) -> list[types.FunctionType]:
    """Return all existing functions whose code is one of `codes`, by file and line."""
    codes = list(codes)
    referrers = gc.get_referrers(*codes) if codes else []
    functions = [value for value in referrers if type(value) is types.FunctionType]
    return sorted(functions, key=lambda value: (value.__code__.co_filename, value.__code__.co_firstlineno))


def lines_that_set_globals(code: CodeType) -> list[int]:
    """Return the numbers of the lines of a function that set or delete a global; [] for code of a module.

    Those of functions inside of it are not among them.
    """
    if code.co_name == '<module>':  # an import in a run
        return []
    lines, line = {}, code.co_firstlineno
    for step in dis.get_instructions(code):
        line = step.starts_line or line
        if step.opname in ('STORE_GLOBAL', 'DELETE_GLOBAL'):
            lines[line] = None
    return [*lines]


def state_of_functions(
    functions: Iterable[types.FunctionType], kinds: Iterable[type], is_users: Callable[[Any], bool]
) -> dict[str, Any]:
    """Return name -> what can be compared of what functions and classes read and may change.

    These are the globals and attributes of modules of the user's that functions name, the variables of
    functions around them, defaults of arguments, and attributes of classes whose names do not begin with two
    underscores; classes of the user's that functions name count, too. Names are 'module.global',
    'module.function ID' for what a function holds, and 'Class.attribute'.

    Args:
        functions: functions of the user's.
        kinds: classes of the user's.
        is_users: whether a class or a module is the user's.
    """
    contents, state, kinds = Contents(), {}, dict.fromkeys(kinds)
    for function in functions:
        scope, names = function.__globals__, {*function.__code__.co_names}
        prefix = str(scope.get('__name__', ''))
        for name in sorted(names & scope.keys()):
            value = scope[name]
            if isinstance(value, types.ModuleType):
                for key in sorted(names & vars(value).keys()) if is_users(value) else ():
                    state[f'{value.__name__}.{key}'] = contents.of(vars(value)[key])
            elif not isinstance(value, type):
                state[f'{prefix}.{name}'] = contents.of(value)
            elif is_users(value):
                kinds[value] = None
        state[f'{prefix}.{function.__qualname__} {id(function)}'] = contents.of(function)
    for kind in kinds:
        for name, value in vars(kind).items():
            if not name.startswith('__'):
                state[f'{kind.__name__}.{name}'] = contents.of(value)
    return state


def random_state() -> dict[str, Any]:
    """Return name of a generator of random numbers that the whole process has -> its state; none of a GPU."""
    return dict(
        Python=random.getstate(), numpy=repr(np.random.get_state()), PyTorch=torch.get_rng_state().tolist()
    )


@contextlib.contextmanager
def draws_repeated() -> Iterator[None]:
    """Let what comes after the block draw the same random numbers as the block.

    These are the numbers of the generators of `random_state`.
    """
    states = _states_of_generators()
    try:
        yield
    finally:
        _set_states_of_generators(states)


def _states_of_generators() -> tuple[Any, ...]:
    """Return the states of the generators of Python, numpy and PyTorch that the whole process has."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_states_of_generators(states: tuple[Any, ...]) -> None:
    """Let the generators of `_states_of_generators` go on from these states."""
    setters = random.setstate, np.random.set_state, torch.set_rng_state
    for restore, state in zip(setters, states, strict=True):
        restore(state)


class UnreadableError(RuntimeError):
    """An object of the user's whose attributes raise an error when they are read."""


@contextlib.contextmanager
def draws_left_out(codes: Collection[CodeType]) -> Iterator[None]:
    """Inside the block a function of one of these codes leaves `random_state` as it was before its call."""
    states: list[tuple[Any, ...]] = []
    ids, previous = {id(code) for code in codes}, sys.getprofile()

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        if previous is not None:
            previous(frame, event, arg)
        if id(frame.f_code) in ids:
            if event == 'call':
                states.append(_states_of_generators())
            elif event == 'return' and states:
                _set_states_of_generators(states.pop())

    if codes:
        sys.setprofile(watch)
    try:
        yield
    finally:
        if codes:
            sys.setprofile(previous)


class Contents:
    """Makes of values what can be compared: the numbers, texts and arrays in them, however deep.

    An object counts where it is met first.

    Args:
        left_out: objects of which the name of the type alone counts.
    """

    def __init__(self, left_out: Iterable[Any] = ()) -> None:
        self._left_out = [*left_out]
        self._seen = {id(value): value for value in self._left_out}  # kept, so that no other has the same id

    def of(self, value: Any) -> Any:
        """Return what can be compared of a value; the name of its type, if it was met before.

        That is also all of other objects of `OPAQUE` packages, of a library's whose contents cannot be read,
        as those of a name of an absent package, and beyond `MAX_VALUES`; an iterator has its length with it.
        UnreadableError: the contents of an object of the user's cannot be read.
        """
        if isinstance(value, PLAIN):
            return value if value == value else 'nan'  # NaN differs from itself
        try:
            return self._contents(value)
        except UnreadableError:
            raise
        except Exception as error:
            if is_users_value(type(value)):
                raise UnreadableError(f'{type(value).__name__}: {type(error).__name__}: {error}') from error
            return type(value).__name__

    def _contents(self, value: Any) -> Any:
        name = type(value).__name__
        if id(value) in self._seen or len(self._seen) > MAX_VALUES:
            return name
        self._seen[id(value)] = value
        for kinds, parts_of in PARTS:
            if isinstance(value, kinds):
                return [name, *map(self.of, parts_of(value)), *self._attributes(value)]
        if hasattr(value, '__length_hint__') and hasattr(value, '__next__'):
            return name, operator.length_hint(value)
        is_opaque = type(value).__module__.split('.')[0] in OPAQUE and not isinstance(value, torch.nn.Module)
        if is_opaque:
            return name
        attributes = self._attributes(value)
        return [name, *attributes, *(map(self.of, _reduced(value)) if not attributes else ())]

    def _attributes(self, value: Any) -> list[Any]:
        """Return names and contents of the attributes of an object; [] if it has none."""
        fields = getattr(value, '__dict__', None)  # anything, of an object that answers to every name
        attributes = dict(fields) if isinstance(fields, Mapping) else {}
        slots = [name for name in slot_names(type(value)) if hasattr(value, name)]
        attributes.update((name, getattr(value, name)) for name in slots)
        return [(name, self.of(entry)) for name, entry in attributes.items()]


def arrays_and_numbers(value: Any, depth: int = 4) -> Any:
    """Return what can be compared of arrays, numbers and texts in containers, up to `depth` in each other.

    Of objects of the user's their attributes count; of others, of classes, of `nn.Module`s and of what is
    deeper the name of their type alone. A mapping is two levels, as its items are pairs, and so is an object
    of the user's.
    """
    if isinstance(value, (*PLAIN, torch.Tensor, np.ndarray)):
        return Contents().of(value)
    parts: Any = None
    if isinstance(value, Mapping):
        parts = [*value.items()]
    elif isinstance(value, list | tuple | set | frozenset | deque):
        parts = value
    elif not isinstance(value, type | torch.nn.Module) and is_users_value(type(value)):
        parts = [*getattr(value, '__dict__', {}).items(), *slot_values(value).items()]
    if parts is None or not depth:
        return type(value).__name__
    return [arrays_and_numbers(part, depth - 1) for part in parts]


def _parts_of_array(value: torch.Tensor | np.ndarray) -> tuple[Any, ...]:
    array = np.asarray(value) if isinstance(value, np.ndarray) else value  # numpy.ma.masked writes no bytes
    if isinstance(value, torch.Tensor):
        try:
            array = to_array(value)
        except RuntimeError:  # of the meta device
            return tuple(value.shape), str(value.dtype), repr(value)
    data = repr(array.tolist()) if array.dtype.hasobject else hashlib.sha256(array.tobytes()).hexdigest()
    return str(array.shape), str(value.dtype), data


def _parts_of_function(value: types.FunctionType) -> tuple[Any, ...]:
    cells = []
    for cell in value.__closure__ or ():
        with contextlib.suppress(ValueError):  # of a name that has no value yet
            cells.append(cell.cell_contents)
    return value.__defaults__, value.__kwdefaults__, cells


def _reduced(value: Any) -> tuple[Any, ...]:
    """Return what Python would make an object of its own types of again, such as the bytes of a bytearray.

    The result is () for objects of other types, and for those that nothing can be told about, such as locks.
    """
    package = type(value).__module__.partition('.')[0]
    if package not in sys.stdlib_module_names and package != 'builtins':
        return ()
    try:
        reduced = value.__reduce_ex__(2)
    except Exception:  # a lock, a module's own function
        return ()
    return reduced[1:] if isinstance(reduced, tuple) else ()


PARTS: tuple[tuple[Any, Callable[[Any], Iterable[Any]]], ...] = (
    ((torch.Tensor, np.ndarray), _parts_of_array),
    (np.random.Generator, lambda value: [repr(value.bit_generator.state)]),
    (np.random.RandomState, lambda value: [repr(value.get_state())]),
    (torch.Generator, lambda value: value.get_state().tolist()),
    (random.SystemRandom, lambda value: []),  # it has no state
    (random.Random, lambda value: [value.getstate()]),
    # globals of code that was made of a text have Python's own functions, too
    (
        Mapping,
        lambda value: [entry for item in [*value.items()] if item[0] != '__builtins__' for entry in item],
    ),
    ((list, tuple, deque), list),
    ((set, frozenset), lambda value: sorted(map(repr, value))),
    (types.FunctionType, _parts_of_function),
    (types.MethodType, lambda value: (value.__self__, value.__func__)),
    (functools.partial, lambda value: (value.func, value.args, value.keywords)),
    (
        types.GeneratorType,
        lambda value: (value.gi_frame.f_lasti, dict(value.gi_frame.f_locals)) if value.gi_frame else (),
    ),
    (contextvars.ContextVar, lambda value: [value.get(None)]),
    (weakref.ref, lambda value: [value()]),
    (ctypes._SimpleCData, lambda value: [value.value]),
    ((ctypes.Array, ctypes.Structure), lambda value: [bytes(value)]),
    (itertools.count, lambda value: [repr(value)]),
    ((type, types.ModuleType, property, classmethod, staticmethod), lambda value: []),
)
"""Types, and what makes of a value of them the values that it consists of."""
