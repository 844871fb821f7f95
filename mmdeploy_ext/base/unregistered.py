"""Types of a config that nobody registered, and the user's files that define them."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext.base.config import cfg_options, types_of
from mmdeploy_ext.base.user_modules import files_of_types

LISTED = 3
NO_CLASSES = ('.nms.type', '.roi_layer.type', '.conv_op.type')
"""Ends of keys with functions or module names, which are in no registry."""
FUNCTIONS = ('nms', 'soft_nms', 'nms_match', 'nms_rotated')
"""Functions of mmcv that a config may name under any key."""


def registries(packages: Collection[str] = ()) -> Iterator[Any]:
    """Yield registries in imported modules, perhaps repeatedly."""
    from mmcv.utils import Registry

    kinds = {Registry}
    while not kinds >= (derived := {cls for kind in kinds for cls in kind.__subclasses__()}):
        kinds |= derived
    for name, module in list(sys.modules.items()):
        if packages and name.partition('.')[0] not in packages:
            continue
        for value in list(getattr(module, '__dict__', {}).values()):  # None stands for a blocked import
            if type(value) in kinds:  # isinstance() asks old torch attributes, which warn
                yield value


def module_to_import(path: Path, folder: Path) -> str:
    """Module that registers the classes of a file: its package if `__init__.py` names the file."""
    relative, package = path.relative_to(folder), path.with_name('__init__.py')
    by_package = False
    if path.parent != folder and package.is_file():
        text = package.read_text(encoding='utf-8', errors='replace')
        by_package = path == package or bool(re.search(rf'\b{re.escape(path.stem)}\b', text))
    module = relative.parent if by_package else relative.with_suffix('')
    while by_package and len(module.parts) > 1 and _imports_child(folder / module.parent, module.name):
        module = module.parent
    return '.'.join(module.parts)


def _imports_child(package: Path, name: str) -> bool:
    file = package / '__init__.py'
    text = file.read_text(encoding='utf-8', errors='replace') if file.is_file() else ''
    return bool(re.search(rf'^from \.{name}\b|^from \. import [^\n]*\b{name}\b', text, re.MULTILINE))


def repositories_of(config: str) -> list[Path]:
    """Folders that may hold the user's modules: roots above the config, and the current folder."""
    path, current = Path(config).resolve(), Path.cwd()
    roots = [folder for folder in path.parents if (folder / '.git').exists() or (folder / 'configs').is_dir()]
    if path.is_relative_to(current):
        roots.append(current)
    return [*dict.fromkeys(roots)] or [path.parent]


def registered_names() -> set[str]:
    """Names in all registries, with and without scope (`opera.SOIT`)."""
    registered: set[str] = set()
    for registry in registries():
        registered.update(registry.module_dict, (f'{registry.scope}.{name}' for name in registry.module_dict))
    return registered


def missing_types(cfg: Any) -> dict[str, str]:
    """Key -> unregistered type in the model of a config, without functions such as `nms`."""
    registered, types = registered_names(), types_of(cfg.get('model'), 'model')
    return {
        key: name
        for key, name in types
        if name not in registered and name not in FUNCTIONS and not key.endswith(NO_CLASSES)
    }


def unregistered(cfg: Any, failures: Mapping[str, str] | None = None) -> str:
    """Message about unregistered types and how to register them, or ''.

    `failures` are package or module -> why it cannot be imported. The user's tree is searched, not imported.
    """
    missing = missing_types(cfg)
    if not missing:
        return ''
    classes = {key: name.rpartition('.')[2] for key, name in missing.items()}  # without a scope
    files: dict[str, Path] = {}
    for folder in repositories_of(cfg.filename or ''):
        files = files or files_of_types(folder, dict.fromkeys(classes.values()))
        if files:
            break
    if not files:
        return around_detector(cfg.get('model'))
    keys = sorted(missing, key=lambda key: classes[key] not in files)
    names = [name for name in dict.fromkeys(classes.values()) if name in files]
    definitions = _first([f'{name} is in {files[name].relative_to(folder)}' for name in names])
    listed = _first([f'{key}={missing[key]!r}' for key in keys])
    said = f'{listed}: not registered by an imported module; {definitions}'
    places = [files[name].relative_to(folder).with_suffix('').parts for name in names]
    on_the_way = ['.'.join(parts[:count]) for parts in places for count in range(len(parts), 0, -1)]
    if failing := next((module for module in on_the_way if module in (failures or {})), ''):
        return f'{said}: {failures[failing]}'
    packages = dict.fromkeys(parts[0] for parts in places)
    for package in packages:
        imported = getattr(sys.modules.get(package), '__file__', None)
        if imported and not Path(imported).resolve().is_relative_to(folder):
            return (
                f'{said}: its {package} was not imported; Python imported the one in {Path(imported).parent}'
            )
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    modules = dict.fromkeys([*imports, *(module_to_import(files[name], folder) for name in names)])
    words = cfg_options({'custom_imports.imports': ','.join(modules)})
    own = '; its models are exported by the package mm2onnx-mmrotate' if 'mmrotate' in packages else ''
    return f'{said}: add custom_imports = dict(imports={[*modules]}) to the config, or pass {words}{own}'


def around_detector(model: Any) -> str:
    """Advice for a model around a detector, such as mmtracking's, or ''."""
    detector = model.get('detector') if isinstance(model, dict) else None
    if not isinstance(detector, dict) or not detector.get('type'):
        return ''
    return (
        f'model.type={model.get("type")!r} is a model around a detector: pass a config of the '
        f"{detector['type']} alone (model: this config's model.detector; a test pipeline of mmdet), with the "
        'same checkpoint'
    )


def _first(texts: Sequence[str]) -> str:
    joined = ', '.join(texts[:LISTED])
    return f'{joined} and {len(texts) - LISTED} more' if len(texts) > LISTED else joined
