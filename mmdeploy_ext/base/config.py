"""Reading configs with clear errors, and paths into installed OpenMMLab packages."""

from __future__ import annotations

import ast
import contextlib
import copy
import difflib
import functools
import glob
import hashlib
import importlib
import importlib.util
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdeploy_ext.base.errors import (
    CheckpointError,
    ConfigError,
    Mm2OnnxError,
    UsageError,
    one_line,
    printable,
)
from mmdeploy_ext.base.user_modules import (
    FITTING_VERSIONS,
    find_modules,
    import_failure,
    import_older_models,
    imported_modules,
    is_python_config,
    named_imports,
    parsed_config,
    use_libraries_of,
    user_folders,
)

# YAML configs of mit-han-lab's repositories, as torchpack reads them, without torchpack (it starts MPI).


SUFFIXES = '.yaml', '.yml'


def read_yaml_config(path: str) -> dict[str, Any]:
    """Read a YAML config over the `default.yaml` of its repository's folders; `${EXPRESSION}` runs as Python.

    Its root is the nearest folder above with `.git` or named `configs`, else the current one, else the
    config's own.

    Source: torchpack 0.3.1, `Config.load(path, recursive=True)`, and `recursive_eval` of
    mit-han-lab/bevfusion 326653d, mmdet3d/utils/config.py.
    """
    file = Path(path).absolute()
    defaults = [folder / f'default{file.suffix}' for folder in reversed(_folders_of_repository(file))]
    values: dict[str, Any] = {}
    for source in [*(default for default in defaults if default.is_file() and default != file), file]:
        _update(values, _mapping(source))
    names = _with_attributes(copy.deepcopy(values))
    return {key: _evaluated(value, names, f'{path}: {key}') for key, value in values.items()}


def _folders_of_repository(file: Path) -> list[Path]:
    parents = list(file.parents)
    marked = (folder for folder in parents if (folder / '.git').exists() or folder.name == 'configs')
    roots = [*marked, Path.cwd(), file.parent]
    root = next(folder for folder in roots if folder in parents)
    return parents[: parents.index(root) + 1]


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path}: is not YAML: {one_line(error)}') from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f'{path}: is a {type(content).__name__}; expected keys and values')
    return content


def _update(values: dict[str, Any], overrides: dict[str, Any]) -> None:
    for key, value in overrides.items():
        if isinstance(value, dict):
            if not isinstance(values.get(key), dict):
                values[key] = {}
            _update(values[key], value)
        else:
            values[key] = value


def _with_attributes(value: Any) -> Any:
    from mmcv import ConfigDict

    if isinstance(value, dict):
        return ConfigDict({key: _with_attributes(entry) for key, entry in value.items()})
    return [_with_attributes(entry) for entry in value] if isinstance(value, list) else value


def _evaluated(value: Any, names: dict[str, Any], place: str, depth: int = 0) -> Any:
    if isinstance(value, dict):
        return {key: _evaluated(entry, names, f'{place}.{key}', depth) for key, entry in value.items()}
    if isinstance(value, list):
        return [_evaluated(entry, names, f'{place}[{index}]', depth) for index, entry in enumerate(value)]
    if not (isinstance(value, str) and value.startswith('${') and value.endswith('}')):
        return value
    if depth > len(names):
        raise ConfigError(f'{place}: {value} refers to itself')
    try:
        result = eval(value[2:-1], dict(names))
    except Exception as error:  # an expression may raise anything
        raise ConfigError(f'{place}: {value}: {type(error).__name__}: {error}') from error
    return _evaluated(copy.deepcopy(result), names, place, depth + 1)


# Ranges and voxel sizes that a config states at several places.


RANGES, SIZES = ('point_cloud_range', 'pc_range'), ('voxel_size',)
TRAINING = 'train_cfg'


