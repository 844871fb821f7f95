"""Families of models by name: their options and checks, and the names of the modules that need PyTorch.

Every family is registered by `register_family`: those of this package in the `__init__` of their folder,
those of an installed package in the module that its entry point of the group `mm2onnx.families` names, and
those of a config in a module of its `custom_imports`. Such a module imports no PyTorch, so that files run
without it. What other programs load of a family is registered by `register_contract`, in the folders of
`consumers`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import re
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.facts import Facts
from mmdeploy_ext.contract.options import CONTRACT, IMAGE, OF_SOME
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
"""Beginning of the modules of the families of this package, which come before others."""

USED_BY = {'': 'graph show {file}'}
"""`used_by` of a family that names no command."""


@dataclasses.dataclass(frozen=True)
class Registration:
    """The arguments of `register_family`: all that can be read of a family without importing it."""

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
    contracts: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)  # of other programs

    def load_family(self) -> Any:
        """Import the family, and return it: an instance of the class that `family` names, or what it names.

        Raises:
            ConfigError: the module has no such class or instance, or its family has another name.
            ImportError: there is no such module, or one that it imports is not there.
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
        """Import the class of the facts in its files; `Facts`, without a field, if it names none."""
        if not self.facts:
            return Facts
        module, _, cls = self.facts.partition(':')
        return getattr(importlib.import_module(module), cls)

    def load_runtime(self) -> ModuleType:
        """Import what makes results of the outputs of its files.

        ConfigError: the family names no module, or one that is no runtime; ImportError: it is not there.
        """
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
    options: tuple[Option, ...] = (),
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
) -> None:
    """Make a family known to every command and function.

    Call it in a module that imports neither PyTorch nor mmcv. The modules that it names are imported when
    they are needed. A second registration of the same `family`, when its module is loaded again, replaces the
    first.

    Args:
        name: name of the family, as the metadata of its files have it: a lower-case letter, then letters,
            digits, '_' and '-'.
        family: `'module:Class'` of the `Family`, for example `'my_package.family:CircleFamily'`; of several
            families that are instances of one class `'module:INSTANCE'`.
        options: what can be chosen about its graphs besides what all families have, each an
            `mmdeploy_ext.contract.options.Option`. They become options of the command line, keys of
            `backend_config` and entries of the metadata.
        facts: `'module:Class'` of the dataclass of `postprocess` in the metadata, a subclass of
            `mmdeploy_ext.contract.facts.Facts`, in a module without PyTorch.
        runtime: module, without PyTorch, that turns the outputs of its files into results, see
            `mmdeploy_ext.runtime.detect`.
        library: import name of a library that the family needs and that takes long to import, such as
            'mmdet3d': the family is imported only for configs that no family without a library claims, and
            left out if the library cannot be imported.
        training_keys: keys of `model` in the configs of `library` that only training reads, such as losses of
            boxes. Configs that differ in them alone are one model of the zoo, which is proven once.
        keep_fp32: patterns ('*', '?', '[...]') of nodes that stay float32 in its float16 files, besides those
            of every family; one fits a node by its name, operator, module or an output, see
            `graph.passes.select.match_patterns`. Those that fit no node of a file are left out.
        claims: names of classes; the family is imported for configs whose detector or head is one of them, or
            derived from one. (): for configs that no family with such names claims, and, without a `library`,
            for all.
        exports: the models that it exports, and its page, for the message about a detector of no family.
        similar_names: words in the names of similar detectors and heads, for the same message.
        of_config: what its configs fix, for the message about an option that it does not have.
        used_by: form -> the command that uses a proven file, as it is typed behind `mm2onnx`, with {file},
            {folder} of it, {config} and {checkpoint}; '' for all other forms. A runtime that names a command
            comes first, see `runtime.detect.runner_of`.
        own_kernels: names of classes of layers or heads that need an operator without a CPU kernel in its
            library, so that a proof compares with a kernel of the family's package.

    Raises:
        ConfigError: another family has the name, the name or `family` is not of that form, or the default of
            an option is none of its choices.
    """
    registration = Registration(
        name,
        family,
        tuple(options),
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
        name: what the user types.
        contract: `'module:Class'` of a `families.contracts.Contract`.
        loop: `'module:Class'` of what opens an export without PyTorch, the `opens` of the contract.
        help: text for the command line.
        fixes: name of an option -> the value that the contract fixes it at.
        options: options that only this contract has.
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


def contract_class(family: str, name: str) -> Any:
    """Return the class of another program's contract; None for the files of the family."""
    paths = _contract_paths(family, name)
    return _imported(paths[0]) if paths else None


def program_loop(family: str, name: str) -> Any:
    """Return what opens the files of another program's contract; None for the files of the family."""
    paths = _contract_paths(family, name)
    return _imported(paths[1]) if paths else None


def _contract_paths(family: str, name: str) -> tuple[str, str] | None:
    return registration_of(family).contracts.get(name)


def _imported(path: str) -> Any:
    module, _, name = path.partition(':')
    return getattr(importlib.import_module(module), name)


def registered() -> Mapping[str, Registration]:
    """Return name -> registration of every family; ConfigError: the module of an entry point fails.

    Those of a config are among them once a module of its `custom_imports` has been imported, also in a
    mapping that was returned before.
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
    """Return the registration of a family; of a name that nobody has registered one without any facts."""
    return registered().get(family) or Registration(family, '')


def options_of(family: str) -> tuple[Option, ...]:
    """Return the options that a family has besides those of all; empty if it is not registered."""
    return registration_of(family).options


def keep_fp32_of(family: str) -> tuple[str, ...]:
    """Return the patterns of nodes that a family keeps in float32, see `register_family`.

    Empty if it is not registered.
    """
    return registration_of(family).keep_fp32


def detector_options() -> tuple[Option, ...]:
    """Return `IMAGE` and the options of all registered families, each once, with the choices of all of them.

    All else, such as the default, is that of the first family that has the option. Its help names families if
    only some families of images have it, or if their texts differ.
    """
    options: dict[str, dict[str, Option]] = {}
    for registration in registered().values():
        for option in registration.options:
            options.setdefault(option.name, {})[registration.name] = option
    return (*IMAGE, *map(_merged_option, options.values()))


def _merged_option(by_family: Mapping[str, Option]) -> Option:
    """Return one option with the choices and help texts that several families have for it."""
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
