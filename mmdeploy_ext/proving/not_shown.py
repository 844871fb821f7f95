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
import torch
from onnx import numpy_helper
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.base.config import test_datasets, test_pipeline
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.source_code import copied_file, copied_libraries, parts_of, users_class, users_method
from mmdeploy_ext.graphs.io.index import all_nodes
from mmdeploy_ext.proving import float64
from mmdeploy_ext.runtime.panoptic import Segments
from mmdeploy_ext.runtime.preprocess.pipeline_rule import steps_of
from mmdeploy_ext.spec.matching import numbers_of
from mmdeploy_ext.upstream.models.building import data_class, makes_samples

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    import onnx
    from torch import nn

    from mmdeploy_ext.base.source_code import ModelClass
    from mmdeploy_ext.exporting.export import CodeWarning
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.spec.preparation import VoxelRule
    from mmdeploy_ext.spec.results import Case
    from mmdeploy_ext.spec.verdict import Verdict


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


COMPARISONS, CLAMPS = ('gt', 'ge', 'lt', 'le'), ('clamp', 'clip', 'clamp_min', 'clamp_max')
NORMS = dict(layer_norm=4, group_norm=4, batch_norm=7, instance_norm=7)
"""Function -> position of its epsilon."""
NORM_NODES = ('LayerNormalization', 'GroupNormalization', 'BatchNormalization', 'InstanceNormalization')
NUMBERS = ('thr', 'size', 'clip', 'ratio')
"""Parts of the names of facts that are thresholds or clips."""
NEAR = 1e-3
"""A value is near to a threshold within this share of it."""
LIBRARY = Path(torch.__file__).parent


ENDS = (np.maximum, slice(0, 2)), (np.minimum, slice(2, 4))
"""Of the box that two boxes share."""


