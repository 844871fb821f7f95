"""Config files: reading them with clear errors, and paths into the installed OpenMMLab packages."""

import ast
import contextlib
import copy
import hashlib
import importlib
import importlib.util
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext.core.commands import command
from mmdeploy_ext.core.errors import ConfigError, UsageError, root_cause
from mmdeploy_ext.core.files import will_read
from mmdeploy_ext.core.import_errors import import_failure
from mmdeploy_ext.core.library_copies import FITTING, has_copy, is_older_copy, without_older_copies
from mmdeploy_ext.core.yaml_config import SUFFIXES, read_yaml_config

CATALOGUE = 'mmdeploy_ext.models.catalogue'
"""The module that registers our models, for types of a config that nobody else has registered."""
CHECKOUT = Path(__file__).resolve().parents[2]
"""Folder that holds this package: a checkout, or `site-packages`."""


def mmdet_config(relative: str, library: str = 'mmdet') -> str:
    """Return the absolute path of a config of an installed library, for use in `_base_`.

    `relative` is below its `configs/`, e.g. 'atss/atss_r50_fpn_1x_coco.py'.
    """
    package = importlib.util.find_spec(library)
    if package is None or package.origin is None:
        raise ConfigError(
            f'{library} is not installed: run `make env`, or install requirements-openmmlab.txt'
        )
    root = Path(package.origin).parent
    for folder in (root / '.mim' / 'configs', root.parent / 'configs'):
        if (folder / relative).is_file():
            return str(folder / relative)
    raise ConfigError(f'configs/{relative} is not in the installed {library} ({root})')


def mmdet3d_config(relative: str) -> str:
    """Return the absolute path of a config of the installed mmdet3d, like `mmdet_config`."""
    return mmdet_config(relative, 'mmdet3d')


