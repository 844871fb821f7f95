"""Methods of a model that the graphs of a family replace, and the versions of them that the graphs follow.

A graph runs the layers of the user's model, but it computes by itself what is around them: `get_bboxes`, a
memory. A family names these methods (`Family.replaced`); hashes of the versions that its graphs follow are
in the file `replaced_methods.json` of its folder, which `python docs/_pages/replaced_methods.py` writes again
for the installed libraries.
"""

from __future__ import annotations

import ast
import dataclasses
import dis
import functools
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from mmdeploy_ext.compat.older_mmdet import TRIED, OlderModule, computes_alike, mmdet_release, release_of
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.foreign_functions import (
    foreign_functions,
    foreign_globals,
    is_foreign,
    is_users_value,
    source_of,
)
from mmdeploy_ext.core.model_classes import is_users
from mmdeploy_ext.core.source_code import (
    DECORATORS,
    SourceLines,
    changed_defaults,
    functions_behind,
    module_of,
    source_of_class,
    source_of_function,
)
from mmdeploy_ext.families.building import data_class, data_classes

TABLE = 'replaced_methods.json'
"""File in the folder of a family: class -> method -> hashes of the versions that its graphs follow.

The one in `families/parts` is of `LAYERS`, of `SIZED_LAYERS`, and, as 'mmdet.Resize', of steps of a pipeline,
of `Compose` and of data sets ('mmdet.CustomDataset'): those of releases of mmdet whose test pictures are the
same (compared: 2.6.0 to 2.28.2).
"""
OLDER_TABLE = 'older_methods.json'
"""File in the folder of a family: class -> method -> hash -> releases of mmdet 2.x, such as '2.6.0-2.10.0'.

A hash has the releases in which the graphs give the results of a method with this hash, be it that of the
release itself or of another one in its place: `python docs/_pages/older_methods.py` runs both and writes it.
"""
DIGITS = 16
"""Number of hexadecimal digits of a hash in a table."""
SAMPLES_3D = ('prepare_test_data', 'get_data_info')
"""Methods of mmdet3d's data sets that make test samples, with their cameras, beside those of mmdet's."""
SAMPLING = ('__init__', '__getitem__', 'pre_pipeline', 'load_annotations', *SAMPLES_3D)
"""Methods of data sets of mmdet and mmdet3d that decide what is in a test sample."""
LIBRARY_MODULES = ('mmdet.', 'mmdet3d.', 'mmdeploy_ext.')
"""Beginnings of the names of modules of libraries with data sets and steps, and of copies of these."""
ACCESS = ('__call__', '_call_impl', '_wrapped_call_impl', '__getattribute__', '__getattr__')
"""Methods that run where a part is called or an attribute of it is looked up."""

Followed = tuple[tuple[type | ModuleType, tuple[str, ...]], ...]
"""Pairs of a class and the names of its methods, or of a module and the names of its functions."""
Table = Mapping[str, Mapping[str, Sequence[str]]]
"""Content of a file `TABLE`: class or module -> method or function -> hashes."""


@dataclasses.dataclass(frozen=True)
class Replaced:
    """Methods of a part of a model that the graphs compute by themselves.

    Attributes:
        part: the live object, the class of a static method, or the module of a function.
        upstream: name of the class whose methods the graphs follow, or of the module, or 'functions of' and a
            class: a key of the family's table.
        methods: their names; one that the table does not have there is not compared.
    """

    part: Any
    upstream: str
    methods: tuple[str, ...]


def replaced_of_class(part: Any, followed: Iterable[tuple[Any, tuple[str, ...]]]) -> Iterator[Replaced]:
    """Yield one entry with the methods of a live part; none if it has no followed class.

    They are those of the nearest of the followed classes that it is derived from, whether its own class
    changes them or not; of a class that `followed` has twice, those of its last pair. A class of the same
    name counts, too: that of a copy of the library in the user's repository, but no class of torch.
    """
    methods = {kind.__name__: names for kind, names in followed if not isinstance(kind, OlderModule)}
    for base in type(part).__mro__:
        if base.__name__ in methods and not base.__module__.startswith('torch.'):
            yield Replaced(part, base.__name__, methods[base.__name__])
            return


