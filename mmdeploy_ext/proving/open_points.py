"""Open points of a verdict: code outside the graph, limits that no input reached."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.config.config import test_datasets, test_pipeline
from mmdeploy_ext.models.building import data_class, makes_samples
from mmdeploy_ext.preprocess.pipeline_rule import steps_of
from mmdeploy_ext.runtime.panoptic import Segments
from mmdeploy_ext.util.errors import ConfigError
from mmdeploy_ext.util.source_code import copied_file, copied_libraries, parts_of, users_class, users_method

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from mmdeploy_ext.exporting.export import CodeWarning
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.preprocess.points import VoxelRule
    from mmdeploy_ext.util.source_code import ModelClass
    from mmdeploy_ext.verdict.results import Case
    from mmdeploy_ext.verdict.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class Untraced:
    """A method, line or step of user code outside the graph.

    Attributes:
        subject: such as `MyHead.get_bboxes (plugin/head.py:120)` or `plugin/neck.py:8`.
        reason: such as `compared by its results` or `PyTorch warns "..."`.
    """

    subject: str
    reason: str

    @property
    def text(self) -> str:
        return f'{self.subject}: {self.reason}'


def untraced_methods(
    family: Family, model: nn.Module, cfg: Any, traced: Container[str] = ()
) -> list[Untraced]:
    """Return the user's methods replaced by a graph, with steps and data sets, each once."""
    libraries = copied_libraries().items()
    copies = {f'{package} {sys.modules[package].__version__}': folder for package, folder in libraries}
    copies |= getattr(model, 'copied_libraries', {})  # that run in their own process
    lines = [
        Untraced(f'{title} of {os.path.relpath(folder)}', 'only the results of its methods are compared')
        for title, folder in copies.items()
    ]

    @functools.cache
    def methods_of(kind: type) -> list[tuple[str, str]]:
        found = []
        for entry in family.untraced:
            place, dot, name = entry.rpartition('.')
            method = users_method(kind, name)
            if method and method not in traced:
                found.append((place if dot else '*', method))
        return found

    for path, part in parts_of(model):
        kind = type(part)
        for place, method in methods_of(kind):
            names = [path, *(base.__name__ for base in kind.__mro__)]
            if any(fnmatchcase(one, place) for one in names):
                lines.append(Untraced(method, 'only its results are compared'))
    by = 'pictures' if family.samples == 'images' else 'samples'
    lines += [Untraced(name, f'compared by {by}') for name in _users_data(cfg)]
    return list(dict.fromkeys(lines))


def _users_data(cfg: Any) -> Iterator[str]:
    try:
        steps = list(steps_of(test_pipeline(cfg)))
    except ConfigError:  # without a pipeline
        steps = []
    kinds = [data_class(step.get('type'), 'PIPELINES') for step in steps]
    datasets = (data_class(dataset.get('type'), 'DATASETS') for dataset in test_datasets(cfg))
    kinds += [kind for kind in datasets if kind is not None and makes_samples(kind)]
    yield from filter(None, (users_class(kind) for kind in kinds if kind is not None))


def warning_lines(records: Iterable[CodeWarning]) -> list[Untraced]:
    """Return a line for each warning, one per copied OpenMMLab package."""
    lines, copied = [], collections.Counter()
    for record in sorted(records, key=lambda record: (record.file, record.line)):
        if copy := copied_file(record.file):
            copied[copy[0]] += 1
        else:
            lines.append(Untraced(f'{shown(record.file)}:{record.line}', record.text))
    for folder, count in copied.items():
        reason = f'a copy of {folder.name}; PyTorch warns {count} times'
        lines.append(Untraced(f'{shown(folder)}/', reason))
    return lines


def add_code(
    verdict: Verdict,
    classes: Iterable[ModelClass],
    warnings: Iterable[CodeWarning],
    methods: Iterable[Untraced] = (),
) -> None:
    """Add a model's classes and its code outside the graph to a verdict."""
    verdict.model_classes = class_lines(classes)
    verdict.untraced += [entry.text for entry in (*methods, *warning_lines(warnings))]


def class_lines(classes: Iterable[ModelClass]) -> list[str]:
    """Return a line per class outside installed libraries, the user's first."""
    lines = {False: [], True: []}
    for entry in classes:
        lines[entry.ours].append(f'{entry.name} ({entry.place})')
    return [*lines[False], *(f'{line}, our implementation' for line in lines[True])]


def shown(path: str | Path) -> str:
    """Return a path as text, relative if below the working folder."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


COUNTERS = dict(max_candidates='candidates', max_proposals='proposal_candidates')
"""Name of a limit -> output with its count per image."""


def limits_of(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return name -> limit; names of proposals begin with 'rpn.'."""
    proposals = facts.get('proposals') or {}
    return {**facts, **options, **{f'rpn.{name}': value for name, value in proposals.items()}}


def counts_of_images(results: Sequence[Any], outputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return name of a limit -> largest count in an image."""
    counts = {name: int(outputs[counter].max()) for name, counter in COUNTERS.items() if counter in outputs}
    if not any(isinstance(result, Segments) for result in results):
        counts['max_per_img'] = max(map(len, results))
    return counts


def count_voxels(points: np.ndarray, rule: VoxelRule) -> int:
    """Count the voxels of a sweep without limit; `points` (P, 3 or more) are xyz in metres."""
    low, size = np.float32(rule.point_cloud_range[:3]), np.float32(rule.voxel_size)
    cells = np.floor((points[:, :3].astype(np.float32) - low) / size).astype(np.int64)
    cells = cells[((cells >= 0) & (cells < rule.grid_size)).all(1)]
    return len(np.unique(np.ravel_multi_index(tuple(cells.T), rule.grid_size)))


def unreached(limits: Mapping[str, Any], cases: Sequence[Case], samples: str) -> list[str]:
    """Return a line for each limit that no case reached, with the largest count.

    `limits` may hold other facts; `samples`: option for other samples.
    """
    lines = []
    for name, limit in limits.items():
        counts = [case.counts[name] for case in cases if name in case.counts]
        if counts and type(limit) is int and max(counts) < limit:
            lines.append(
                f'{name} {limit} (most found {max(counts)}): reach it with {samples}, or lower it with '
                '--cfg-options in export and verify'
            )
    return lines
