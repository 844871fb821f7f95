"""Config files: reading them with clear errors, and paths into the installed OpenMMLab packages."""

import ast
import contextlib
import copy
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdeploy_ext.core.commands import command
from mmdeploy_ext.core.errors import ConfigError, Mm2OnnxError, UsageError, printable
from mmdeploy_ext.core.files import will_read
from mmdeploy_ext.core.user_modules import (
    find_modules,
    import_failure,
    imported_modules,
    named_imports,
    parsed_config,
    use_libraries_of,
)
from mmdeploy_ext.core.yaml_config import SUFFIXES, read_yaml_config

SHORTEST_TYPO = 4
"""Characters of a key from which on a new one may be a mistyped one."""
CONFIG_SUFFIXES = ('.py', '.yml', '.yaml', '.json')
"""Endings of the files that mmcv reads as configs."""
CATALOGUE = 'mmdeploy_ext.models.catalogue'
"""The module that registers our models, for types of a config that nobody else has registered."""


def mmdet_config(relative: str, library: str = 'mmdet') -> str:
    """Return the absolute path of a config of an installed library, for use in `_base_`.

    Args:
        relative: path below its `configs/`, e.g. 'atss/atss_r50_fpn_1x_coco.py'.
        library: package that has the config, such as 'mmdet' or 'mmdet3d'.

    Raises:
        ConfigError: the library is not installed, or has no such config.
    """
    package = importlib.util.find_spec(library)
    if package is None or package.origin is None:
        raise ConfigError(
            f'{library} is not installed: run `make env`, or install requirements/openmmlab.txt'
        )
    root = Path(package.origin).parent
    for folder in (root / '.mim' / 'configs', root.parent / 'configs'):
        if (folder / relative).is_file():
            return str(folder / relative)
    raise ConfigError(f'configs/{relative} is not in the installed {library} ({root})')


def mmdet3d_config(relative: str) -> str:
    """Return the absolute path of a config of the installed mmdet3d, with the errors of `mmdet_config`.

    `relative` is below its `configs/`.
    """
    return mmdet_config(relative, 'mmdet3d')


@contextlib.contextmanager
def refused_by_name(cfg: Any) -> Iterator[None]:
    """Let messages of a ConfigError in the block begin with the file name of `cfg`, an `mmcv.Config`, once.

    They name `model.test_cfg`; the message has the config's own key of it.
    """
    try:
        yield
    except ConfigError as error:
        if str(error).startswith(f'{cfg.filename}: '):
            raise
        message = str(error).replace('model.test_cfg', test_cfg_key(cfg))
        raise ConfigError(f'{cfg.filename}: {message}') from error


def test_cfg_key(cfg: Any) -> str:
    """Return the key of a config's settings of tests, which may be in the model or beside it."""
    is_beside = cfg.get('test_cfg') and not (cfg.get('model') or {}).get('test_cfg')
    return 'test_cfg' if is_beside else 'model.test_cfg'


def cfg_options(values: Mapping[str, Any]) -> str:
    """Return the words that set these values (dotted key -> value), for the end of a message."""
    return '--cfg-options ' + shlex.join(f'{key}={value}' for key, value in values.items())


@contextlib.contextmanager
def refused_values(cfg: Any, part: str) -> Iterator[None]:
    """Let an error of Python in the block, such as that of a text for a number, be a ConfigError.

    It names the file of `cfg`, an `mmcv.Config`, and the `part` of it that is read there. Errors of this
    package stay as they are.
    """
    try:
        yield
    except Mm2OnnxError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f'{cfg.filename}: {part} cannot be read: {type(error).__name__}: {error}; correct its values'
        ) from error