def replaced_functions(followed: Iterable[tuple[Any, tuple[str, ...]]]) -> Iterator[Replaced]:
    """Yield an entry for each of the followed classes and modules that is a module, with its functions."""
    for kind, names in followed:
        module = kind.imported() if isinstance(kind, OlderModule) else kind
        if isinstance(module, ModuleType):
            yield Replaced(module, module.__name__, names)


def replaced_parts(
    parts: Mapping[Any, str],
    is_ours: bool,
    followed: Followed,
    upstream: Mapping[str, tuple[str, ...]],
    functions: Mapping[str, tuple[str, ...]],
) -> Iterator[Replaced]:
    """Yield an entry per part of a live model, with its methods, and entries of functions of its modules.

    Args:
        parts: live part -> name of the class of upstream that it is, whatever the user calls it.
        is_ours: whether the model is this package's, whose methods are by `followed` alone; those of a part
            in it that is derived from no class of this package are by `upstream`.
        followed: this package's classes and methods of them.
        upstream: name of a class -> its methods.
        functions: name of a class -> functions that its module, or that of a base of it, has; the table has
            them as "functions of" the class. Of modules that have different ones all count, since an
            inherited method calls those of its own module.
    """
    for part, name in parts.items():
        package = __name__.partition('.')[0]
        if is_ours and any(base.__module__.partition('.')[0] == package for base in type(part).__mro__):
            yield from replaced_of_class(part, followed)
            continue
        yield Replaced(part, name, upstream[name])
        modules = [sys.modules.get(base.__module__) for base in reversed(type(part).__mro__)]
        for function in functions.get(name, ()):
            having = [module for module in modules if hasattr(module, function)]
            versions = {id(getattr(module, function)): module for module in having}
            for module in versions.values():
                yield Replaced(module, f'functions of {name}', (function,))


LAYERS: list[tuple[type, tuple[str, ...]]] = []
"""Layers of the libraries that every export replaces, wherever they are in a model, and their methods.

`families/parts/upstream_layers.py` fills this list and the next.
"""
SIZED_LAYERS: list[tuple[type, tuple[str, ...]]] = []
"""Layers that exports of any size or batch replace, too: `exporting/ops/backbone_attention.py`."""


def replaced_layers(model: Any, any_size: bool) -> Iterator[Replaced]:
    """Yield an entry for each layer of a live model with methods that every export replaces.

    `any_size` is whether the export has open axes, so that it replaces `SIZED_LAYERS`, too.
    """
    layers = [*LAYERS, *SIZED_LAYERS] if any_size else LAYERS
    for module in model.modules():
        yield from replaced_of_class(module, layers)


@dataclasses.dataclass(frozen=True)
class DifferingMethod:
    """A method of the user's model that is not the one that the graphs follow.

    Attributes:
        name: class and method, such as `StreamPETRHead.forward`; of a function its module and name; of the
            user's step of a pipeline its class; of a hook `a hook of` and the class of the part.
        file: file that defines it, relative to the folder that it was imported from; '' if there is no such
            method, its type if it is no function written in Python, such as `a partial`; of a constant that a
            user's code has changed its value, such as `value 4`.
        first: number of its first line; 0 if its source cannot be read.
        last: number of its last line.
        upstream: name of the class whose method the graphs follow, such as `mmdet.Resize` of a step; of a
            function of `called_of_others` what stands before its name; of a hook or a method of `ACCESS` the
            class that has it.
    """

    name: str
    file: str
    first: int
    last: int
    upstream: str

    @property
    def text(self) -> str:
        """The sentence of the verdict about it."""
        if not self.file:
            return f'{self.name} is not there; this export follows that of {self.upstream}'
        without_lines = '' if self.file.startswith('value ') else ', whose source cannot be read'
        lines = f' lines {self.first}-{self.last}' if self.first else without_lines
        return f'{self.name} differs from the one this export follows ({self.file}{lines})'