def disagreements(cfg: Any) -> list[str]:
    """Sentences about a range, or a voxel size, of the model that differs from the one of its voxels."""
    stated = [*_stated(cfg.model, 'model')]
    found = []
    for names in (RANGES, SIZES):
        places = {key: values for key, values in stated if key.rpartition('.')[2] in names}
        first = next((key for key in places if 'voxel_layer' in key or 'voxelize' in key), None)
        if first is None:
            continue
        found += [
            f'{key} {list(values)} is not {first} {list(places[first])}: boxes would be off by the difference'
            for key, values in places.items()
            if not _agree(values, places[first])
        ]
    return found


def _stated(part: Any, key: str) -> Iterator[tuple[str, tuple[float, ...]]]:
    if not isinstance(part, Mapping):
        for index, entry in enumerate(part) if isinstance(part, list | tuple) else ():
            yield from _stated(entry, f'{key}.{index}')
        return
    for name, value in part.items():
        if name == TRAINING:
            continue
        is_numbers = isinstance(value, list | tuple) and all(isinstance(one, int | float) for one in value)
        if name in (*RANGES, *SIZES) and is_numbers:
            yield f'{key}.{name}', tuple(value)
        else:
            yield from _stated(value, f'{key}.{name}')


def _agree(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Compare x and y: coders state no z, or that of the whole height."""
    if len(one) == len(other) == 6:
        one, other = (one[0], one[1], one[3], one[4]), (other[0], other[1], other[3], other[4])
    return one[:2] == other[:2] and (len(one) < 4 or len(other) < 4 or one[2:4] == other[2:4])


MOST_BASES = 50
"""Most bases of bases: mmdet has five."""
SHORTEST_TYPO = 4
"""Shortest key that may be reported as a typo."""
CONFIG_SUFFIXES = ('.py', '.yml', '.yaml', '.json')
CATALOGUE = 'mmdeploy_ext.upstream.models.catalogue'
MMDET3 = 'mmdeploy_ext.upstream.weights.convert.mmdet3_config'
LOADERS3 = 'test_dataloader', 'val_dataloader'
"""Keys of mmengine; the first that has a data set gives the test pipeline."""
OF_MMDET2 = 'data.', 'backend_config.'
"""Begins of keys that a config of mmdet 3 has after its translation."""
DUPLICATE = 'Duplicate key is not allowed among bases'
bases: dict[str, str] = {}
"""Missing file of `_base_` -> the file that was read in its place, in this process."""
READING = (b'_base_', b'import', b'open(')
"""Words of a config that may read other files."""


def mmdet_config(relative: str, library: str = 'mmdet') -> str:
    """Absolute path of a config of an installed library, for `_base_`; `relative` is below `configs/`."""
    package = importlib.util.find_spec(library)
    if package is None or package.origin is None:
        raise ConfigError(
            f'{library} is not installed: run `make env`, or install requirements/openmmlab.txt'
        )
    root = Path(package.origin).parent
    for folder in (root / '.mim' / 'configs', root.parent / 'configs'):
        if (folder / relative).is_file():
            return str(folder / relative)
    raise ConfigError(f'configs/{relative}: is not in the installed {library} ({root}); correct the path')


def mmdet3d_config(relative: str) -> str:
    return mmdet_config(relative, 'mmdet3d')


def config_path(word: str | os.PathLike[str]) -> str:
    """Path of a config; `mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py` is one of the installed mmdet."""
    library, separator, relative = str(word).partition('::')
    return mmdet_config(relative, library) if separator and library in FITTING_VERSIONS else str(word)


def _installed_configs(name: str) -> list[str]:
    """`mmdet::FOLDER/NAME` of the installed libraries' configs with a file name."""
    packages = {library: importlib.util.find_spec(library) for library in FITTING_VERSIONS}
    folders = {
        library: Path(package.origin).with_name('.mim') / 'configs'
        for library, package in packages.items()
        if package and package.origin
    }
    return [
        f'{library}::{file.relative_to(folder).as_posix()}'
        for library, folder in folders.items()
        for file in folder.glob(f'*/{name}')
    ]


@contextlib.contextmanager
def refused_by_name(cfg: Any) -> Iterator[None]:
    """Begin each ConfigError in the block with the file name of `cfg`, once.

    `model.test_cfg` in the message becomes the config's own key.
    """
    try:
        yield
    except ConfigError as error:
        if str(error).startswith(f'{cfg.filename}: '):
            raise
        message = str(error).replace('model.test_cfg', test_cfg_key(cfg))
        raise type(error)(f'{cfg.filename}: {message}') from error


def test_cfg_key(cfg: Any) -> str:
    """Key of the test settings: in the model or beside it."""
    is_beside = cfg.get('test_cfg') and not (cfg.get('model') or {}).get('test_cfg')
    return 'test_cfg' if is_beside else 'model.test_cfg'


def cfg_options(values: Mapping[str, Any]) -> str:
    """Words of a command line that set these values (dotted key -> value)."""
    return '--cfg-options ' + shlex.join(f'{key}={value}' for key, value in values.items())


@contextlib.contextmanager
def refused_values(cfg: Any, part: str) -> Iterator[None]:
    """Turn Python errors in the block into a ConfigError that names `part`."""
    try:
        yield
    except Mm2OnnxError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f'{cfg.filename}: {part} cannot be read: {type(error).__name__}: {error}; correct its values'
        ) from error


