"""Families of models by name: what is known of them without PyTorch.

`register_family` is called in the `__init__` of a family's folder, in the module of an entry point of the
group `mm2onnx.families`, or in a module of the `custom_imports` of a config. The caller imports no PyTorch,
so that files run without it. The folders of `consumers` register the files that other programs load.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import re
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.facts import Facts
from mmdeploy_ext.contract.options import CONTRACT, IMAGE, MAX_CANDIDATES, OF_SOME
from mmdeploy_ext.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from mmdeploy_ext.contract.options import Option

CATALOGUE = 'mmdeploy_ext.families.catalogue'
"""The module that imports what registers families."""
CONTRACTS = 'mmdeploy_ext.consumers'
"""The package that registers the contracts of other programs."""
OURS = 'mmdeploy_ext.'
"""Prefix of the families of this package, which come before others."""

USED_BY = {'': 'graph show {file}'}
"""`used_by` of a family that names no command."""


@dataclasses.dataclass(frozen=True)
class Registration:
    """The arguments of `register_family`."""

    name: str
    family: str
    options: tuple[Option, ...] = ()
    facts: str = ''
    runtime: str = ''
    library: str = ''
    training_keys: tuple[str, ...] = ()
    keep_fp32: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    exports: str = ''
    similar_names: tuple[str, ...] = ()
    of_config: str = ''
    used_by: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(USED_BY))
    own_kernels: tuple[str, ...] = ()
    seeded: str = ''
    contracts: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)  # of other programs

    def load_family(self) -> Any:
        """Import the family and return it.

        ConfigError: the module has no such class or instance, or the family has another name.
        """
        module, _, cls = self.family.partition(':')
        try:
            family = getattr(importlib.import_module(module), cls)
            if isinstance(family, type):
                family = family()
        except AttributeError as error:
            if getattr(error, 'obj', None) is not importlib.import_module(module):
                raise
            raise ConfigError(
                f'family {self.name!r} is registered as {self.family!r}, and {module} has no class {cls!r}'
            ) from error
        if family.name != self.name:
            raise ConfigError(
                f'family {self.name!r} is registered as {self.family!r}, whose name is {family.name!r}'
            )
        return family

    def load_facts(self) -> type[Facts]:
        """Import the class of the facts in its files; `Facts` without a field if it names none."""
        if not self.facts:
            return Facts
        module, _, cls = self.facts.partition(':')
        return getattr(importlib.import_module(module), cls)

    def load_runtime(self) -> ModuleType:
        """Import the module that makes results of outputs; ConfigError: there is none, or no runtime."""
        if not self.runtime:
            raise ConfigError(
                f'family {self.name!r} has no runtime, which turns the outputs of its files into results; '
                f'give register_family(..., runtime=MODULE), a module with detections(metadata, outputs, '
                f'feeds)'
            )
        runtime = importlib.import_module(self.runtime)
        if not (hasattr(runtime, 'detections') or hasattr(runtime, 'OPENS')):
            raise ConfigError(
                f'family {self.name!r}: its runtime {self.runtime} has neither detections(metadata, outputs, '
                f'feeds), of images, nor OPENS, of frames or sweeps'
            )
        return runtime


_REGISTERED: dict[str, Registration] = {}
_WAITING: dict[str, list[Callable[[], None]]] = {}
"""Name of a family that is not registered yet -> registrations of contracts."""


def register_family(
    name: str,
    family: str,
    *,
    options: tuple[Option | str, ...] = (),
    facts: str = '',
    runtime: str = '',
    library: str = '',
    training_keys: tuple[str, ...] = (),
    keep_fp32: tuple[str, ...] = (),
    claims: tuple[str, ...] = (),
    exports: str = '',
    similar_names: tuple[str, ...] = (),
    of_config: str = '',
    used_by: Mapping[str, str] | None = None,
    own_kernels: tuple[str, ...] = (),
    seeded: str = '',
) -> None:
    """Make a family known to every command and function.

    Call it in a module that imports neither PyTorch nor mmcv; the modules that it names are imported when
    they are needed. A second registration of the same `family` replaces the first.

    Args:
        name: name of the family in the metadata: a lower-case letter, then letters, digits, '_' and '-'.
        family: `'module:Class'` of the `Family`, or `'module:INSTANCE'`.
        options: of its exports beside the options of all families, each a `contract.options.Option` or
            'max_candidates'.
        facts: `'module:Class'` of its subclass of `contract.facts.Facts`, in a module without PyTorch.
        runtime: module without PyTorch that makes results of outputs, see `runtime.detect`.
        library: import name of a library that the family needs, such as 'mmdet3d'. The family is imported
            only for configs that no family without a library claims, and left out without the library.
        training_keys: keys of `model` in the configs of `library` that only training reads. Configs that
            differ in these keys alone are one model of the zoo.
        keep_fp32: patterns of nodes that stay float32 in float16 files, see
            `graph.passes.select.match_patterns`; a pattern may fit no node of a file.
        claims: class names of detectors or heads; the family is imported for a config with one of the classes
            or a class derived from it. (): for configs that no family with names claims, and, without a
            `library`, for all.
        exports: models that it exports, and its page, for the message about a detector of no family.
        similar_names: words in names of similar detectors and heads, for the same message.
        of_config: what its configs fix, for the message about an option that it does not have.
        used_by: form -> the command for a proven file, as typed behind `mm2onnx`, with {file}, {folder},
            {config} and {checkpoint}; '' for all other forms. `runtime.detect.runner_of` comes first.
        own_kernels: class names of layers or heads without a CPU kernel in their library; a proof compares
            with a kernel of the family's package.
        seeded: `'module:function'` of heads that `mm2onnx synthetic seeded` does not know, see
            `seeded.weights.steps_of_family`.

    Raises:
        ConfigError: the name is taken, the name or `family` has another form, or the default of an option is
            none of its choices.
    """
    options = tuple(MAX_CANDIDATES if option == MAX_CANDIDATES.name else option for option in options)
    registration = Registration(
        name,
        family,
        options,
        facts,
        runtime,
        library,
        tuple(training_keys),
        tuple(keep_fp32),
        tuple(claims),
        exports,
        tuple(similar_names),
        of_config,
        dict(used_by or USED_BY),
        tuple(own_kernels),
        seeded,
    )
    if not re.fullmatch(r'[a-z][\w-]*', name):
        raise ConfigError(
            f'register_family({name!r}): expected a lower-case letter, then letters, digits, _ and -'
        )
    if not re.fullmatch(r'[\w.]+:\w+', family):
        raise ConfigError(f"register_family({name!r}, {family!r}): expected 'module:Class'")
    for option in options:
        if option.choices and not option.open and option.default not in option.choices:
            raise ConfigError(
                f'register_family({name!r}): option {option.name!r} has the default {option.default!r}, '
                f'expected one of {", ".join(map(repr, option.choices))}'
            )
    namesake = _REGISTERED.get(name)
    if namesake is not None and namesake.family != family:
        raise ConfigError(
            f'register_family({name!r}, {family!r}): {namesake.family} has that name; choose another'
        )
    _REGISTERED[name] = registration
    for register in _WAITING.pop(name, ()):
        register()


def register_contract(
    family: str,
    name: str,
    contract: str,
    loop: str,
    *,
    help: str,
    fixes: Mapping[str, Any] | None = None,
    options: tuple[Option, ...] = (),
) -> None:
    """Make the files that another program loads a choice of `--contract` of a family.

    Args:
        family: name of a family with the option `contract`; it may be registered later.
        name: name of the choice.
        contract: `'module:Class'` of a `families.contracts.Contract`.
        loop: `'module:Class'` that opens an export without PyTorch, the `opens` of the contract.
        help: text for the command line.
        fixes: name of an option -> the value that the contract fixes it at.
        options: options of this contract alone.
    """
    if family not in _REGISTERED:
        again = functools.partial(
            register_contract, family, name, contract, loop, help=help, fixes=fixes, options=options
        )
        _WAITING.setdefault(family, []).append(again)
        return
    registration = _REGISTERED[family]
    of_contract = [dataclasses.replace(option, only_with=('contract', name)) for option in options]
    extended = tuple(
        dataclasses.replace(
            option,
            choices=(*option.choices, name),
            help=f'{option.help}; {name}: {help}',
            fixes={**option.fixes, name: fixes or {}},
        )
        if option.name == CONTRACT.name
        else option
        for option in registration.options
    )
    _REGISTERED[family] = dataclasses.replace(
        registration,
        options=(*extended, *of_contract),
        contracts={**registration.contracts, name: (contract, loop)},
    )


def seeded_heads_of(family: str) -> Any:
    """Return the function that a family is registered with as `seeded`; None without one."""
    path = registration_of(family).seeded
    return _imported(path) if path else None


def contract_class(family: str, name: str) -> Any:
    """Return the class of another program's contract; None for the files of the family."""
    paths = _contract_paths(family, name)
    return _imported(paths[0]) if paths else None