def differing_methods(replaced: Iterable[Replaced], table: Table) -> list[DifferingMethod]:
    """Return those of the methods `replaced` of a model that have none of their hashes in a table, each once.

    Those that a part lacks, and those whose default values were changed, are among them. With those of a
    part are the user's hooks of it, its methods of `ACCESS` that are the user's, and what its copies of the
    library's methods use, see `called_of_copies`. After them come the functions of others that the methods
    call, see `called_of_others`. ConfigError: the table has no such class.
    """
    differing: dict[str, DifferingMethod] = {}
    entries = list(replaced)
    for entry in entries:
        followed = table.get(entry.upstream)
        if followed is None:
            raise ConfigError(
                f'{TABLE} in the folder of the family: has no class {entry.upstream!r}, whose methods '
                f'`replaced` names; expected its methods with their hashes'
            )
        for method in entry.methods:
            absent = isinstance(entry.part, ModuleType) and not hasattr(entry.part, method)
            # a function that is absent: an older library, whose methods do not call it
            if method not in followed or absent:
                continue
            source = _differing_source(getattr(entry.part, method, None), followed[method])
            if source is not None:
                owner = entry.part if isinstance(entry.part, ModuleType | type) else type(entry.part)
                name = f'{owner.__name__}.{method}'
                differing[name] = _described(name, source, entry.upstream)
            elif not isinstance(entry.part, ModuleType):
                differing |= {called.name: called for called in called_of_copies(entry.part, method)}
        differing |= {hook.name: hook for hook in [*hooks_of(entry.part), *access_of(entry.part)]}
    live = (getattr(entry.part, method, None) for entry in entries for method in entry.methods)
    for method in called_of_others(function for function in live if function is not None):
        differing.setdefault(method.name, method)
    return list(differing.values())


def followed_functions(replaced: Iterable[Replaced], table: Table) -> list[Callable[..., Any]]:
    """Return the Python functions whose sources `differing_methods` compares, whether they differ or not.

    Those of decorators are among them, before the functions that they wrap, see `functions_behind`. After
    them come the functions of others that they call in the place of a library's, see `called_of_others`.
    A proof's search for code of the user that no graph has leaves them out.
    """
    live = [
        getattr(entry.part, method, None)
        for entry in replaced
        for method in entry.methods
        if method in table.get(entry.upstream, {})
    ]
    functions = [function for method in live if method is not None for function in functions_behind(method)]
    called = [behind for value in foreign_functions(functions).values() for behind in functions_behind(value)]
    return [*functions, *called]


def is_library_step(name: str) -> bool:
    """Return whether mmdet or mmdet3d has a pipeline step of this name; one that is not imported has none."""
    names = ('mmdet.datasets.pipelines', 'mmdet3d.datasets.pipelines')
    return any(hasattr(sys.modules.get(module), name) for module in names)


def differing_steps(steps: Iterable[Mapping[str, Any]], table: Table) -> list[DifferingMethod]:
    """Return the steps of a test pipeline that have a library's name, and are the user's or call its code.

    The rule in a file follows the library's steps, so that the samples of a proof judge others. Methods of a
    step in a copy of mmdet, and those that a plugin put into a library's step, count unless the table has
    them; those in a copy of mmdet3d do not count. `Compose` is compared with the steps; after them come the
    user's methods by which steps read files.

    Args:
        steps: the steps that a rule knows by their names, or all that `is_library_step` knows.
        table: 'mmdet.Resize' and others -> method -> hashes of the versions that the rule follows.
    """
    differing: dict[str, DifferingMethod] = {}
    steps = [dict(type='Compose'), *steps]
    names = dict.fromkeys(str(step.get('type')) for step in steps)
    kinds = dict.fromkeys((name, kind) for name in names for kind in data_classes(name, 'PIPELINES'))
    for name, kind in kinds:
        if not kind.__module__.startswith(LIBRARY_MODULES):
            differing[name] = _described(name, source_of_class(kind), f'mmdet.{name}')
            continue
        attributes = [
            (f'{base.__name__}.{attribute}', getattr(value, '__func__', value))
            for base in kind.__mro__
            for attribute, value in vars(base).items()
        ]
        functions = {method: value for method, value in attributes if isinstance(value, FunctionType)}
        released = table.get(f'mmdet.{name}', {})
        foreign = {method: value for method, value in functions.items() if is_foreign(value)}
        copied = {method for method, value in foreign.items() if module_of(value).startswith('mmdet3d.')}
        for method, function in foreign.items():
            hashes = released.get(function.__name__, ())
            is_followed = method in copied or _differing_source(function, hashes) is None
            if function.__name__ != '__repr__' and not is_followed:
                differing[method] = _described(method, source_of_function(function), f'mmdet.{name}')
        if not copied:
            differing |= {method.name: method for method in called_of_others(functions.values())}
    return [*differing.values(), *_differing_readers(steps)]