@contextlib.contextmanager
def refused_by_name(cfg: Any) -> Iterator[None]:
    """Put the file of a config before the ConfigErrors of this block."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f'{cfg.filename}: {error}') from error


def load_config(path: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """Read an mmcv config, import its plugins and apply `--cfg-options`.

    Raises:
        ConfigError: missing file, syntax error, failing import, or an override that does not fit.
    """
    if not Path(path).is_file():
        raise ConfigError(f'{path}: no such config file')
    try:
        use_libraries_of(path)
        with _closed_temporary_files(), _installed_bases():
            cfg = _read(path)
        if overrides:
            cfg.merge_from_dict(copy.deepcopy(dict(overrides)))  # mmcv takes `_delete_` out of it
        if not isinstance(cfg.get('model', {}), dict):
            raise ConfigError(f'{path}: model={cfg.model!r}, expected a dict with `type`')
        if is_config3(cfg):  # before its modules, which need mmdet 3
            raise ConfigError(_translate_first(path))
        catalogue = importlib.import_module(CATALOGUE)
        with catalogue.giving_way():
            _import_custom(cfg, path)
            _import_plugin_dir(cfg, path)
        catalogue.register_named(cfg)
    except UsageError:
        raise
    except SyntaxError as error:
        raise ConfigError(f'{path}: syntax error: {error}') from error
    except Exception as error:
        if used := _uses_base(path):
            raise ConfigError(_translate_first(path, f' (it uses `{used}`)')) from error
        raise ConfigError(f'{path}: cannot be read: {import_failure(error)}') from error
    will_read('an annotation file of the config', _annotations(cfg.get('data')))
    return cfg


def _read(path: str) -> Any:
    """Return the config of a file; a YAML file without `_base_` is read as torchpack reads it."""
    from mmcv import Config

    if Path(path).suffix in SUFFIXES and '_base_' not in Path(path).read_text(encoding='utf-8'):
        return Config(read_yaml_config(path), filename=path)
    return Config.fromfile(path, import_custom_modules=False)


def is_config3(cfg: Mapping[str, Any]) -> bool:
    """Return whether a config is one of mmdet 3, which normalises in the model and has loaders for data."""
    return 'data_preprocessor' in (cfg.get('model') or ()) or 'test_dataloader' in cfg


def _uses_base(path: str) -> str:
    """Return the first value of its bases that a config asks for, such as `_base_.data_root`; '' of none.

    mmengine has them; mmcv 1.7.2 knows `{{_base_.name}}` alone.
    """
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError):  # what reads it next says what is wrong
        return ''
    bases = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == '_base_'
    )
    return next(map(ast.unparse, bases), '')


def _translate_first(path: str, why: str = '') -> str:
    """Return the message about a config of mmdet 3."""
    return (
        f'{path}: is a config of mmdet 3{why}; translate it first: '
        f'`{command("convert-mmdet3")} --config {shlex.quote(path)} OUT.py`, and give OUT.py'
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


# Configs of 3D plugins take their bases from a checkout of the library that lies beside the project.
CHECKOUTS = {'mmdetection3d/configs/': mmdet3d_config, 'mmdetection/configs/': mmdet_config}


@contextlib.contextmanager
def replaced_entry(config: dict[str, Any], key: str, value: Any) -> Iterator[None]:
    """Give a key of a config another value for a while; afterwards it is as before, or absent again."""
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
def _installed_bases() -> Iterator[None]:
    """Let `_base_` paths into a missing checkout of mmdet3d or mmdet mean the installed package's configs.

    It changes how mmcv 1.7.2 reads one file, for the time of the body.
    """
    from mmcv import Config

    original = vars(Config)['_file2dict']

    def file2dict(filename: str, *args: Any) -> Any:
        found = _installed_base(filename)
        will_read(f'a file of the config ({Path(found).name})', [found])
        _find_modules(_imported_by(found), found)
        return original.__func__(found, *args)

    Config._file2dict = staticmethod(file2dict)
    try:
        yield
    finally:
        Config._file2dict = original


def _installed_base(filename: str) -> str:
    if Path(filename).is_file():
        return filename
    path = Path(filename).as_posix()
    for checkout, find in CHECKOUTS.items():
        if f'/{checkout}' in path:
            return find(path.split(f'/{checkout}', 1)[1])
    return filename


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


def _import_custom(cfg: Any, path: str) -> None:
    """Import the modules that `custom_imports` lists."""
    from mmcv import import_modules_from_strings

    settings = cfg.get('custom_imports')
    if not settings:
        return
    names = settings.get('imports') or ()
    with _named_imports(path, 'custom_imports', [names] if isinstance(names, str) else names):
        import_modules_from_strings(**settings)


def _import_plugin_dir(cfg: Any, path: str) -> None:
    """Honour mmdet3d-style `plugin=True, plugin_dir='projects/mmdet3d_plugin/'`."""
    if not cfg.get('plugin'):
        return
    folder = cfg.get('plugin_dir') or str(Path(path).parent)
    name = '.'.join(Path(folder).parts)
    with _named_imports(path, 'plugin_dir', [name]):
        importlib.import_module(name)


@contextlib.contextmanager
def _named_imports(path: str, key: str, names: Sequence[str]) -> Iterator[None]:
    """Let modules be found, and one that is not there be an error of the config, its key and PYTHONPATH.

    Raises:
        ConfigError: one of the names, or a module that one of them imports, is not there.
    """
    _find_modules(names, path)
    try:
        yield
    except ImportError as error:
        cause = root_cause(error)  # mmcv 1.7.2 raises an ImportError without a message after it
        if not isinstance(cause, ModuleNotFoundError) or not cause.name:
            raise
        package = cause.name.partition('.')[0]
        spec = importlib.util.find_spec(package) if cause.name != package else None
        if spec is not None:
            folders = spec.submodule_search_locations or [spec.origin]
            advice = f'{package} is {", ".join(map(str, folders))}, which has no such module'
        elif package in {str(name).partition('.')[0] for name in names}:
            advice = f'the folder that {package} is in has to be on PYTHONPATH: PYTHONPATH=FOLDER COMMAND'
        else:
            advice = f'a module of {key} imports it: install it for {sys.executable}'
        raise ConfigError(f'{path}: {key}={list(names)}: {cause}; {advice}') from error


def _imported_by(path: str) -> list[str]:
    """Return the modules that a config imports; none of one that is not Python."""
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError):  # what reads it next says what is wrong
        return []
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
    return modules


def user_folders(path: str) -> list[Path]:
    """Return where the modules of a config are looked for: the current folder, and those above the config.

    It is the order in which research repositories find them, whose scripts run in their root with
    `PYTHONPATH=.`. A checkout of this project, whose `projects/` has the names of many of them, comes last,
    and only for its own configs and for users who are in it.
    """
    config, current = Path(path).resolve(), Path.cwd()
    folders = [folder for folder in dict.fromkeys([current, *config.parents]) if folder != CHECKOUT]
    return [*folders, CHECKOUT] if current == CHECKOUT or config.is_relative_to(CHECKOUT) else folders


def use_libraries_of(path: str) -> None:
    """Put a repository's own copy of mmdet, mmdet3d or mmseg before the installed one, for its configs.

    A copy that is older than families are written for is passed over: its models run in another process.

    ConfigError: this process has imported another copy.
    """
    for library in FITTING:
        for folder in user_folders(path):
            if is_older_copy(folder, library):
                with without_older_copies(library):
                    importlib.import_module(library)
                break
            if has_copy(folder, library):
                _take_first(library, folder, f'{path}: is a config of the repository {folder}')
                break


def _find_modules(modules: Sequence[str], path: str) -> None:
    """Put the folder that holds a config's modules first on `sys.path`, see `user_folders`.

    `mm2onnx` starts with neither, and the scripts of `tools/` with their own folder. Installed modules, such
    as `mmdeploy_ext.models.mmdet`, need none.

    ConfigError: this process has imported a module of the same name from another folder, or the only one
    is that of this project's checkout.
    """
    for module in map(str, modules):
        package = module.partition('.')[0]
        if package in sys.stdlib_module_names or package == 'mmdeploy_ext':
            continue
        place = Path(*module.split('.'))
        imported = getattr(sys.modules.get(package), '__file__', None)
        for folder in user_folders(path):
            if imported and (folder / package).is_dir() and not (folder / package / '__init__.py').is_file():
                continue  # a folder that only has the name of an imported package
            if (folder / place).is_dir() or (folder / f'{place}.py').is_file():
                _take_first(module, folder, f'{path}: imports {module} of {folder}')
                break
        else:
            _refuse_ours(module, path)


def _take_first(module: str, folder: Path, reason: str) -> None:
    """Put a folder first on `sys.path`, so that a module is imported from it.

    ConfigError: the module, or a package that it is in, has been imported from elsewhere; the message begins
    with `reason`.
    """
    names = module.split('.')
    for name in ('.'.join(names[: count + 1]) for count in range(len(names))):
        file = getattr(sys.modules.get(name), '__file__', None)
        if file and not _is_of(Path(file), folder, names[0]):
            raise ConfigError(
                f'{reason}, but this process has imported {name} from {Path(file).parent}: one process '
                f'serves one repository; run each of them by a command of its own'
            )
    spec = importlib.util.find_spec(names[0])
    if spec is not None and _is_of(Path(spec.origin or spec.submodule_search_locations[0]), folder, names[0]):
        return
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _is_of(file: Path, folder: Path, package: str) -> bool:
    """Return whether a file or folder is a package, or a module, of a folder, or inside of it."""
    file = file.resolve()
    return file.is_relative_to((folder / package).resolve()) or file == (folder / f'{package}.py').resolve()


def _refuse_ours(module: str, path: str) -> None:
    """Raise a ConfigError if a config of another tree would import a module of this project's `projects/`."""
    if CHECKOUT in user_folders(path) or not (CHECKOUT / Path(*module.split('.'))).exists():
        return
    if _comes_from_checkout(module.partition('.')[0]):
        raise ConfigError(
            f'{path}: imports {module}, which is neither in {Path.cwd()} nor in a folder above the config; '
            f'{CHECKOUT / "projects"} of mm2onnx is not meant: run the command in the root of the repository '
            f'that has {module}'
        )


