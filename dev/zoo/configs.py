"""The configs of installed libraries or of the user's folders, and their contents."""

import dataclasses
import glob
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext.base.config import augmentations, load_config
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.spec.registry import registered

TRAINING_KEYS = 'train_cfg', 'init_cfg', 'pretrained'
"""Keys that only training reads."""
MMDET_TRAINING_KEYS = 'frozen_stages', 'loss_bbox', 'loss_weight', 'norm_eval', 'reg_decoded_bbox'
"""Training keys of mmdet; a test looks for readers in mmdet's code."""
SAME_IN_TESTS = dict(SyncBN='BN')
"""Layer -> equal layer in evaluation mode."""
PATH_KEYS = 'data_root', 'ann_file', 'ann_subdir', 'img_prefix', 'img_subdir'
"""Keys of a data set's paths."""
HEADS = ('bbox_head', 'mask_head', 'rpn_head', 'roi_head')
"""Keys of heads for `part_types`."""
MMDET = 'mmdet'
"""The library of configs without a prefix in their names."""
INSTALLED = '.mim', 'configs'


@dataclasses.dataclass(frozen=True)
class Config:
    """One config of a zoo.

    Attributes:
        name: path below mmdet's configs or the working folder, or the whole path; '<library>/...' for other
            libraries.
        parts: class names of the model, see `part_types`.
        test_digest: see `test_digest`; '' for an unreadable config.
    """

    name: str
    path: str
    parts: dict[str, str]
    test_digest: str = ''

    @property
    def slug(self) -> str:
        return self.name.strip('/').removesuffix('.py').replace('/', '__')


def installed_folder(library: str = MMDET) -> Path:
    """Return the folder of configs of an installed library, or raise UsageError."""
    spec = importlib.util.find_spec(library)
    places = spec.submodule_search_locations if spec else None
    folder = Path(places[0], *INSTALLED) if places else None
    if folder is None or not folder.is_dir():
        raise UsageError(f'{library} with its configs is not installed; name configs, folders or globs')
    return folder


def config_files(patterns: Sequence[str]) -> list[Path]:
    """Return the config files of a zoo, each once.

    `patterns`: files, folders and globs; relative ones without a match are looked up below the configs of the
    installed mmdet, or the library in 'mmdet3d/second/*.py'. None: all of mmdet. Folders are searched without
    base configs and hidden files ('_', '.').
    """
    if not patterns:
        return _leaf_configs(installed_folder())
    files: list[Path] = []
    for pattern in patterns:
        leaves = []
        for path in sorted(map(Path, _matches(pattern))):
            leaves += _leaf_configs(path) if path.is_dir() else [path]
        if not leaves:
            raise UsageError(f'{pattern}: fits no config, neither here nor below {installed_folder()}')
        files += leaves
    return list(dict.fromkeys(path.absolute() for path in files))


def _matches(pattern: str) -> list[str]:
    found = glob.glob(pattern)
    if found or not pattern or Path(pattern).is_absolute():
        return found
    library, _, rest = pattern.partition('/')
    if rest and library.isidentifier() and importlib.util.find_spec(library):
        return glob.glob(str(installed_folder(library) / rest))
    return glob.glob(str(installed_folder() / pattern))


def _leaf_configs(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob('*.py'))
        if not any(part.startswith(('_', '.')) for part in path.relative_to(folder).parts)
    ]


def config_name(path: Path) -> str:
    for folder in path.parents:
        if folder.parts[-2:] == INSTALLED:
            library = '' if library_of(path) == MMDET else library_of(path)
            return Path(library, path.relative_to(folder)).as_posix()
    return (path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path).as_posix()


def library_of(path: Path) -> str:
    """Return the library that a config was installed with, or ''."""
    return next((folder.parts[-3] for folder in path.parents if folder.parts[-2:] == INSTALLED), '')