def program_loop(family: str, name: str) -> Any:
    """Return the class that opens the files of another program's contract; None for the family's files."""
    paths = _contract_paths(family, name)
    return _imported(paths[1]) if paths else None


def _contract_paths(family: str, name: str) -> tuple[str, str] | None:
    return registration_of(family).contracts.get(name)


def _imported(path: str) -> Any:
    module, _, name = path.partition(':')
    return getattr(importlib.import_module(module), name)


def registered() -> Mapping[str, Registration]:
    """Return name -> registration of every family, the mapping itself.

    ConfigError: the module of an entry point fails.
    """
    _import_all()
    return _REGISTERED


@functools.cache
def _import_all() -> None:
    importlib.import_module(CATALOGUE).import_registrations()
    importlib.import_module(CONTRACTS)
    in_order = sorted(_REGISTERED.items(), key=lambda item: (not item[1].family.startswith(OURS), item[0]))
    _REGISTERED.clear()
    _REGISTERED.update(in_order)


def registration_of(family: str) -> Registration:
    """Return the registration of a family, an empty one if the family is not registered."""
    return registered().get(family) or Registration(family, '')


def detector_options() -> tuple[Option, ...]:
    """Return `IMAGE` and the options of all registered families, each once.

    An option has the choices of all its families and the default of the first; the help names families if
    only some families of images have the option, or if the texts differ.
    """
    options: dict[str, dict[str, Option]] = {}
    for registration in registered().values():
        for option in registration.options:
            options.setdefault(option.name, {})[registration.name] = option
    return (*IMAGE, *map(_merged_option, options.values()))


def _merged_option(by_family: Mapping[str, Option]) -> Option:
    """Return the option of several families as one."""
    families_by_help: dict[str, list[str]] = {}
    for family, option in by_family.items():
        families_by_help.setdefault(option.help, []).append(family)
    first = next(iter(by_family.values()))
    choices = dict.fromkeys(choice for option in by_family.values() for choice in option.choices)
    if len(families_by_help) > 1 or first.group == OF_SOME:
        text = '; '.join(f'{", ".join(names)}: {text}' for text, names in families_by_help.items())
    else:
        text = first.help
    return dataclasses.replace(first, choices=tuple(choices), help=text)
