"""The configs of a zoo: those of installed libraries, or of the user's own folders, and what they hold."""

import dataclasses
import glob
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import ConfigError, UsageError

TRAINING_KEYS = 'train_cfg', 'init_cfg', 'pretrained'
"""Keys that only training reads. Not losses: heads take their number of outputs from them."""
HEADS = ('bbox_head', 'mask_head', 'rpn_head', 'roi_head')
LIBRARIES = ('mmdet', 'mmdet3d')
"""Whose configs are known by their names; those of all but the first begin with the library's."""
AUGMENTATIONS = ('MultiScaleFlipAug', 'MultiScaleFlipAug3D')
"""Steps of test pipelines."""
SCALES = dict(img_scale='scales', pts_scale_ratio='scales of points')
"""What they are told several of -> its name."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One config of a zoo.

    Attributes:
        name: in the zoo: the path below mmdet's configs or the working folder; 'mmdet3d/...' of mmdet3d's.
        path: of the file.
        parts: see `parts`.
        test_digest: see `test_digest`; '' of a config that cannot be read.
    """

    name: str
    path: str
    parts: dict[str, str]
    test_digest: str = ''

    @property
    def slug(self) -> str:
        """The name of its files."""
        return self.name.strip('/').removesuffix('.py').replace('/', '__')


def installed(library: str = LIBRARIES[0]) -> Path:
    """Return the folder of configs of an installed library."""
    found = importlib.util.find_spec(library)
    folder = Path(found.submodule_search_locations[0]) / '.mim' / 'configs' if found else None
    if folder is None or not folder.is_dir():
        raise UsageError(f'{library} with its configs is not installed; name configs, folders or globs')
    return folder


def paths(given: Sequence[str]) -> list[Path]:
    """Return the files of a zoo.

    Args:
        given: files, folders and globs, also below the folder of the installed mmdet, and with 'mmdet3d/'
            before them below that of mmdet3d; none takes all of mmdet's.
    """
    if not given:
        return _files(installed())
    found: list[Path] = []
    for text in given:
        fits = [Path(path) for path in glob.glob(text)]
        if not fits and not Path(text).is_absolute():
            library, _, rest = text.partition('/')
            known = rest and library in LIBRARIES
            fits = sorted(installed(library).glob(rest) if known else installed().glob(text))
        files = [file for path in sorted(fits) for file in (_files(path) if path.is_dir() else [path])]
        if not files:
            raise UsageError(f'{text}: fits no config, neither here nor below {installed()}')
        found += files
    return list(dict.fromkeys(path.absolute() for path in found))


def _name(path: Path) -> str:
    """Return the path below the configs of a library, or below the working folder, or as it is."""
    folders = [(library, installed(library)) for library in LIBRARIES if importlib.util.find_spec(library)]
    for library, folder in (*folders, ('', Path.cwd())):
        if path.is_relative_to(folder):
            first = library if library in LIBRARIES[1:] else ''
            return Path(first, path.relative_to(folder)).as_posix()
    return path.as_posix()


def _files(folder: Path) -> list[Path]:
    """Return the leaves below a folder: no bases, and nothing that Python made."""
    return [
        path
        for path in sorted(folder.rglob('*.py'))
        if not any(part.startswith(('_', '.')) for part in path.relative_to(folder).parts)
    ]


def found(files: Sequence[Path], heads: Sequence[str] = ()) -> Iterator[Config | None]:
    """Yield the configs, and None for each file that is none of the zoo.

    These have no model, none of the heads that are asked for, or a `backend_config`: the model is another's.
    """
    for path in files:
        try:
            cfg = load_config(str(path))
        except ConfigError:
            kept, same = dict(detector='', backbone='', neck='', head=''), ''
        else:
            own = cfg.get('model') and 'backend_config' not in cfg
            kept, same = (parts(cfg), test_digest(cfg)) if own else (None, '')
        if kept is None or (heads and not set(heads) & set(kept['head'].split('+'))):
            yield None
        else:
            yield Config(_name(path), str(path), kept, same)


def test_digest(cfg: Any) -> str:
    """Return a hash of the detector and of what its pictures go through, without what only training reads.

    Configs of equal hashes are the same model to export and to test.
    """
    test = (cfg.get('data') or {}).get('test') or {}
    content = [_without_training(cfg.model), _without_training(test), cfg.get('test_cfg')]
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_training(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_training(one) for key, one in value.items() if key not in TRAINING_KEYS}
    return [_without_training(one) for one in value] if isinstance(value, list | tuple) else value


def parts(cfg: Any) -> dict[str, str]:
    """Return detector, encoder, backbone, neck, head -> class names; several are joined by '+'.

    What the name of a part begins with is left out, such as the `pts_` of mmdet3d's; only detectors of points
    have encoders.
    """
    model = cfg.model
    named = [(str(key), part) for key, part in model.items() if isinstance(part, dict | list | tuple)]

    def kinds(*names: str) -> str:
        found = [_kinds(part) for name in names for key, part in named if f'_{key}'.endswith(f'_{name}')]
        return '+'.join(filter(None, found))

    encoder = kinds('voxel_encoder', 'middle_encoder')
    return dict(
        detector=str(model.get('type', '')),
        **(dict(encoder=encoder) if encoder else {}),
        backbone=kinds('backbone'),
        neck=kinds('neck'),
        head=kinds(*HEADS),
    )


def _kinds(part: Any) -> str:
    if isinstance(part, list | tuple):
        return '+'.join(_kinds(one) for one in part)
    return str(part.get('type', '')) if isinstance(part, dict) else ''


def without_augmentation(cfg: Any) -> tuple[str, ...]:
    """Take test-time augmentation out of a config, in place; returns what was changed, for the record."""
    changed = []
    for step in _augmentations((cfg.get('data') or {}).get('test') or {}):
        if step.get('flip'):
            step['flip'] = False
            changed.append('flip')
        for key, what in SCALES.items():
            scales = step.get(key)
            if isinstance(scales, list) and len(scales) > 1:
                step[key] = 1.0 if 1.0 in scales else scales[0]
                changed.append(what)
    if not changed:
        return ()
    return (f'test-time augmentation left out: {", ".join(dict.fromkeys(changed))}',)


def _augmentations(dataset: Any) -> Iterator[Any]:
    if isinstance(dataset, dict):
        steps = dataset.get('pipeline') or ()
        yield from (step for step in steps if step.get('type') in AUGMENTATIONS)
        yield from _augmentations(dataset.get('dataset'))
