"""The names of classes that a file has to have, read from checkpoint, data set and config.

Nothing of `deploy.class_names`, which gives files their names, is called here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.proving.results import Check

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mmdeploy_ext.exporting.deployment import Deployment


def class_names_check(deployment: Deployment, names: Sequence[str]) -> Check:
    """Compare the class names in a file with those of the first source that names all classes."""
    count = deployment.family.num_classes(deployment.model)
    fitting = ((source, listed) for source, listed in class_sources(deployment) if len(listed) == count)
    source, expected = next(fitting, ('model', [f'class {index}' for index in range(count)]))
    differing = [
        f'label {label}: the file says {got!r}, the {source} {wanted!r}'
        for label, (got, wanted) in enumerate(zip(names, expected, strict=False))
        if got != wanted
    ]
    if len(names) != len(expected):
        differing.insert(0, f'names: the file has {len(names)}, the {source} {len(expected)}')
    return Check('classes as in checkpoint, data set or config', not differing, '; '.join(differing)[:300])


def class_sources(deployment: Deployment) -> Iterator[tuple[str, list[str]]]:
    """Yield what has names of classes, and the names by label: what was trained first, defaults last."""
    meta, cfg = getattr(deployment.report, 'meta', None) or {}, deployment.cfg
    trained = meta.get('dataset_meta') or {}  # mmengine's
    for key in ('classes', 'CLASSES'):
        yield 'checkpoint', _names(trained.get(key))
    yield 'checkpoint', _names(meta.get('CLASSES'))
    kind, listed = _test_set(cfg)
    if listed is not None:  # a list, or the name of a file of names, which mmdet's data sets read
        yield 'data set of the config', _names(kind.get_classes(listed) if kind else listed)
    for key in ('classes', 'class_names'):
        yield f'config ({key})', _names(cfg.get(key))
    yield 'class of the data set', _names(getattr(kind, 'CLASSES', None))


def _test_set(cfg: Any) -> tuple[type | None, Any]:
    """Return the class of the config's test set, or None, and the `classes` that it is given, or None."""
    from mmdet.datasets import DATASETS

    dataset = (cfg.get('data') or {}).get('test')
    if isinstance(dataset, list | tuple):
        dataset = dataset[0] if dataset else None
    if dataset is None:
        return None, None
    return DATASETS.get(str(dataset.get('type'))), dataset.get('classes')


def _names(value: Any) -> list[str]:
    """Return names as texts; none of what is no list."""
    return [str(name) for name in value] if isinstance(value, list | tuple) else []
