"""Whether a graph runs at other sizes, and keeps several images apart. Needs ONNX Runtime."""

import copy
import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx.inliner
from onnx import helper

from mmdeploy_ext.core.errors import InferenceError, ModelFileError
from mmdeploy_ext.graph.diff.program import SHAPE_READERS
from mmdeploy_ext.graph.feeds import random_feeds, sizes_of
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.output_comparison import ROUNDING
from mmdeploy_ext.graph.passes.shapes import UNKNOWN, set_shapes
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.proving.tensors import ArrayDistance

FOLDING = ('Reshape', 'Flatten')
"""Operators that can fold the batch into another axis."""
PICKING = ('Gather', 'Slice')
"""Operators that can take one of the images by a constant."""


@dataclasses.dataclass(frozen=True)
class Batches:
    """Shapes of tensors that an output needs, in runs with two numbers of images, `sizes`: before and now."""

    sizes: tuple[int, int]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def axis(self, name: str) -> int | None:
        """Return which axis is the batch: the first, or the only one that changes with it; else None."""
        changed = self._changed(name)
        if not changed or tuple(shape[changed[0]] for shape in self.shapes[name]) != self.sizes:
            return None
        return changed[0] if changed[0] == 0 or len(changed) == 1 else None

    def plain(self, name: str) -> bool:
        """Return whether the batch is an axis and nothing else changes with it."""
        return self.axis(name) is not None and len(self._changed(name)) == 1

    def lost(self, name: str) -> bool:
        """Return whether a tensor that held one batch before has no axis that grows with it."""
        if name not in self.shapes or self.axis(name) is not None:
            return False
        one, new = self.shapes[name]
        return one[:1] == new[:1] and (self.sizes[0] == 1 or one[:1] == self.sizes[:1])

    def pinned(self, name: str) -> bool:
        """Return whether a tensor holds more for more images while its first axis stays the old batch."""
        if not self.lost(name) or self.shapes[name][0][:1] != self.sizes[:1]:
            return False
        one, new = (math.prod(shape) for shape in self.shapes[name])
        return new * self.sizes[0] == one * self.sizes[1] > 0

    def folds(self, node: onnx.NodeProto) -> bool:
        """Return whether a node that keeps the order of the values folds the batch into another axis.

        It does keep it where equally many numbers lie before it: [B, 8] may become [1, B, 8].
        """
        source, made = node.input[0], node.output[0]
        before, after = self.axis(source), self.axis(made)
        if node.op_type not in FOLDING or before is None or made not in self.shapes:
            return False
        parts = ((source, before), (made, after))
        return after is None or len({math.prod(self.shapes[name][0][:axis]) for name, axis in parts}) == 2

    def picks(self, node: onnx.NodeProto) -> bool:
        """Return whether a node takes some of the images out of a batch."""
        source, made = node.input[0], node.output[0]
        kept = made not in self.shapes or self.axis(made) is not None
        return node.op_type in PICKING and self.axis(source) is not None and not kept

    def text(self, name: str) -> tuple[str, str]:
        """Return both shapes of a tensor as text."""
        one, new = ('x'.join(map(str, shape)) or 'a scalar' for shape in self.shapes[name])
        return one, new

    def _changed(self, name: str) -> list[int]:
        one, new = self.shapes.get(name, ((), ()))
        return [axis for axis, size in enumerate(one) if size != new[axis]] if len(one) == len(new) else []


@dataclasses.dataclass(frozen=True)
class Trial:
    """A graph with an open batch, and what to feed it.

    `inputs` are the shapes of all inputs with the new batch, `images` those whose first axis is the batch;
    `sizes` are the old batch and the new one.
    """

    index: Index
    inputs: Mapping[str, Sequence[int]]
    images: Sequence[str]
    sizes: tuple[int, int]
    seed: int

    def feeds(self, batch: int, seed: int) -> dict[str, np.ndarray]:
        """Return random inputs with as many images."""
        changed = {name: [batch, *self.inputs[name][1:]] for name in self.images}
        return random_feeds(self.index.model, seed, {**self.inputs, **changed})

    def shapes(self) -> Batches:
        """Run the graph with both batches, and read the shape of every tensor that depends on them.

        Every such tensor gets a Shape node, so that no more of them are in memory than in any other run.
        """
        index = self.index
        values = (*index.graph.value_info, *index.graph.output)
        tensors = {value.name for value in values if value.type.HasField('tensor_type')}
        tensors &= {name for at in index.ancestors(index.outputs) for name in index.writes(at)}
        made = [name for at in index.descendants(self.images) for name in index.writes(at) if name in tensors]
        prefix = 'shape_of/'
        while any(name.startswith(prefix) for name in index.tensors):
            prefix += '/'
        measured = copy.deepcopy(index.model)
        names = {prefix + name: name for name in (*self.images, *made)}
        measured.graph.node.extend(helper.make_node('Shape', [name], [new]) for new, name in names.items())
        runner = Runner(measured, list(names), shapes_first=True)
        one, new = (runner.run(self.feeds(batch, self.seed)) for batch in self.sizes)
        found = {name: (tuple(one[at].tolist()), tuple(new[at].tolist())) for at, name in names.items()}
        return Batches(self.sizes, found)

    def mixed(self, names: Sequence[str], found: Batches) -> str | None:
        """Return the first of some tensors where another image changes the results of the others.

        Not one where that is so with the old batch too, or that is not the same twice.
        """
        names = [name for name in names if found.plain(name)]
        suspects = self._changing(names, self.sizes[1])
        if suspects:
            suspects -= self._changing(sorted(suspects), self.sizes[0])
        return next((name for name in names if name in suspects), None)

    def _changing(self, names: Sequence[str], many: int) -> set[str]:
        """Return the tensors where another first or last image changes the results of the others."""
        if many < 2 or not names:
            return set()
        feeds, others = (self.feeds(many, seed) for seed in (self.seed, self.seed + 1))
        runner, changing = Runner(self.index.model, names), set()
        base = runner.run(feeds)
        for image in (0, many - 1):
            changed = dict(feeds)
            for name in self.images:
                changed[name] = feeds[name].copy()
                changed[name][image] = others[name][image]
            result = runner.run(changed)
            changing |= {name for name in names if _reaches(result[name], base[name], image, many)}
        again = runner.run(feeds) if changing else base
        return {
            name
            for name in changing
            if again[name].shape == base[name].shape and not ArrayDistance(again[name], base[name]).max_abs
        }