def _comes_from_checkout(package: str) -> bool:
    """Return whether `import package` would find this project's own."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return str(CHECKOUT / package) in map(str, folders)


def config_sha256(cfg: Any) -> str:
    """Return a hash of what decides the graph: the model and the test pipeline, not paths or schedules."""
    decisive = {'model': cfg.get('model'), 'pipeline': test_pipeline(cfg)}
    return hashlib.sha256(_canonical(decisive).encode()).hexdigest()


def _canonical(value: Any) -> str:
    if isinstance(value, dict):
        return '{' + ','.join(f'{key!s}:{_canonical(value[key])}' for key in sorted(value, key=str)) + '}'
    if isinstance(value, list | tuple):
        return '[' + ','.join(map(_canonical, value)) + ']'
    return repr(value)


def test_pipeline(cfg: Any) -> list[dict[str, Any]]:
    """Return the test pipeline of a config, wherever it is kept."""
    data = cfg.get('data') or {}
    for section in ('test', 'val'):
        dataset = data.get(section)
        while isinstance(dataset, dict):
            if dataset.get('pipeline'):
                return dataset['pipeline']
            dataset = dataset.get('dataset')
        if isinstance(dataset, list | tuple) and dataset and dataset[0].get('pipeline'):
            return dataset[0]['pipeline']
    pipeline = cfg.get('test_pipeline')
    if not pipeline:
        raise ConfigError(
            f'{cfg.filename}: has neither data.test.pipeline nor test_pipeline; '
            f'the image normalisation is taken from there'
        )
    return pipeline