def _differing_readers(steps: Iterable[Mapping[str, Any]]) -> list[DifferingMethod]:
    """Return the user's methods that read the files of a pipeline, by mmcv's `file_client_args` of its steps.

    The runtime reads a file as it is on the disk; a backend of the user's may decrypt or replace it.
    """
    from mmcv.fileio import FileClient

    backends = {(step.get('file_client_args') or {}).get('backend', 'disk') for step in steps}
    kinds = (FileClient._backends.get(backend) for backend in sorted(map(str, backends)))
    methods = [(kind, getattr(kind, 'get', None)) for kind in kinds]
    return [
        _described(f'{kind.__name__}.get', source_of_function(method), 'mmcv.HardDiskBackend')
        for kind, method in methods
        if isinstance(method, FunctionType) and is_foreign(method)
    ]


def differing_datasets(settings: Iterable[Mapping[str, Any]], table: Table) -> list[DifferingMethod]:
    """Return the methods of data sets that make a test picture, and are the user's or call its code.

    A rule follows the steps of a pipeline; what a data set of the user's does before or after them, or to
    the list of them where it is built, is in no file.

    Args:
        settings: those of a config's data set, and of the data sets that it wraps.
        table: 'mmdet.CustomDataset' -> method -> hashes of the versions that do nothing else, those of
            mmdet's other data sets and wrappers included.
    """
    followed = table.get('mmdet.CustomDataset', {})
    differing: dict[str, DifferingMethod] = {}
    kinds = (data_class(dataset.get('type'), 'DATASETS') for dataset in settings)
    for kind in filter(None, kinds):
        methods = [(name, getattr(kind, name, None)) for name in (*followed, *SAMPLES_3D, '__init__')]
        functions = {
            name: value
            for name, value in methods
            if isinstance(value, FunctionType) and not module_of(value).startswith('mmdet3d.')
        }
        for name, function in functions.items():
            is_passed_on = name == '__init__' and not _changes_sample(function)
            if (
                is_foreign(function)
                and not is_passed_on
                and _differing_source(function, followed.get(name, ()))
            ):
                method = f'{kind.__name__}.{name}'
                differing[method] = _described(method, source_of_function(function), 'mmdet.CustomDataset')
        followed_functions = [function for name, function in functions.items() if name != '__init__']
        differing |= {method.name: method for method in called_of_others(followed_functions)}
    return list(differing.values())


def differing_loader() -> list[DifferingMethod]:
    """Return what mmdet's loader of test samples calls of the user's in a library's place, such as `collate`.

    A proof prepares its pictures without a loader.
    """
    from mmdet.datasets.builder import build_dataloader

    return called_of_others([build_dataloader])


def differing_library_datasets(settings: Iterable[Mapping[str, Any]]) -> list[DifferingMethod]:
    """Return the user's functions in the place of methods of a library's data set that make a test sample.

    A plugin put them there, whatever class of the user's is derived from the data set; methods of the user's
    own classes, and of a copy of the library, are not among them.

    Args:
        settings: those of a config's data set, and of the data sets that it wraps.
    """
    differing: dict[str, DifferingMethod] = {}
    for kind in filter(None, (data_class(dataset.get('type'), 'DATASETS') for dataset in settings)):
        for base in kind.__mro__:
            if not base.__module__.startswith(LIBRARY_MODULES):
                continue
            methods = {
                name: getattr(vars(base).get(name), '__func__', vars(base).get(name)) for name in SAMPLING
            }
            for name, function in methods.items():
                if not isinstance(function, FunctionType) or not is_foreign(function):
                    continue
                # not those of a copy of the library in the user's repository
                if module_of(function).partition('.')[0] != base.__module__.partition('.')[0]:
                    method = f'{base.__name__}.{name}'
                    differing[method] = _described(method, source_of_function(function), base.__module__)
    return list(differing.values())