def try_sizes(before: onnx.ModelProto, after: onnx.ModelProto, *, seed: int = 0) -> str:
    """Run a graph at sizes that the graph before did not take, and return these as text; '' where all were.

    A size that was opened is tried at twice what it was. An InferenceError says that a size is baked in.
    """
    old_shapes, sizes = types.shapes(before.graph.input), trial_sizes(before, after)
    pairs = [pair for name, shape in sizes.items() for pair in zip(shape, old_shapes[name], strict=True)]
    if not any(isinstance(old_size, int) and old_size != size for size, old_size in pairs):
        return ''
    text = ', '.join(f'{name}={"x".join(map(str, shape))}' for name, shape in sizes.items())
    try:
        Runner(after).run(random_feeds(after, seed, sizes))
    except (InferenceError, ModelFileError) as error:
        Runner(before)  # where this one is not loaded either, the sizes are not the reason
        raise InferenceError(
            f'the graph does not run at {text}: a size is baked into its constants, so export it with that '
            f'axis open (--no-trial writes the file all the same): {error}'
        ) from error
    return text


def trial_sizes(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, list[int]]:
    """Return input -> the shape at which a graph with other input shapes is tried.

    A stated size is taken, an axis that was opened gets twice what it was, one that was open before gets the
    size that `random_feeds` takes.
    """
    inputs, old_shapes = Index(after).inputs, types.shapes(before.graph.input)
    doubled: dict[str, int] = {}

    def size(new: int | str, old: int | str) -> int | str:
        if isinstance(new, int) or not isinstance(old, int):
            return new
        return 2 * old if new == '?' else doubled.setdefault(new, 2 * old)

    wanted = {
        name: [size(*pair) for pair in zip(new, old_shapes[name], strict=True)]
        for name, new in types.shapes(after.graph.input).items()
        if name in inputs and new is not None and old_shapes.get(name) is not None
    }
    return sizes_of(after, wanted)


def check_batch(before: onnx.ModelProto, after: onnx.ModelProto, *, seed: int = 0) -> str:
    """Refuse a graph whose constants, made for another batch, mix the images of this one or drop some.

    Reshape and Flatten may fold the batch into another axis, Gather and Slice may take one image. That counts
    where it reaches an output: one without an axis that grows with the batch, or one where another image
    changes the results of the others. Nodes in the branches of If and the bodies of loops are not looked at.

    Returns:
        What could not be checked, and why; '' when nothing is open.

    Raises:
        InferenceError: they do. Names the first node and output.
    """
    sizes = trial_sizes(before, after)
    batches = _batches(before, after, sizes)
    if all(len(sizes[name]) == 1 for name in batches):
        return ''  # nothing changes, or no images: a list of numbers got another length
    if len(set(batches.values())) > 1:
        several = ', '.join(f'{name} from {one} to {new}' for name, (one, new) in batches.items())
        return f'not checked whether images are kept apart: the first axes change unalike ({several})'
    shapes = types.shapes(after.graph.input)
    whole = onnx.inliner.inline_local_functions(after) if after.functions else after
    model = set_shapes(whole, {name: [UNKNOWN, *(shapes[name] or [])[1:]] for name in batches})
    one, new = next(iter(batches.values()))
    try:
        problem, note = _judge(Trial(Index(model), sizes, list(batches), (one, new), seed))
    except (InferenceError, ModelFileError) as error:
        runs = f'a run with {one} and one with {new}, and one of them fails: {str(error).splitlines()[0]}'
        return f'not checked whether {new} images are kept apart: that takes {runs}'
    if problem:
        what = f'with {new} images instead of {one} the graph runs, but {problem}'
        raise InferenceError(f'{what} (--no-trial writes the file all the same)')
    return note