def load_config(path: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """Read an mmcv config, import its plugins and apply `--cfg-options`.

    Args:
        path: path of the config, Python, YAML or JSON.
        overrides: dotted key, such as 'model.test_cfg.score_thr' -> value, over those of the file; with None
            nothing is replaced. A new key that resembles one of the file is a note on stderr.

    Returns:
        An `mmcv.Config`.

    Raises:
        ConfigError: missing file, syntax error, failing import, an override that does not fit, or a config of
            mmdet 3.
        UsageError: a file of the config, or an annotation file that it names, is an output of this run.
    """
    _check_config_file(path)
    try:
        use_libraries_of(path)
        cfg = read_config(path)
        for note in _mistyped_keys(dict(cfg.items()), overrides or {}):
            print(printable(f'note: {note}'), file=sys.stderr)
        _override(cfg, overrides)
        _check_types(cfg, path)
        if is_config3(cfg):  # before its modules, which need mmdet 3
            raise ConfigError(_translate_first(path))
        catalogue = importlib.import_module(CATALOGUE)
        with catalogue.giving_way():
            _import_plugins(cfg, path)
        catalogue.register_named(cfg)
    except UsageError:
        raise
    except SyntaxError as error:
        raise ConfigError(f'{path}: syntax error: {_shortened(error, path)}') from error
    except Exception as error:
        if reason := _only_in_mmengine(path):
            raise ConfigError(_translate_first(path, reason)) from error
        missing = error.filename if isinstance(error, FileNotFoundError) else ''
        if missing and not os.path.exists(missing):
            raise ConfigError(
                f'{path}: cannot be read: {os.path.normpath(missing)}, which it needs, such as for `_base_`: '
                f'no such file; copy it there, or correct the path'
            ) from error
        raise ConfigError(f'{path}: cannot be read: {import_failure(error)}') from error
    will_read('an annotation file of the config', _annotations(cfg.get('data')))
    return cfg


def read_config(path: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """Return the `mmcv.Config` of a file with overrides as in `load_config`, without importing its plugins.

    These are the modules of `custom_imports` and `plugin_dir`. A Python config is run, with its own imports.
    Whatever mmcv raises about the file is raised here; `path` is as in `load_config`, too.
    """
    from mmcv import Config

    with _closed_temporary_files(), installed_bases():
        if Path(path).suffix in SUFFIXES and '_base_' not in Path(path).read_text(encoding='utf-8'):
            cfg = Config(read_yaml_config(path), filename=path)  # as torchpack reads it
        else:
            cfg = Config.fromfile(path, import_custom_modules=False)
    _override(cfg, overrides)
    return cfg


def _check_types(cfg: Any, path: str) -> None:
    """Refuse a `model` or `data` that is no dict, and a detector that is no name or class."""
    if not isinstance(cfg.get('model', {}), dict):
        raise ConfigError(f'{path}: model={cfg.model!r}, expected a dict with `type`')
    if not isinstance(cfg.get('model', {}).get('type', ''), str | type):
        raise ConfigError(f'{path}: model.type={cfg.model.type!r}, expected the name of a detector')
    if not isinstance(cfg.get('data') or {}, dict):
        raise ConfigError(f'{path}: data={cfg.data!r}, expected a dict of data sets')


def _override(cfg: Any, overrides: Mapping[str, Any] | None) -> None:
    if overrides:
        cfg.merge_from_dict(copy.deepcopy(dict(overrides)))  # mmcv removes `_delete_` from it


def _shortened(error: SyntaxError, path: str) -> str:
    """Return the message of mmcv about a syntax error, with the place once, as '(FILE, line 3)'.

    Of the config itself, which is at `path`, the file is left out, since it begins the message of the caller.
    """
    pattern = r'There are syntax errors in config file (.+?): (.+) \(.+, line (\d+)\)'
    if not (match := re.fullmatch(pattern, str(error), re.DOTALL)):
        return str(error)
    file, reason, line = match.groups()
    is_base = os.path.realpath(file) != os.path.realpath(path)
    return f'{reason} ({file}, line {line})' if is_base else f'{reason} (line {line})'


def _mistyped_keys(cfg: dict[str, Any], overrides: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note about each override whose key is new and resembles one beside it, such as `scor_thr`.

    `cfg` has the values of the config without the overrides. A new key is not refused: mmcv adds it. Those of
    `backend_config` are left to its reader, which refuses unknown ones, and short names resemble many.
    """
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
    """Return whether a config is one of mmdet 3, by `data_preprocessor` of its model or `test_dataloader`."""
    return 'data_preprocessor' in (cfg.get('model') or ()) or 'test_dataloader' in cfg


def _check_config_file(path: str) -> None:
    """Raise a ConfigError if a path is no file, or a file with a suffix that no config has."""
    if Path(path).is_dir():
        raise ConfigError(f'{path}: is a folder; give the file of the config in it')
    if not Path(path).is_file():
        raise ConfigError(f'{path}: no such config file')
    if Path(path).suffix not in CONFIG_SUFFIXES:
        raise ConfigError(
            f'{path}: is no config; expected a file ending in {", ".join(CONFIG_SUFFIXES)}; the config comes '
            f'before the checkpoint'
        )


def _only_in_mmengine(path: str) -> str:
    """Return what a config has that mmengine alone reads, as ' (it uses `...`)'; '' if it has nothing.

    That is an expression with a value of its bases, such as `_base_.data_root`, for which mmcv 1.7.2 has
    `{{_base_.name}}`, or a base of a package, such as `mmdet::_base_/default_runtime.py`.
    """
    for node in ast.walk(parsed_config(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == '_base_':
            return f' (it uses `{ast.unparse(node)}`)'
        if isinstance(node, ast.Assign) and '_base_' in map(ast.unparse, node.targets):
            for value in ast.walk(node.value):
                if isinstance(value, ast.Constant) and '::' in str(value.value):
                    return f' (it uses `{value.value}`)'
    return ''


def _translate_first(path: str, reason: str = '') -> str:
    """Return the message about a config of mmdet 3."""
    return (
        f'{path}: is a config of mmdet 3{reason}; translate it first: '
        f'`{command("convert mmdet3")} {shlex.quote(path)} OUT.py`, and give OUT.py'
    )


def _annotations(data: Any) -> Iterator[str]:
    """Yield the annotation files of a config's data sets; a relative one is below `data_root`, too."""
    if isinstance(data, list | tuple):
        for item in data:
            yield from _annotations(item)
    if isinstance(data, dict):
        for key, value in data.items():
            if key == 'ann_file':
                files = value if isinstance(value, list | tuple) else [value]
                files = [file for file in files if isinstance(file, str)]
                yield from files
                yield from (str(Path(data.get('data_root') or '', file)) for file in files)
            else:
                yield from _annotations(value)


CHECKOUTS = {'mmdetection3d/configs/': mmdet3d_config, 'mmdetection/configs/': mmdet_config}
"""Folder of configs in a checkout of a library -> function that returns the path of the same config in the
installed library. Configs of 3D plugins take their bases from such a checkout beside their repository."""


@contextlib.contextmanager
def replaced_entry(config: dict[str, Any], key: str, value: Any) -> Iterator[None]:
    """Set `config[key]` to `value` inside the block; afterwards it is as before, or absent again."""
    absent = object()
    before = config.get(key, absent)
    config[key] = value
    try:
        yield
    finally:
        config[key] = before
        if before is absent:
            del config[key]


@contextlib.contextmanager
def installed_bases() -> Iterator[None]:
    """Let `_base_` paths into a missing checkout of mmdet3d or mmdet mean the installed package's configs.

    It changes how mmcv 1.7.2 reads one file, for the time of the body. Each file is registered by
    `will_read`, too, and `find_modules` puts the folders of the modules that it imports on `sys.path`, where
    they stay.
    """
    from mmcv import Config

    original = vars(Config)['_file2dict']

    def file2dict(filename: str, *args: Any) -> Any:
        if not Path(filename).is_file():
            for checkout, installed_config in CHECKOUTS.items():
                _, in_checkout, relative = Path(filename).as_posix().partition(f'/{checkout}')
                if in_checkout:
                    filename = installed_config(relative)
                    break
        will_read(f'a file of the config ({Path(filename).name})', [filename])
        find_modules(imported_modules(filename), filename)
        return original.__func__(filename, *args)

    Config._file2dict = staticmethod(file2dict)
    try:
        yield
    finally:
        Config._file2dict = original


@contextlib.contextmanager
def _closed_temporary_files() -> Iterator[None]:
    """Close what mmcv 1.7.2 leaves open when a config raises: closing it at exit would print a traceback."""
    try:
        yield
    except Exception as error:
        raised: BaseException | None = error
        while raised is not None:
            for frame, _ in traceback.walk_tb(raised.__traceback__):
                if 'temp_config_file' in frame.f_locals:
                    with contextlib.suppress(OSError):  # its folder is gone already
                        frame.f_locals['temp_config_file'].close()
            raised = raised.__context__
        raise


def _import_plugins(cfg: Any, path: str) -> None:
    """Import the modules of `custom_imports`, and of `plugin=True, plugin_dir='projects/mmdet3d_plugin/'`."""
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
    """Return a SHA-256 (hexadecimal) of what decides a graph: the model, its test settings and pipeline.

    Schedules and the paths of data sets are not in it; a path in the model's config, such as one of
    pretrained weights, is. `cfg` is an `mmcv.Config`, or a dict of such keys that has a test pipeline;
    ConfigError: a config that has none.
    """
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
    """Return the settings of `data.test` of an `mmcv.Config`, then those of the data sets that it wraps.

    These are below its key `dataset`, or `datasets` as in a `ConcatDataset`, one in the other; of a list the
    first counts. There may be none.
    """
    return (dataset for _, dataset in _wrapped(cfg, 'test'))


def _wrapped(cfg: Any, section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield key and settings of a data set in `data`, of a list the first, then of those that it wraps."""
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
    """Return the settings of the test data set of an `mmcv.Config`, `data.test`; {} if there are none.

    Those of a wrapper are those of its `dataset` or `datasets`, which it wraps, without the wrapper's own,
    such as its `pipeline`; those of a list are those of the first.
    """
    return next(reversed([*test_datasets(cfg)]), {})


def test_pipeline(cfg: Any) -> list[dict[str, Any]]:
    """Return the steps of the test pipeline of a config, each a dict with `type`.

    It is that of `data.test`: its own, or that of its `dataset` or `datasets`, which it wraps, of several the
    first one; else that of `data.val` in the same way, else `test_pipeline`.

    Args:
        cfg: an `mmcv.Config`, or a dict of such keys.

    Raises:
        ConfigError: the config has none, or one that is no list of such dicts, those inside other steps too.
    """
    return keyed_test_pipeline(cfg)[1]


def keyed_test_pipeline(cfg: Any) -> tuple[str, list[dict[str, Any]]]:
    """Return the key of the `test_pipeline` of a config, such as 'data.test.pipeline', and its steps."""
    filename = getattr(cfg, 'filename', 'the config')
    for section in ('test', 'val'):
        for key, dataset in _wrapped(cfg, section):
            if dataset.get('pipeline'):
                check_steps(dataset['pipeline'], f'{filename}: the pipeline of data.{section}')
                return f'{key}.pipeline', dataset['pipeline']
    pipeline = cfg.get('test_pipeline')
    if not pipeline:
        raise ConfigError(
            f'{filename}: has neither data.test.pipeline nor test_pipeline; '
            f'the image normalisation is taken from there'
        )
    check_steps(pipeline, f'{filename}: test_pipeline')
    return 'test_pipeline', pipeline


def check_steps(steps: Any, title: str) -> None:
    """Refuse (ConfigError) a pipeline that is no list of dicts with `type`, a text or a class.

    Those inside other steps (`transforms`) count, too; `title` names the pipeline in the message.
    """
    if not isinstance(steps, list | tuple):
        raise ConfigError(f'{title} is {steps!r}; expected a list of steps, each a dict with `type`')
    for step in steps:
        if not isinstance(step, dict) or not isinstance(step.get('type'), str | type):
            raise ConfigError(f'{title} has the step {step!r}; expected a dict with `type`')
        if step.get('transforms'):
            check_steps(step['transforms'], f'{title}: transforms of {step["type"]}')


def types_of(part: Any, prefix: str = '') -> Iterator[tuple[str, str]]:
    """Yield key and name of each `type`, if it is a text, in values of a config: `model.neck.type`, `FPN`.

    `prefix` is the key of `part`.
    """
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
"""Steps of test pipelines that may hold test-time augmentation."""

SCALES = dict(img_scale='scales', pts_scale_ratio='scales of points')
"""Key of such a step that may list several scales -> its name in the record."""


def without_augmentation(cfg: Any) -> tuple[str, ...]:
    """Remove test-time augmentation from a config in place; return notes about what was removed.

    It is that of `data.test`, and of the data set that this wraps; nothing is removed from a list of data
    sets. Of several scales 1.0 stays, or else the first one. The keys of directions, such as
    `pcd_horizontal_flip`, stay: without `flip` they have no effect.
    """
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
    """Yield the steps of the test pipelines that may hold test-time augmentation."""
    dataset = (cfg.get('data') or {}).get('test') or {}
    while isinstance(dataset, dict):  # a wrapper holds its data set as `dataset`
        yield from (step for step in dataset.get('pipeline') or () if step.get('type') in AUGMENTATIONS)
        dataset = dataset.get('dataset')