class Watch(TorchFunctionMode):
    """Notes, while PyTorch runs, how near values come to numbers of its code.

    Attributes:
        gaps: number and place -> nearest value below and at or above a threshold.
        ends: number, place and whether it is a maximum -> the value farthest towards it.
        epsilons: of normalisations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gaps: dict[tuple[float, str], tuple[float, float]] = {}
        self.ends: dict[tuple[float, str, bool], float] = {}
        self.epsilons: set[float] = set()
        self._compiled: list[Any] = []

    def __enter__(self) -> Watch:
        operators = sys.modules.get('mmcv.ops.nms')
        compiled = vars(operators.NMSop)['forward'] if operators else None
        self._compiled.append(compiled)

        def forward(ctx: Any, boxes: torch.Tensor, scores: torch.Tensor, *settings: Any) -> torch.Tensor:
            kept = compiled.__func__(ctx, boxes, scores, *settings)
            self._suppress(boxes, scores, kept, *settings[:3])
            return kept

        if operators:
            operators.NMSop.forward = staticmethod(forward)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if compiled := self._compiled.pop():
            sys.modules['mmcv.ops.nms'].NMSop.forward = compiled

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(function, '__name__', '').strip('_'), kwargs or {}
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.is_floating_point() and first.numel():
            if name in COMPARISONS and len(args) > 1 and _is_number(args[1]):
                self._compare(first, float(args[1]))
            elif name in CLAMPS:
                self._clamp(name, first, args[1:], kwargs)
            elif name in NORMS:
                place = NORMS[name]
                self.epsilons.add(kwargs.get('eps', args[place] if len(args) > place else 1e-5))
        return function(*args, **kwargs)

    def _compare(self, tensor: torch.Tensor, number: float) -> None:
        values, place = tensor[tensor.isfinite()].double(), _place()
        if number == 0 or not values.numel() or not place:
            return
        below, above = values[values < number], values[values >= number]
        self._note(
            (number, place),
            below.max().item() if below.numel() else -np.inf,
            above.min().item() if above.numel() else np.inf,
        )

    def _note(self, key: tuple[float, str], below: float, above: float) -> None:
        last = self.gaps.get(key, (-np.inf, np.inf))
        self.gaps[key] = max(last[0], below), min(last[1], above)

    def _suppress(
        self,
        boxes: torch.Tensor,
        scores: torch.Tensor,
        kept: torch.Tensor,
        number: float,
        offset: int,
        least: float = 0,
    ) -> None:
        """Note the largest IoU of two kept boxes, and the smallest by which a box was suppressed."""
        place = _place()
        if not place or not len(kept):
            return
        corners, best, scores = (one.numpy(force=True) for one in (boxes, kept, scores))
        overlaps = _iou(corners[best].astype(np.float64), corners.astype(np.float64), offset)
        overlaps[scores[best][:, None] < scores[None]] = -np.inf
        overlaps[np.arange(len(best)), best] = -np.inf
        scored = scores > least if least > 0 else np.ones(len(scores), bool)
        lost = np.setdiff1d(np.flatnonzero(scored), best)
        strongest = overlaps[:, lost].max(0)
        strongest = strongest[strongest > number]  # others are beyond the limit of results
        below = overlaps[:, best].max()
        self._note((float(number), place), below, strongest.min(initial=np.inf))

    def _clamp(self, name: str, tensor: torch.Tensor, args: Any, kwargs: Mapping[str, Any]) -> None:
        names = ('max', 'min') if name == 'clamp_max' else ('min', 'max')
        given, place = {**dict(zip(names, args, strict=False)), **kwargs}, _place()
        for end, farthest in (('min', torch.amin), ('max', torch.amax)):
            if place and _is_number(given.get(end)):
                key, value = (float(given[end]), place, end == 'max'), farthest(tensor).item()
                pick = max if end == 'max' else min
                self.ends[key] = pick(self.ends.get(key, value), value)

    def add(self, other: Watch) -> None:
        for key, (below, above) in other.gaps.items():
            self._note(key, below, above)
        for key, value in other.ends.items():
            pick = max if key[2] else min
            self.ends[key] = pick(self.ends.get(key, value), value)
        self.epsilons |= other.epsilons

    def lines(self, settings: Mapping[str, Any], samples: str) -> list[str]:
        """Return a line per number that no value came near; `settings` name the numbers."""
        facts = [
            (name, number) for name, number in numbers_of(settings) if any(part in name for part in NUMBERS)
        ]
        names, lines = {number: name for name, number in facts}, []
        for (number, place), (below, above) in self.gaps.items():
            if max(number - below, above - number) > NEAR * abs(number):
                found = f'nearest values {below:.6g} and {above:.6g}'
                lines.append(f'{names.get(number, "threshold")} {number:g} ({place}; {found})')
        for (number, place, is_most), value in self.ends.items():
            if value < number if is_most else value > number:
                found = f'{"largest" if is_most else "smallest"} value {value:.6g}'
                lines.append(f'{names.get(number, "clip")} {number:g} ({place}; {found})')
        advice = f'another number between them gives the same results; reach it with {samples}'
        return [f'{line}: {advice}' for line in dict.fromkeys(lines)]

    def other_epsilons(self, model: onnx.ModelProto) -> list[str]:
        """Return a reason per epsilon of a graph that no normalisation of the code has."""
        found: dict[tuple[str, float], list[str]] = {}
        for node in all_nodes(model):
            for entry in node.attribute if self.epsilons and node.op_type in NORM_NODES else ():
                if entry.name == 'epsilon' and not np.isclose(entry.f, [*self.epsilons], 1e-6, 0).any():
                    found.setdefault((node.op_type, entry.f), []).append(node.name)
        for node, epsilon in _added_epsilons(model) if self.epsilons else ():
            own = np.array([*self.epsilons]).astype(epsilon.dtype)
            if not np.isclose(epsilon, own, 1e-6, 0).any():
                found.setdefault((node.op_type, float(epsilon)), []).append(node.name)
        usual = ', '.join(f'{epsilon:g}' for epsilon in sorted(self.epsilons))
        return [
            f'{kind} {names[0]}: epsilon {epsilon:g} ({len(names)} nodes); PyTorch has {usual}: too little '
            'for the results to show'
            for (kind, epsilon), names in found.items()
        ]


def _iou(boxes: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    low, high = (pick(boxes[:, None, at], others[None, :, at]) for pick, at in ENDS)
    inside = (high - low + offset).clip(0).prod(2)
    areas, other_areas = ((side[:, 2:] - side[:, :2] + offset).prod(1) for side in (boxes, others))
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.nan_to_num(inside / (areas[:, None] + other_areas[None] - inside))


def _added_epsilons(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, np.ndarray]]:
    """Yield an Add of a number to a mean under a root, a normalisation below opset 17, and the number."""
    nodes = [*all_nodes(model)]
    numbers = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes:
        if node.op_type == 'Constant' and node.attribute[0].name == 'value':
            numbers[node.output[0]] = node.attribute[0].t
    roots = {name for node in nodes if node.op_type == 'Sqrt' for name in node.input}
    means = {node.output[0] for node in nodes if node.op_type == 'ReduceMean'}
    for node in nodes:
        if node.op_type == 'Add' and node.output[0] in roots and means.intersection(node.input):
            for name in numbers.keys() & {*node.input}:
                value = numpy_helper.to_array(numbers[name])
                if value.size == 1:
                    yield node, value.reshape(())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def _place() -> str:
    """Return file and line that called the function; '' in a run that only measures rounding."""
    frame, own = sys._getframe(1), (__file__, str(LIBRARY))
    while frame.f_back is not None and frame.f_code.co_filename.startswith(own):
        frame = frame.f_back
    file = frame.f_code.co_filename
    return '' if file == float64.__file__ else f'{Path(file).name}:{frame.f_lineno}'