def _batches(
    before: onnx.ModelProto, after: onnx.ModelProto, trial: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, int]]:
    """Return input -> its batch before and in the trial, where the edit changes it; 1 where it was open."""
    old, new, found = types.shapes(before.graph.input), types.shapes(after.graph.input), {}
    for name, sizes in trial.items():
        had, gets = old[name], new[name]
        if had and gets and had[0] != gets[0]:
            found[name] = (had[0] if isinstance(had[0], int) else 1, sizes[0])
    return {name: (one, new) for name, (one, new) in found.items() if one != new}


def _judge(trial: Trial) -> tuple[str, str]:
    """Return what is wrong with the batch, and what could not be told."""
    index, found = trial.index, trial.shapes()
    apart = {name for name in found.shapes if found.axis(name) is not None}
    reach = {at: _flow(index, [index.nodes[at].output[0]], apart) for at in _nodes_at_fault(trial, found)}
    empty = []
    for name in index.outputs:
        at_fault = [at for at, names in reach.items() if name in names and name not in apart]
        if at_fault and (name not in found.shapes or 0 in found.shapes[name][1]):
            empty.append(name)
        elif at_fault and found.lost(name):
            return _message(index, found, at_fault, reach, name), ''
    later = _flow(index, [index.nodes[at].output[0] for at in reach])
    mixed = trial.mixed([name for name in index.outputs if name in later], found)
    if mixed:
        ends = {name for names in reach.values() for name in names & apart}
        first = trial.mixed([name for name in found.shapes if name in ends], found)
        at_fault = [at for at, names in reach.items() if first in names] or list(reach)
        return _message(index, found, at_fault, reach, mixed), ''
    note = f'not checked whether {", ".join(empty)} keeps the images apart: it is empty, or no tensor'
    return '', note if empty else ''


def _nodes_at_fault(trial: Trial, found: Batches) -> list[int]:
    """Return the positions of the nodes where images lose their axis."""
    index = trial.index
    images, fed = _flow(index, trial.images), index.descendants(index.inputs)
    computed = {*index.inputs, *(name for at in fed for name in index.writes(at))}

    def loses(node: onnx.NodeProto) -> bool:
        return found.folds(node) or (found.picks(node) and not computed & set(node.input[1:]))

    return [at for at in fed if images.intersection(index.nodes[at].input[:1]) and loses(index.nodes[at])]


def _reaches(result: np.ndarray, base: np.ndarray, image: int, many: int) -> bool:
    """Return whether two arrays differ beyond one image, whichever axis of that size holds the images."""
    axes = [axis for axis, size in enumerate(base.shape) if size == many and result.shape == base.shape]
    rests = ([np.delete(value, image, axis) for value in (result, base)] for axis in axes)
    return bool(axes) and all(_differs(*rest) for rest in rests)


def _differs(array: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two arrays differ by more than rounding, those of integers at all."""
    rounding = ROUNDING if other.dtype.kind in 'fc' else 0.0
    return ArrayDistance(array, other).max_rel > rounding


def _flow(index: Index, starts: Iterable[str], stops: Collection[str] = ()) -> set[str]:
    """Return the tensors whose values depend on those of `starts`, up to the first in `stops` on each way."""
    found, waiting = set(starts), list(starts)
    while waiting:
        for position in index.consumers(waiting.pop()):
            if index.nodes[position].op_type not in SHAPE_READERS:
                fresh = set(index.writes(position)) - found
                found |= fresh
                waiting.extend(fresh.difference(stops))
    return found


def _message(
    index: Index, found: Batches, at_fault: Sequence[int], reach: Mapping[int, set[str]], output: str
) -> str:
    """Say which node mixes or drops the images of an output.

    Where one writes the old batch down, among those that are at_fault and the ones behind them, it is named.
    """
    behind = {name for at in at_fault for name in reach[at] if found.pinned(name)}
    nodes = [at for at, node in enumerate(index.nodes) if node.op_type in FOLDING]
    pinned = [at for at in nodes if index.nodes[at].output[0] in behind]
    folding = [at for at in at_fault if at in nodes]
    named = pinned or folding or at_fault
    node = index.nodes[named[0]]
    who, (one, new) = f'{index.label(named[0])} ({node.op_type})', found.text(node.output[0])
    if not folding:
        return (
            f'{who} still makes {new} of them: it takes images by a constant; output {output} leaves out the '
            f'others, or mixes the images. Export it without that'
        )
    others = f', as {len(named) - 1} others do' if len(named) > 1 else ''
    keeps = pinned and node.op_type == 'Reshape' and found.axis(node.input[0]) == 0
    hint = ', or let the first number of these constants be 0, which keeps the axis' if keeps else ''
    return (
        f'{who} makes {new} of what was {one}: its shape folds the batch into another axis{others}; output '
        f'{output} mixes the images. Export it with that axis open{hint}'
    )