def read_configs(files: Sequence[Path], heads: Sequence[str] = ()) -> Iterator[Config | None]:
    """Yield the config of each file, None for a file outside of the zoo."""
    for path in files:
        digest = ''
        try:
            cfg = load_config(str(path))
        except ConfigError:
            parts = dict(detector='', backbone='', neck='', head='')
        else:
            if not cfg.get('model') or 'backend_config' in cfg:
                yield None
                continue
            parts, digest = part_types(cfg), test_digest(cfg, training_keys_of(library_of(path)))
        if heads and not set(heads) & set(parts['head'].split('+')):
            yield None
        else:
            yield Config(config_name(path), str(path), parts, digest)


def test_digest(cfg: Any, training_keys: Sequence[str] = ()) -> str:
    """Return a hash of `model`, `data.test` and `test_cfg` without paths and training keys."""
    test = (cfg.get('data') or {}).get('test') or {}
    content = [
        _as_tested(_without(cfg.model, (*TRAINING_KEYS, *training_keys))),
        _without(test, (*TRAINING_KEYS, *PATH_KEYS)),
        cfg.get('test_cfg'),
    ]
    if cfg.get('custom_imports'):
        content.append(dict(custom_imports=cfg.custom_imports))
    if cfg.get('plugin'):
        content.append(dict(plugin_dir=cfg.get('plugin_dir') or str(Path(cfg.filename).parent)))
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def training_keys_of(library: str) -> tuple[str, ...]:
    """Return a library's training keys besides `TRAINING_KEYS`."""
    registrations = registered().values() if library else ()
    declared = (key for family in registrations if family.library == library for key in family.training_keys)
    return (*(MMDET_TRAINING_KEYS if library == MMDET else ()), *declared)


def group_by_model(configs: Sequence[Config]) -> list[list[Config]]:
    groups: dict[str, list[Config]] = {}
    for config in configs:
        groups.setdefault(config.test_digest or config.path, []).append(config)
    return list(groups.values())


def _without(value: Any, keys: Sequence[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(entry, keys) for key, entry in value.items() if key not in keys}
    return [_without(entry, keys) for entry in value] if isinstance(value, list | tuple) else value


def _as_tested(value: Any) -> Any:
    if isinstance(value, dict):
        changed = {key: _as_tested(entry) for key, entry in value.items()}
        kind = changed.get('type')
        return changed | dict(type=SAME_IN_TESTS[kind]) if kind in SAME_IN_TESTS else changed
    return [_as_tested(entry) for entry in value] if isinstance(value, list | tuple) else value


def part_types(cfg: Any) -> dict[str, str]:
    """Return detector, encoder, backbone, neck, head -> class names joined by '+'."""
    model = cfg.model
    parts = [(str(key), part) for key, part in model.items() if isinstance(part, dict | list | tuple)]

    def types(*names: str) -> str:
        joined = [_types(part) for name in names for key, part in parts if f'_{key}'.endswith(f'_{name}')]
        return '+'.join(filter(None, joined))

    encoder = types('voxel_encoder', 'middle_encoder')
    return dict(
        detector=str(model.get('type', '')),
        **(dict(encoder=encoder) if encoder else {}),
        backbone=types('backbone'),
        neck=types('neck'),
        head=types(*HEADS),
    )


def _types(part: Any) -> str:
    if isinstance(part, list | tuple):
        return '+'.join(_types(entry) for entry in part)
    return str(part.get('type', '')) if isinstance(part, dict) else ''


def resize_to(cfg: Any, size: tuple[int, int]) -> None:
    """Let test pipelines with a scale resize pictures to fit in (H, W)."""
    for step in augmentations(cfg):
        transforms = step.get('transforms') or ()
        kinds = [inner.get('type') for inner in transforms]
        if step.get('img_scale') and 'Resize' in kinds:
            is_square = any(inner.get('pad_to_square') for inner in transforms)
            step['img_scale'] = (min(size), min(size)) if is_square else size[::-1]