def _changes_sample(function: FunctionType) -> bool:
    """Return whether the `__init__` of a data set changes the pipeline or the class of boxes of samples."""
    writes = [
        entry.argval for entry in dis.get_instructions(function.__code__) if entry.opname == 'STORE_ATTR'
    ]
    return 'box_type_3d' in writes or _changes_pipeline(function)


def _changes_pipeline(function: FunctionType) -> bool:
    """Return whether the `__init__` of a data set does more with `pipeline` than to pass it on."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):
        return 'pipeline' in (*function.__code__.co_names, *function.__code__.co_varnames)
    passed: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition('.')[2] in (
            '__init__',
            'Compose',
        ):
            passed.update([*node.args, *(keyword.value for keyword in node.keywords)])
        elif isinstance(node, ast.Assign) and ast.unparse(node.value) == 'Compose(pipeline)':
            passed.update(node.targets)
    named = (
        node
        for node in ast.walk(tree)
        if 'pipeline' in (getattr(node, key, None) for key in ('id', 'attr', 'value'))
    )
    return any(node not in passed for node in named)


def called_of_others(functions: Iterable[Any]) -> list[DifferingMethod]:
    """Return what functions call or use in the place of a library's, see `foreign_functions`.

    They count as methods that differ: neither the code of `functions` nor that of a graph shows them. Those
    of the user's among `functions` are passed over.
    """
    return [
        _described(name, source_of(value), name.rpartition('.')[0])
        for name, value in foreign_functions(functions).items()
    ]


def called_of_copies(part: Any, method: str) -> list[DifferingMethod]:
    """Return what a user's copy of a library's method has where the library's has something else.

    Args:
        part: live part of the user's model, whose class is derived from one of a library or of this package;
            of a class, as `Replaced` has it for a static method, nothing is returned.
        method: name of a method that a table follows.

    Returns:
        An entry for each name that stands for something else in the user's module; [] if the method is a
        library's, or has not the code of one, such as that of a fork's own head: its names have no
        counterparts.
    """
    *_, copy = functions_behind(getattr(part, method))
    versions = [vars(base)[method] for base in type(part).__mro__ if method in vars(base)]
    originals = [functions[-1] for version in versions if (functions := [*functions_behind(version)])]
    text = source_of_function(copy).sha256
    originals = [
        function
        for function in originals
        if not is_users(function) and source_of_function(function).sha256 == text
    ]
    if not is_users(copy) or not originals:
        return []
    return [
        _described(name, source_of(value), module_of(originals[0]))
        for name, value in foreign_globals(copy, originals[0]).items()
    ]


def hooks_of(part: Any) -> list[DifferingMethod]:
    """Return the user's hooks of a live part, which run if a part is called, but not if its `forward` is.

    A graph may call the part in the one way and the model in the other, or the graph computes it by itself.
    """
    kinds = ('_forward_pre_hooks', '_forward_hooks')
    hooks = [hook for kind in kinds for hook in vars(part).get(kind, {}).values()]
    name = f'a hook of {type(part).__name__}'
    return [_described(name, source_of(hook), type(part).__name__) for hook in hooks if is_users_value(hook)]


def access_of(part: Any) -> list[DifferingMethod]:
    """Return the user's methods of a live part that run where it is called or an attribute is looked up."""
    if isinstance(part, ModuleType):
        return []
    kind = part if isinstance(part, type) else type(part)
    owners = {name: next((base for base in kind.__mro__ if name in vars(base)), object) for name in ACCESS}
    return [
        _described(f'{kind.__name__}.{name}', source_of(vars(owner)[name]), owner.__name__)
        for name, owner in owners.items()
        if is_users_value(vars(owner).get(name))
    ]


def _described(name: str, source: SourceLines, upstream: str) -> DifferingMethod:
    return DifferingMethod(name, source.file, source.first, source.last, upstream)


def _differing_source(method: Any, hashes: Sequence[str]) -> SourceLines | None:
    """Return the source of a method that has none of these hashes; None if it has one of them.

    Of one that has, but with other default values than its definition states, these are returned.
    """
    functions = list(functions_behind(method))
    if not functions:
        return SourceLines('' if method is None else f'a {type(method).__name__}', 0, 0, '')
    for function in functions:
        source = source_of_function(function)
        if source.sha256[:DIGITS] in hashes:
            defaults = changed_defaults(function)
            return source_of(defaults) if defaults else None
        if module_of(function) not in DECORATORS or function is functions[-1]:
            return source
    return None


