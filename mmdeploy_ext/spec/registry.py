"""Families of models by name, without PyTorch.

`register_family` is called in the `__init__` of a folder of families/, by an entry point of the group
`mm2onnx.families`, or by `custom_imports` of a config; `register_contract` by `mm2onnx.contracts`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
import sys
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.spec.facts import Facts
from mmdeploy_ext.spec.options import CONTRACT, IMAGE, MAX_CANDIDATES, OF_SOME

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from mmdeploy_ext.spec.options import Option

CATALOGUE = 'mmdeploy_ext.families.catalogue'
DRIVING = 'mm2onnx_driving'
"""Package of the driving systems, which is installed by itself."""
OURS = 'mmdeploy_ext.'
"""Prefix of this package's families."""
USED_BY = {'': 'graph show {file}'}
"""Default of `register_family(used_by=...)`."""
FILM, SWEEP = 'run {file} INFOS.pkl --out work_dirs/film.mp4', 'run {file} SWEEP.bin'
"""Commands for files of frames and sweeps."""


@dataclasses.dataclass(frozen=True)
class Program:
    """Modules for a program that loads our files.

    Attributes:
        contract: `'module:Class'` of a `families.contracts.Contract`.
        loop: `'module:Class'` that runs the files as the program does, without PyTorch.
        checks: module with `check(folder)`, which finds what the program rejects, and file `PATTERNS`.
        tables: module with `write_tables` for a rig's tables, see `graph write-tables`.
    """

    contract: str
    loop: str
    checks: str = ''
    tables: str = ''


@dataclasses.dataclass(frozen=True)
class Registration:
    """A family, without its modules.

    Attributes:
        name: in metadata; a lower-case letter, then letters, digits, '_' and '-'.
        family: `'module:Class'` of the `Family`, or `'module:INSTANCE'`.
        options: besides common options: `spec.options.Option`s or 'max_candidates'.
        facts: `'module:Class'` of its `spec.facts.Facts` subclass, in a module without PyTorch.
        runtime: module without PyTorch that turns outputs into results, see `runtime.detect`.
        library: slow import of the family, such as 'mmdet3d'; such families are tried last.
        training_keys: keys of `model` for training only; the zoo ignores them.
        keep_fp32: patterns of nodes that stay float32, see `graphs.passes.select.match_patterns`.
        claims: detector or head classes (or bases) that cause the import of the family. () tries it
            for each config without a matching claim.
        exports: supported models and page, for the message about an unsupported detector.
        similar_names: words in names of similar detectors and heads, for that message.
        of_config: what the config decides, for the message about a missing option.
        used_by: form -> command behind `mm2onnx` for a proven file, with {file}, {folder}, {config} and
            {checkpoint}; '' for other forms.
        own_kernels: layers or heads without a CPU kernel in their library; ours runs in PyTorch.
        seeded: `'module:function'` for heads unknown to the zoo's weights, see
            `dev.seeded.weights.steps_of_family`.
        contracts: name -> another program that loads its files; `register_contract` adds them.
    """

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
    contracts: Mapping[str, Program] = dataclasses.field(default_factory=dict)

    def load_family(self) -> Any:
        """Import the family; ConfigError if its module lacks it."""
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
        if not self.facts:
            return Facts
        module, _, cls = self.facts.partition(':')
        return getattr(importlib.import_module(module), cls)

    def load_runtime(self) -> ModuleType:
        """Import the module that turns outputs into results; ConfigError: missing."""
        if not self.runtime:
            raise ConfigError(
                f'family {self.name!r} has no runtime to turn the outputs of its files into results; pass '
                'register_family(..., runtime=MODULE), a module with detections(metadata, outputs, feeds)'
            )
        runtime = importlib.import_module(self.runtime)
        if not (hasattr(runtime, 'detections') or hasattr(runtime, 'OPENS')):
            raise ConfigError(
                f'family {self.name!r}: its runtime {self.runtime} has neither detections(metadata, outputs, '
                f'feeds), of images, nor OPENS, of frames or sweeps'
            )
        return runtime


_REGISTERED: dict[str, Registration] = {}
_MODELS: list[str] = []
_READ: dict[str, Registration] = {}
"""Families of older versions whose files are still read."""
_WAITING: dict[str, list[Callable[[], None]]] = {}
"""Name of an unregistered family -> its contracts, registered after it."""


def register_family(name: str, family: str, **settings: Any) -> None:
    """Make a family known to every command and function.

    Call it in a module without PyTorch and mmcv. `settings` are further attributes of `Registration`.

    Raises:
        ConfigError: the name is taken, `name` or `family` is malformed, or a default is not allowed.
    """
    options = settings.pop('options', ())
    options = tuple(MAX_CANDIDATES if option == MAX_CANDIDATES.name else option for option in options)
    registration = Registration(name, family, options, **settings)
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