def load_config(path: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """Read an `mmcv.Config`, import its plugins and apply `--cfg-options` (dotted key -> value).

    A config of mmdet 3 with its overrides is translated. ConfigError: missing file, syntax error, failing
    import, unfitting override, or a config of mmdet 3 with parts that are not known here.
    """
    check_config_file(path)
    try:
        use_libraries_of(path, lambda: _types_of_others(path))
        cfg = read_config(path)
        for note in _mistyped_keys(dict(cfg.items()), overrides or {}):
            print(printable(f'note: {note}'), file=sys.stderr)
        late = {}
        if is_config3(cfg):  # translated before its modules are imported, which need mmdet 3
            late = {key: value for key, value in (overrides or {}).items() if key.startswith(OF_MMDET2)}
        _override(cfg, {key: value for key, value in (overrides or {}).items() if key not in late})
        _check_types(cfg, path)
        if is_config3(cfg):
            cfg = importlib.import_module(MMDET3).to_mmdet2_config(cfg)
            _override(cfg, late)
        import_older_models()
        importlib.import_module(CATALOGUE).register_after(lambda: _import_plugins(cfg, path), cfg)
    except (UsageError, ConfigError):
        raise
    except (Exception, SystemExit) as error:
        raise _unreadable(path, error) from error
    return cfg


def _unreadable(path: str, error: BaseException) -> ConfigError:
    if isinstance(error, SystemExit):
        return ConfigError(f'{path}: ends this process with status {error.code}; remove the exit')
    if isinstance(error, RecursionError):
        return ConfigError(f'{path}: has a value that contains itself, or is nested too deeply')
    if isinstance(error, SyntaxError):
        return ConfigError(f'{path}: syntax error: {_shortened(error, path)}')
    missing = error.filename if isinstance(error, FileNotFoundError) else ''
    if missing and not os.path.exists(missing):
        return ConfigError(
            f'{path}: cannot be read: the file {os.path.normpath(missing)} (e.g. a `_base_`) does not '
            'exist; copy it there, or correct the path'
        )
    if list_words := _words_of_list(error):
        return ConfigError(f'{path}: {list_words}')
    advice = ''
    if DUPLICATE in str(error):
        advice = '; mmcv 1.7.2 allows a key in one file of `_base_` only: keep it in one of them'
    return ConfigError(f'{path}: cannot be read: {import_failure(error)}{advice}')


def _words_of_list(error: BaseException) -> str:
    """Advice for a dict that mmcv does not merge into a list of the base, or ''."""
    frames = [
        frame.f_locals
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == '_merge_a_into_b' and 'k' in frame.f_locals
    ]
    if not frames or not isinstance(error, TypeError):
        return ''
    key, values = '.'.join(str(frame['k']) for frame in frames), frames[-1]['v']
    entries = frames[-1]['b'].get(frames[-1]['k'])
    if not isinstance(entries, list) or not isinstance(values, dict):
        return ''
    numbers = range(len(entries))
    words = {f'{key}.{index}.{name}': value for index in numbers for name, value in _leaves(values)}
    return (
        f'{key} is a dict, and a list in its base: remove it from the config, and pass {cfg_options(words)}'
    )


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ((f'{key}.{inner}', leaf) for inner, leaf in _leaves(value))
        else:
            yield key, value


def read_config(path: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """Read an `mmcv.Config` without importing `custom_imports` and `plugin_dir`; errors of mmcv pass."""
    from mmcv import Config

    with installed_bases():
        if Path(path).suffix in SUFFIXES and '_base_' not in Path(path).read_text(encoding='utf-8'):
            cfg = Config(read_yaml_config(path), filename=path)  # as torchpack reads it
        else:
            try:
                with _closed_temporary_files():
                    cfg = Config.fromfile(path, import_custom_modules=False)
            except Exception:
                if not _only_in_mmengine(path):
                    raise
                cfg = importlib.import_module(MMDET3).read_mmdet3_config(path)
    _override(cfg, overrides)
    return cfg


def _check_types(cfg: Any, path: str) -> None:
    for key in ('model', 'data'):
        if not isinstance(cfg.get(key) or {}, dict):
            raise ConfigError(f'{path}: {key}={cfg[key]!r}, expected a dict')


def _override(cfg: Any, overrides: Mapping[str, Any] | None) -> None:
    if overrides:
        cfg.merge_from_dict(copy.deepcopy(dict(overrides)))  # mmcv removes `_delete_` from it


def _shortened(error: SyntaxError, path: str) -> str:
    pattern = r'There are syntax errors in config file (.+?): (.+) \(.+, line (\d+)\)'
    if not (match := re.fullmatch(pattern, str(error), re.DOTALL)):
        return str(error)
    file, reason, line = match.groups()
    is_base = os.path.realpath(file) != os.path.realpath(path)
    return f'{reason} ({file}, line {line})' if is_base else f'{reason} (line {line})'


def _mistyped_keys(cfg: dict[str, Any], overrides: Mapping[str, Any]) -> Iterator[str]:
    for key in overrides:
        values, parts = cfg, key.split('.')
        if parts[0] == 'backend_config':
            continue
        for count, part in enumerate(parts, 1):
            if isinstance(values, list | tuple) and part.isdecimal() and int(part) < len(values):
                values = values[int(part)]
                continue
            if not isinstance(values, dict):
                break
            if part not in values:
                similar = difflib.get_close_matches(part, map(str, values), 1, 0.8)
                if similar and len(part) >= SHORTEST_TYPO:
                    typed, meant = '.'.join(parts[:count]), '.'.join([*parts[: count - 1], *similar])
                    yield f'--cfg-options {key}: {typed} is new in the config; did you mean {meant}?'
                break
            values = values[part]


def is_config3(cfg: Mapping[str, Any]) -> bool:
    keys = ('data_preprocessor', *LOADERS3)
    return 'data_preprocessor' in (cfg.get('model') or ()) or any(key in cfg for key in keys)


def check_config_file(path: str) -> None:
    if Path(path).is_dir():
        raise ConfigError(f'{path}: is a folder; pass the config file in it')
    if not Path(path).is_file():
        found = _installed_configs(glob.escape(Path(path).name))
        advice = f'; the installed one is {" or ".join(found)}' if found else ''
        raise ConfigError(f'{path}: no such config file{advice}')
    if Path(path).suffix not in CONFIG_SUFFIXES:
        raise ConfigError(
            f'{path}: is not a config; expected a file ending in {", ".join(CONFIG_SUFFIXES)}; the config '
            f'comes before the checkpoint'
        )


def check_checkpoint_file(path: str) -> None:
    if Path(path).is_dir():
        raise CheckpointError(f'{path}: is a folder; pass the checkpoint file in it')
    if not Path(path).exists():
        raise CheckpointError(f'{path}: no such checkpoint file')
    if not Path(path).is_file():
        raise CheckpointError(f'{path}: is a pipe or a device; copy the checkpoint to a file')


def _only_in_mmengine(path: str) -> bool:
    """Whether a file or a base has `_base_.data_root` or `mmdet::_base_/x.py`, or is pure Python."""
    with nested_config(path):
        return _has_mmengine_form(path)


def _has_mmengine_form(path: str) -> bool:
    tree = parsed_config(path)
    if is_python_config(tree):
        return True
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == '_base_':
            return True
        if isinstance(node, ast.Assign) and '_base_' in map(ast.unparse, node.targets):
            texts = (value.value for value in ast.walk(node.value) if isinstance(value, ast.Constant))
            for text in map(str, texts):
                file = Path(path).parent / text
                if '::' in text or (file.is_file() and _only_in_mmengine(str(file))):
                    return True
    return False


CHECKOUTS = {'mmdetection3d/configs/': mmdet3d_config, 'mmdetection/configs/': mmdet_config}
"""Folder of configs in a checkout -> function that finds them in the installed library."""


@contextlib.contextmanager
def replaced_entry(config: dict[str, Any], key: str, value: Any) -> Iterator[None]:
    absent = object()
    before = config.get(key, absent)
    config[key] = value
    try:
        yield
    finally:
        config[key] = before
        if before is absent:
            del config[key]


_open_configs: list[str] = []
"""Real paths of a config and its bases that are being read."""


@contextlib.contextmanager
def nested_config(path: str | Path) -> Iterator[None]:
    """Read a config inside; ConfigError: it is a base of itself, or of more than `MOST_BASES` files."""
    real = os.path.realpath(path)
    if real in _open_configs:
        ring = ' -> '.join([*_open_configs[_open_configs.index(real) :], real])
        raise ConfigError(f'{path}: is a base of itself ({ring}); remove a `_base_`')
    if len(_open_configs) >= MOST_BASES:
        raise ConfigError(f'{path}: is behind more than {MOST_BASES} bases; join some of them')
    _open_configs.append(real)
    try:
        yield
    finally:
        _open_configs.remove(real)


@contextlib.contextmanager
def installed_bases() -> Iterator[None]:
    """Redirect `_base_` files that are missing, see `_base_elsewhere`.

    Patches `Config._file2dict` of mmcv 1.7.2 inside the block.
    """
    from mmcv import Config

    original = vars(Config)['_file2dict']

    def file2dict(filename: str, *args: Any) -> Any:
        if not Path(filename).is_file():
            filename = _base_elsewhere(os.path.normpath(os.path.abspath(filename)))
        with nested_config(filename):
            return read_file(filename, *args)

    def read_file(filename: str, *args: Any) -> Any:
        text = Path(filename).read_bytes()
        if b'import' in text:
            find_modules(imported_modules(filename), filename)
        if not any(word in text for word in READING):
            path = os.path.abspath(filename)
            return copy.deepcopy(_dict_of_text(text, original.__func__, path, *args))
        return original.__func__(filename, *args)

    Config._file2dict = staticmethod(file2dict)
    try:
        yield
    finally:
        Config._file2dict = original


def _base_elsewhere(missing: str) -> str:
    """A file for a missing one of `_base_`, which is said; `missing` itself if there is none.

    A path in a checkout of mmdet or mmdet3d is of the installed one. Else a file of the same name
    (`_base_/schedules/schedule_1x.py`) is looked for in the folders of configs above, then in the installed
    libraries, first those that the repository has a copy of.
    """
    path = Path(missing).as_posix()
    for checkout, installed_config in CHECKOUTS.items():
        _, in_checkout, relative = path.partition(f'/{checkout}')
        if in_checkout:
            bases[missing] = installed_config(relative)
            return bases[missing]
    above, separator, name = path.rpartition('/_base_/')
    if separator:
        name = f'_base_/{name}'
    else:
        above, _, name = path.rpartition('/configs/')
    folders = [folder for folder in Path(above).parents if 'configs' in folder.parts]
    found = next((str(folder / name) for folder in folders if (folder / name).is_file()), '')
    copies = [
        library
        for library in FITTING_VERSIONS
        for folder in user_folders(missing)
        if (folder / library).is_dir()
    ]
    for library in () if found or not name else dict.fromkeys([*copies, *FITTING_VERSIONS]):
        with contextlib.suppress(ConfigError):
            found = mmdet_config(name, library)
            break
    if found:
        bases[missing] = found
        _note(f'{missing}, a file of _base_, is missing: {found} is used instead')
    return found or missing


@functools.cache
def _note(text: str) -> None:
    print(printable(f'note: {text}'), file=sys.stderr)


@functools.lru_cache(maxsize=256)
def _dict_of_text(text: bytes, file2dict: Callable[..., Any], filename: str, *args: Any) -> Any:
    """`file2dict` of a file with this text; it depends on nothing else since no word is of `READING`."""
    return file2dict(filename, *args)


@contextlib.contextmanager
def _closed_temporary_files() -> Iterator[None]:
    """mmcv 1.7.2 leaves a file open when a config raises, which prints a traceback at exit."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raised: BaseException | None = error
        while raised is not None:
            for frame, _ in traceback.walk_tb(raised.__traceback__):
                if 'temp_config_file' in frame.f_locals:
                    with contextlib.suppress(OSError):  # its folder is gone already
                        frame.f_locals['temp_config_file'].close()
            raised = raised.__context__
        raise


def _types_of_others(path: str) -> set[str]:
    """Types of a config's model that this package does not offer."""
    types = {name for _, name in types_of(read_config(path).get('model'))}
    return types - importlib.import_module(CATALOGUE).MODULES.keys()


def _import_plugins(cfg: Any, path: str) -> None:
    from mmcv import import_modules_from_strings

    if settings := cfg.get('custom_imports'):
        names = settings.get('imports') or ()
        with named_imports(path, 'custom_imports', [names] if isinstance(names, str) else names):
            import_modules_from_strings(**settings)
    if cfg.get('plugin'):
        module = '.'.join(Path(cfg.get('plugin_dir') or Path(path).parent).parts)
        with named_imports(path, 'plugin_dir', [module]):
            importlib.import_module(module)


def config_sha256(cfg: Any) -> str:
    """SHA-256 (hexadecimal) of model, test settings and test pipeline, without schedules and data paths."""
    decisive = {'model': cfg.get('model'), 'pipeline': test_pipeline(cfg)}
    if cfg.get('test_cfg'):  # beside the model
        decisive['test_cfg'] = cfg['test_cfg']
    return hashlib.sha256(_canonical(decisive).encode()).hexdigest()


def _canonical(value: Any) -> str:
    if isinstance(value, dict):
        return '{' + ','.join(f'{key!s}:{_canonical(value[key])}' for key in sorted(value, key=str)) + '}'
    if isinstance(value, list | tuple):
        return '[' + ','.join(map(_canonical, value)) + ']'
    return repr(value)


def test_datasets(cfg: Any) -> Iterator[dict[str, Any]]:
    """Yield the settings of `data.test`, then of the data sets that it lists or wraps."""
    remaining = [(cfg.get('data') or {}).get('test')]
    while remaining:
        dataset = remaining.pop(0)
        if isinstance(dataset, list | tuple):
            remaining += dataset
        elif isinstance(dataset, dict):
            yield dataset
            remaining += [dataset[name] for name in INNER_DATASETS if dataset.get(name)]


INNER_DATASETS = 'dataset', 'datasets'
"""Keys of wrappers, such as ConcatDataset, for what they wrap."""


def _wrapped(cfg: Any, section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    key, dataset = f'data.{section}', (cfg.get('data') or {}).get(section)
    while dataset:
        if isinstance(dataset, list | tuple):
            key, dataset = f'{key}.0', dataset[0]
        elif isinstance(dataset, dict):
            yield key, dataset
            name = 'dataset' if dataset.get('dataset') else 'datasets'
            key, dataset = f'{key}.{name}', dataset.get(name)
        else:
            return


def test_dataset(cfg: Any) -> dict[str, Any]:
    """Settings of the innermost test data set, or {}."""
    return next(reversed([dataset for _, dataset in _wrapped(cfg, 'test')]), {})


def test_pipeline(cfg: Any) -> list[dict[str, Any]]:
    """Steps of `data.test`, else of `data.val`, else `test_pipeline`."""
    return keyed_test_pipeline(cfg)[1]


def keyed_test_pipeline(cfg: Any) -> tuple[str, list[dict[str, Any]]]:
    """Key and steps of the test pipeline, such as 'data.test.pipeline'."""
    filename = getattr(cfg, 'filename', 'the config')
    for section in ('test', 'val'):
        for key, dataset in _wrapped(cfg, section):
            if dataset.get('pipeline'):
                check_steps(dataset['pipeline'], f'{filename}: the pipeline of data.{section}')
                for other in test_datasets(cfg) if section == 'test' else ():
                    if other.get('pipeline', dataset['pipeline']) != dataset['pipeline']:
                        _note(f'{filename}: data.test has several pipelines; {key}.pipeline is used')
                return f'{key}.pipeline', dataset['pipeline']
    pipeline = cfg.get('test_pipeline')
    if not pipeline:
        raise ConfigError(
            f'{filename}: has neither data.test.pipeline nor test_pipeline; add one: it '
            f'defines the size and normalisation of images'
        )
    check_steps(pipeline, f'{filename}: test_pipeline')
    return 'test_pipeline', pipeline


def check_steps(steps: Any, title: str) -> None:
    """Raise ConfigError unless each step, also inside `transforms`, is a dict with `type`.

    mmdet's own scope is dropped: 'mmdet.Resize' and 'Resize' are the same class.
    """
    if not isinstance(steps, list | tuple):
        raise ConfigError(f'{title} is {steps!r}; expected a list of steps, each a dict with `type`')
    for step in steps:
        if not isinstance(step, dict) or not isinstance(step.get('type'), str | type):
            raise ConfigError(f'{title} has the step {step!r}; expected a dict with `type`')
        if isinstance(step['type'], str):
            step['type'] = step['type'].removeprefix('mmdet.')
        if step.get('transforms'):
            check_steps(step['transforms'], f'{title}: transforms of {step["type"]}')


def types_of(part: Any, prefix: str = '') -> Iterator[tuple[str, str]]:
    """Yield key and name of each textual `type`, such as ('model.neck.type', 'FPN')."""
    start = f'{prefix}.' if prefix else ''
    if isinstance(part, dict):
        if isinstance(part.get('type'), str):
            yield f'{start}type', part['type']
        for key, value in part.items():
            yield from types_of(value, f'{start}{key}')
    elif isinstance(part, list | tuple):
        for index, value in enumerate(part):
            yield from types_of(value, f'{start}{index}')


AUGMENTATIONS = ('MultiScaleFlipAug', 'MultiScaleFlipAug3D')

SCALES = dict(img_scale='scales', pts_scale_ratio='scales of points')
"""Key that may list several scales -> its name in notes."""


def without_augmentation(cfg: Any) -> tuple[str, ...]:
    """Remove test-time augmentation of `data.test` in place (scale 1.0 or the first stays); return notes."""
    removed = []
    for step in augmentations(cfg):
        if step.get('flip'):
            step['flip'] = False
            removed.append('flip')
        for key, name in SCALES.items():
            scales = step.get(key)
            if isinstance(scales, list) and len(scales) > 1:
                step[key] = 1.0 if 1.0 in scales else scales[0]
                removed.append(name)
    if not removed:
        return ()
    return (f'test-time augmentation left out: {", ".join(dict.fromkeys(removed))}',)


def augmentations(cfg: Any) -> Iterator[Any]:
    for dataset in test_datasets(cfg):
        yield from (step for step in dataset.get('pipeline') or () if step.get('type') in AUGMENTATIONS)