@functools.lru_cache
def table_of(folder: Path) -> Table:
    """Return the table of a family's folder, which is read once; empty if it has none."""
    path = folder / TABLE
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}


@functools.lru_cache
def older_tables(folder: Path) -> Mapping[str, Table]:
    """Return release of mmdet -> table, of `OLDER_TABLE` in the folder of a family; empty if it has none."""
    path = folder / OLDER_TABLE
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding='utf-8'))
    releases: list[str] = content['releases']
    tables: dict[str, dict[str, dict[str, list[str]]]] = {release: {} for release in releases}
    for kind, methods in content['methods'].items():
        for method, hashes in methods.items():
            for digest, ranges in hashes.items():
                for release in _releases_in(ranges, releases):
                    tables[release].setdefault(kind, {}).setdefault(method, []).append(digest)
    return tables


def _releases_in(ranges: str, order: Sequence[str]) -> Iterator[str]:
    """Yield the releases of a text such as '2.6.0-2.10.0, 2.12.0', in which `order` has all of them."""
    for entry in ranges.split(', '):
        first, _, last = entry.partition('-')
        yield from order[order.index(first) : order.index(last or first) + 1]


def as_imported(
    replaced: Iterable[Replaced], table: Table, older: Mapping[str, Table]
) -> tuple[list[Replaced], Table]:
    """Return the entries of a model's methods, and a table, as the graphs follow the imported mmdet.

    Of mmdet 2.28 or newer both stay, and so they do if `older` has no release that computes alike. Of an
    older one, `older` has the methods that its classes have in place of those of 2.28: those of its release
    count, or of another release in which the graphs are the same (a copy of mmdet in a repository may be
    newer than its version says), whichever differs less.

    Args:
        replaced: entries by the methods of mmdet 2.28.
        table: versions that the graphs follow of mmdet 2.28, and of classes that are not in `older`.
        older: release -> table of the versions that they follow of it, see `older_tables`.
    """
    entries, release = list(replaced), mmdet_release()
    if release >= TRIED:
        return entries, table
    alike = [
        of_version for version, of_version in older.items() if computes_alike(release, release_of(version))
    ]
    if not alike:
        return entries, table
    choices = []
    for of_version in alike:  # which has the methods of its classes; other classes keep theirs
        of_release = [
            dataclasses.replace(entry, methods=tuple(of_version.get(entry.upstream, entry.methods)))
            for entry in entries
        ]
        choices.append((of_release, {**table, **of_version}))
    if computes_alike(release, TRIED):
        choices.append((entries, table))
    return min(choices, key=lambda choice: len(differing_methods(*choice)))


def folder_of(family: object) -> Path:
    """Return the folder of the module that has a family's class."""
    return Path(str(sys.modules[type(family).__module__].__file__)).parent


def hash_of(method: Any) -> str:
    """Return the hash of a method as tables have it; decorators of `DECORATORS` do not count.

    It is that of the syntax tree, see `code_sha256`: comments and docstrings do not count. It is '' if the
    source cannot be read.

    ValueError: it is no function written in Python.
    """
    for function in functions_behind(method):
        if module_of(function) not in DECORATORS:
            return source_of_function(function).sha256[:DIGITS]
    raise ValueError(f'{method!r}: expected a function written in Python')


def installed_hashes(followed: Followed) -> dict[str, dict[str, str]]:
    """Return class or module -> method or function -> hash of the installed version, of those that exist."""
    installed: dict[str, dict[str, str]] = {}
    for kind, methods in followed:  # which may have several entries of one module
        digests = {name: hash_of(getattr(kind, name)) for name in methods if hasattr(kind, name)}
        installed.setdefault(kind.__name__, {}).update(digests)
    return installed


def changed_hashes(table: Table, installed: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield a line for each installed method whose hash is not in a table."""
    for kind, methods in installed.items():
        for method, digest in methods.items():
            hashes = table.get(kind, {}).get(method, ())
            if digest not in hashes:
                listed = ', '.join(hashes) or 'none'
                yield f'{kind}.{method}: the installed one is {digest}, the table follows {listed}'