def register_files(name: str, facts: str, runtime: str) -> None:
    """Make files of a family that is gone readable; arguments as in `register_family`."""
    _READ[name] = Registration(name, '', facts=facts, runtime=runtime)


def register_contract(
    family: str,
    name: str,
    contract: str,
    loop: str,
    *,
    help: str,
    fixes: Mapping[str, Any] | None = None,
    options: tuple[Option, ...] = (),
    **modules: str,
) -> None:
    """Add another program's files to `--contract`; the family may be registered later.

    Args:
        family: name of the family.
        name: choice of `--contract`.
        contract: see `Program`.
        loop: see `Program`.
        help: the files, for `--help`.
        fixes: option -> value that the contract fixes.
        options: options of this contract only.
        **modules: further attributes of `Program`.
    """
    if family not in _REGISTERED:
        settings = dict(help=help, fixes=fixes, options=options, **modules)
        later = functools.partial(register_contract, family, name, contract, loop, **settings)
        _WAITING.setdefault(family, []).append(later)
        return
    registration = _REGISTERED[family]
    contract_options = [dataclasses.replace(option, only_with=('contract', name)) for option in options]
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
        options=(*extended, *contract_options),
        contracts={**registration.contracts, name: Program(contract, loop, **modules)},
    )


def seeded_heads_of(family: str) -> Any:
    """The function `seeded` of a family, or None."""
    path = registration_of(family).seeded
    return _imported(path) if path else None


def contract_class(family: str, name: str) -> Any:
    """Class of another program's contract; None for the family's own files."""
    program = _program(family, name)
    return _imported(program.contract) if program else None


def program_loop(family: str, name: str) -> Any:
    """Class that runs another program's files; None for the family's own files."""
    program = _program(family, name)
    return _imported(program.loop) if program else None


def _program(family: str, name: str) -> Program | None:
    """Another program's contract; installed packages are searched for a name that the family has not."""
    entry = registration_of(family)
    own = [choice for option in entry.options if option.name == CONTRACT.name for choice in option.choices]
    if name and name not in own:
        _import_all()
        entry = registration_of(family)
    return entry.contracts.get(name)


def register_models(package: str) -> None:
    """Add a package that lists its models in `MODELS_2D` or `MODELS_3D`: module -> types."""
    _MODELS.append(package)


def registered_models() -> list[str]:
    _import_all()
    return _MODELS


def folder_checks() -> dict[str, str]:
    """Contract -> module that checks a folder."""
    return {name: program.checks for name, program in _programs() if program.checks}


def rig_tables() -> dict[str, str]:
    """Contract -> module that writes a rig's tables."""
    return {name: program.tables for name, program in _programs() if program.tables}


def _programs() -> list[tuple[str, Program]]:
    return sorted(
        (entry for one in registered().values() for entry in one.contracts.items()), key=itemgetter(0)
    )


def _imported(path: str) -> Any:
    module, _, name = path.partition(':')
    return getattr(importlib.import_module(module), name)


def registered() -> Mapping[str, Registration]:
    _import_all()
    return _REGISTERED


def find_registration(family: str) -> Registration | None:
    """Registration of a family, or of its files, or None; installed packages are searched last."""
    _import_own()
    return _REGISTERED.get(family) or _READ.get(family) or registered().get(family)


@functools.cache
def _import_own() -> None:
    importlib.import_module(CATALOGUE).import_own()


@functools.cache
def _import_all() -> None:
    _import_own()
    importlib.import_module(CATALOGUE).import_installed()
    in_order = sorted(_REGISTERED.items(), key=lambda item: (not item[1].family.startswith(OURS), item[0]))
    _REGISTERED.clear()
    _REGISTERED.update(in_order)


def driving_advice() -> str:
    """Return how the driving systems are installed, or '' if they are."""
    registered()
    if DRIVING in sys.modules:
        return ''
    return 'driving systems are another package: pip install mm2onnx-driving'


def registration_of(family: str) -> Registration:
    """Registration of a family, empty for an unknown name."""
    return find_registration(family) or Registration(family, '')


def detector_options() -> tuple[Option, ...]:
    """`IMAGE` and the options of all families; shared options combine their choices."""
    options: dict[str, dict[str, Option]] = {}
    for registration in registered().values():
        for option in registration.options:
            options.setdefault(option.name, {})[registration.name] = option
    return (*IMAGE, *map(_merged_option, options.values()))


def _merged_option(by_family: Mapping[str, Option]) -> Option:
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
