"""Trials of a graph: does it run at other sizes, and keep several images apart? Needs ONNX Runtime.

A size or a batch of the export may be a constant inside a graph whose inputs were given other shapes. Such a
graph fails at other sizes, or runs and mixes the images of a batch.
"""

import copy
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx.inliner
from onnx import helper

from mmdeploy_ext.core.arrays import ArrayDistance
from mmdeploy_ext.core.errors import InferenceError, ModelFileError
from mmdeploy_ext.graph.diff.program import SHAPE_READERS
from mmdeploy_ext.graph.feeds import random_feeds, sizes_of
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.output_comparison import ROUNDING
from mmdeploy_ext.graph.passes.shapes import UNKNOWN, set_shapes
from mmdeploy_ext.graph.run import Runner

FOLDING = ('Reshape', 'Flatten')
"""Operators that can fold the batch into another axis."""
PICKING = ('Gather', 'GatherND', 'Slice')
"""Operators that can take one of the images by a constant."""


def try_sizes(before: onnx.ModelProto, after: onnx.ModelProto, *, seed: int = 0) -> str:
    """Run a graph whose input shapes were edited at sizes that it did not take before.

    Args:
        before: the graph before its input shapes were edited.
        after: the edited graph; an axis that became open is tried at twice its old size.
        seed: seed of the random inputs.

    Returns:
        The sizes that were tried, as text; '' if `before` takes all of them, and nothing was run.

    Raises:
        InferenceError: the edited graph does not run at these sizes: a size is baked into it.
        ModelFileError: ONNX Runtime can load neither of the two.
        UsageError: an input is no tensor of known type.
    """
    old_shapes, sizes = types.shapes(before.graph.input), trial_sizes(before, after)
    pairs = [pair for name, shape in sizes.items() for pair in zip(shape, old_shapes[name], strict=True)]
    if not any(isinstance(old_size, int) and old_size != size for size, old_size in pairs):
        return ''
    text = ', '.join(f'{name}={"x".join(map(str, shape))}' for name, shape in sizes.items())
    try:
        Runner(after).run(random_feeds(after, seed, sizes))
    except (InferenceError, ModelFileError) as error:
        Runner(before)  # if this one is not loaded either, the sizes are not the reason
        raise InferenceError(
            f'the graph does not run at {text}: a size is baked into its constants, so export it with that '
            f'axis open (--no-trial writes the file all the same): {error}'
        ) from error
    return text


def trial_sizes(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, list[int]]:
    """Return input -> the shape at which the edited graph `after` is tried.

    An axis of fixed size has that size, one that is fixed in `before` and open in `after` gets twice its old
    size, and one that is open in both gets the default of `random_feeds`: 1 if it is the first axis, else 64.
    Axes with the name of an opened one have its size, the first of several. Inputs with a default, or without
    a known rank, are left out.
    """
    inputs, old_shapes = Index(after).inputs, types.shapes(before.graph.input)
    pairs = {
        name: list(zip(new_shape, old_shapes[name], strict=True))
        for name, new_shape in types.shapes(after.graph.input).items()
        if name in inputs and new_shape is not None and old_shapes.get(name) is not None
    }
    doubled: dict[str, int] = {}
    for new, old in (pair for of_input in pairs.values() for pair in of_input):
        if isinstance(new, str) and new != '?' and isinstance(old, int):
            doubled.setdefault(new, 2 * old)

    def trial_size(new: int | str, old: int | str) -> int | str:
        if new == '?' and isinstance(old, int):
            return 2 * old
        return doubled.get(new, new)

    shapes = {name: [trial_size(*pair) for pair in of_input] for name, of_input in pairs.items()}
    return sizes_of(after, shapes)


def check_batch(before: onnx.ModelProto, after: onnx.ModelProto, *, seed: int = 0) -> str:
    """Refuse a graph whose constants, made for another batch, mix the images of this one or drop some.

    Reshape and Flatten may fold the batch into another axis, Gather, GatherND and Slice may take one image.
    That is a fault if it shows in an output: one without an axis that grows with the batch, or one where
    another image changes the results of the others. No other operators are looked at, so that a mean over the
    images passes, nor are nodes in the branches of If and the bodies of loops.

    Args:
        before: the graph before its batch was changed.
        after: the same graph with another batch, or an open one.
        seed: seed of the random inputs.

    Returns:
        What could not be checked, and why; '' if everything was checked, or if the batch is the same, or only
        the length of inputs of one axis.

    Raises:
        InferenceError: the graph mixes or drops images; the message names the first node and output.
        UsageError: an input is no tensor of known type.
    """
    sizes = trial_sizes(before, after)
    old_shapes, new_shapes = types.shapes(before.graph.input), types.shapes(after.graph.input)
    batches: dict[str, tuple[int, int]] = {}
    for name, shape in sizes.items():
        old_shape, new_shape = old_shapes[name], new_shapes[name]
        if old_shape and new_shape and old_shape[0] != new_shape[0]:
            old_batch = old_shape[0] if isinstance(old_shape[0], int) else 1
            if old_batch != shape[0]:
                batches[name] = old_batch, shape[0]
    if all(len(sizes[name]) == 1 for name in batches):
        return ''  # no batch changes, or what changes is the length of a list of numbers
    if len(set(batches.values())) > 1:
        changes = ', '.join(f'{name} from {old} to {new}' for name, (old, new) in batches.items())
        return f'not checked whether images are kept apart: the first axes change unalike ({changes})'
    model = onnx.inliner.inline_local_functions(after) if after.functions else after
    model = set_shapes(model, {name: [UNKNOWN, *(new_shapes[name] or [])[1:]] for name in batches})
    old, new = next(iter(batches.values()))
    try:
        problem, note = BatchTrial(Index(model), sizes, list(batches), (old, new), seed).judge()
    except (InferenceError, ModelFileError) as error:
        runs = f'a run with {old} and one with {new}, and one of them fails: {str(error).splitlines()[0]}'
        return f'not checked whether {new} images are kept apart: that takes {runs}'
    if problem:
        raise InferenceError(
            f'with {new} images instead of {old} the graph runs, but {problem} (--no-trial writes the file '
            f'all the same)'
        )
    return note


class BatchTrial:
    """A graph with an open batch, run with the old and with the new number of images.

    Attributes:
        index: the graph, by the names of its tensors and nodes.
        inputs: input -> its shape with the new batch, as `trial_sizes` returns it.
        images: names of the inputs whose first axis is the batch.
        batches: the old number of images and the new one.
        seed: seed of the random inputs.
        shapes: tensor that depends on the images, and that an output needs -> its shapes with the old and
            with the new number; also the images themselves.
    """

    def __init__(
        self,
        index: Index,
        inputs: Mapping[str, Sequence[int]],
        images: Sequence[str],
        batches: tuple[int, int],
        seed: int,
    ) -> None:
        """Run the graph with both batches, and read the shape of every tensor that depends on the images.

        Every such tensor gets a Shape node, so that no more of them are in memory than in any other run.

        InferenceError, ModelFileError: the graph does not run with one of the two.
        """
        self.index, self.inputs, self.images, self.batches, self.seed = index, inputs, images, batches, seed
        values = (*index.graph.value_info, *index.graph.output)
        tensors = {value.name for value in values if value.type.HasField('tensor_type')}
        needed = index.ancestors(index.outputs)
        tensors &= {name for position in needed for name in index.writes(position)}
        dependent = [name for position in index.descendants(images) for name in index.writes(position)]
        prefix = 'shape_of/'
        while any(name.startswith(prefix) for name in index.tensors):
            prefix += '/'
        measured = [name for name in (*images, *dependent) if name in tensors or name in images]
        sources = {prefix + name: name for name in measured}  # output of a Shape node -> what it measures
        model = copy.deepcopy(index.model)
        nodes = (helper.make_node('Shape', [name], [output]) for output, name in sources.items())
        model.graph.node.extend(nodes)
        runner = Runner(model, list(sources), shapes_first=True)
        old, new = (runner.run(self.feeds(batch, seed)) for batch in batches)
        self.shapes = {
            name: (tuple(old[output].tolist()), tuple(new[output].tolist()))
            for output, name in sources.items()
        }

    def feeds(self, batch: int, seed: int) -> dict[str, np.ndarray]:
        """Return random inputs of the graph (name -> array), drawn from `seed`, with `batch` images each."""
        shapes = {name: [batch, *self.inputs[name][1:]] for name in self.images}
        return random_feeds(self.index.model, seed, {**self.inputs, **shapes})

    def judge(self) -> tuple[str, str]:
        """Return two texts: what is wrong with the batch, and what could not be checked; '' for nothing.

        Only outputs behind a node that folds the batch into another axis, or takes images by a constant, are
        looked at. The second text is '' if something is wrong.
        """
        index = self.index
        separate = {name for name in self.shapes if self.batch_axis(name) is not None}
        faulty = self._faulty_nodes()
        reach = {node: self._flow([index.nodes[node].output[0]], separate) for node in faulty}
        empty = []
        for name in index.outputs:
            causes = [node for node, names in reach.items() if name in names and name not in separate]
            if causes and (name not in self.shapes or 0 in self.shapes[name][1]):
                empty.append(name)
            elif causes and self.loses_batch(name):
                return self._message(causes, reach, name), ''
        affected = self._flow([index.nodes[node].output[0] for node in faulty])
        mixed = self._first_mixed([name for name in index.outputs if name in affected])
        if mixed:
            ends = {name for names in reach.values() for name in names & separate}
            first = self._first_mixed([name for name in self.shapes if name in ends])
            causes = [node for node, names in reach.items() if first in names] or faulty
            return self._message(causes, reach, mixed), ''
        if empty:
            names = ', '.join(empty)
            return '', f'not checked whether {names} keeps the images apart: it is empty, or no tensor'
        return '', ''

    def changed_axes(self, name: str) -> list[int]:
        """Return the axes of a tensor whose sizes change with the batch; [] if the rank changes too.

        [] also for a tensor that does not depend on the images, or that no output needs.
        """
        old, new = self.shapes.get(name, ((), ()))
        return [axis for axis, size in enumerate(old) if size != new[axis]] if len(old) == len(new) else []

    def batch_axis(self, name: str) -> int | None:
        """Return which axis of a tensor is the batch; None if none is.

        It is the first axis whose size changes, if its sizes are the two batches, and if it is axis 0 or the
        only one that changes.
        """
        changed = self.changed_axes(name)
        if not changed or tuple(shape[changed[0]] for shape in self.shapes[name]) != self.batches:
            return None
        return changed[0] if changed[0] == 0 or len(changed) == 1 else None

    def loses_batch(self, name: str) -> bool:
        """Return whether a tensor has no batch axis although it may have held one batch before.

        Its first axis has the same size in both runs: the old batch, or, if that is 1, any size or no axis.
        """
        if name not in self.shapes or self.batch_axis(name) is not None:
            return False
        old, new = self.shapes[name]
        return old[:1] == new[:1] and (self.batches[0] == 1 or old[:1] == self.batches[:1])

    def keeps_old_batch(self, name: str) -> bool:
        """Return whether a tensor grows in proportion to the batch while its first axis stays the old batch.

        False for one that is empty, or that has a batch axis.
        """
        if not self.loses_batch(name) or self.shapes[name][0][:1] != self.batches[:1]:
            return False
        old, new = (math.prod(shape) for shape in self.shapes[name])
        return new * self.batches[0] == old * self.batches[1] > 0

    def _faulty_nodes(self) -> list[int]:
        """Return the nodes that fold the batch into another axis, or take some images by a constant."""
        index = self.index
        images, dependent = self._flow(self.images), index.descendants(index.inputs)
        computed = {*index.inputs, *(name for position in dependent for name in index.writes(position))}
        faulty = []
        for position in dependent:
            node = index.nodes[position]
            if images.isdisjoint(node.input[:1]):
                continue
            source, output = node.input[0], node.output[0]
            source_axis, output_axis = self.batch_axis(source), self.batch_axis(output)
            if source_axis is None or output not in self.shapes:
                continue
            if node.op_type in FOLDING:
                # the order is kept if equally many numbers lie before the batch: [B, 8] may become [1, B, 8]
                source_shape, output_shape = self.shapes[source][0], self.shapes[output][0]
                outer_sizes = math.prod(source_shape[:source_axis]), math.prod(output_shape[:output_axis])
                is_faulty = output_axis is None or outer_sizes[0] != outer_sizes[1]
            else:
                by_constant = node.op_type in PICKING and computed.isdisjoint(node.input[1:])
                is_faulty = by_constant and output_axis is None
            if is_faulty:
                faulty.append(position)
        return faulty

    def _first_mixed(self, names: Sequence[str]) -> str | None:
        """Return the first of some tensors where another image changes the results of the others.

        Tensors where it does so with the old batch too, or that differ between two runs, are left out.
        """
        names = [name for name in names if len(self.changed_axes(name)) == 1]
        names = [name for name in names if self.batch_axis(name) is not None]
        mixed = self._mixed(names, self.batches[1])
        if mixed:
            mixed -= self._mixed(sorted(mixed), self.batches[0])
        return next((name for name in names if name in mixed), None)

    def _mixed(self, names: Sequence[str], batch: int) -> set[str]:
        """Return the tensors where another first or last image changes the results of the others."""
        if batch < 2 or not names:
            return set()
        feeds, other_feeds = (self.feeds(batch, seed) for seed in (self.seed, self.seed + 1))
        runner, mixed = Runner(self.index.model, names), set()
        base = runner.run(feeds)
        for image in (0, batch - 1):
            changed = dict(feeds)
            for name in self.images:
                changed[name] = feeds[name].copy()
                changed[name][image] = other_feeds[name][image]
            arrays = runner.run(changed)
            mixed |= {name for name in names if _others_differ(arrays[name], base[name], image, batch)}
        again = runner.run(feeds) if mixed else base
        return {
            name
            for name in mixed
            if again[name].shape == base[name].shape and not ArrayDistance(again[name], base[name]).max_abs
        }

    def _flow(self, starts: Iterable[str], stops: Collection[str] = ()) -> set[str]:
        """Return the tensors whose values depend on those of `starts`, up to the first in `stops`."""
        names, waiting = set(starts), list(starts)
        while waiting:
            for position in self.index.consumers(waiting.pop()):
                if self.index.nodes[position].op_type not in SHAPE_READERS:
                    new_names = set(self.index.writes(position)) - names
                    names |= new_names
                    waiting.extend(new_names.difference(stops))
        return names

    def _message(self, causes: Sequence[int], reach: Mapping[int, set[str]], output: str) -> str:
        """Return which node mixes or drops the images of an output.

        If one of the causes, or a node behind them, has the old batch in its constants, that node is named.
        """
        index = self.index
        behind = {name for node in causes for name in reach[node] if self.keeps_old_batch(name)}
        folding = [position for position, node in enumerate(index.nodes) if node.op_type in FOLDING]
        with_old_batch = [position for position in folding if index.nodes[position].output[0] in behind]
        folding_causes = [position for position in causes if position in folding]
        nodes = with_old_batch or folding_causes or causes
        node = index.nodes[nodes[0]]
        label = f'{index.label(nodes[0])} ({node.op_type})'
        old, new = ('x'.join(map(str, shape)) or 'a scalar' for shape in self.shapes[node.output[0]])
        if not folding_causes:
            return (
                f'{label} still makes {new} of them: it takes images by a constant; output {output} leaves '
                f'out the others, or mixes the images. Export it without that'
            )
        count = f', as {len(nodes) - 1} others do' if len(nodes) > 1 else ''
        hint = ''
        if with_old_batch and node.op_type == 'Reshape' and self.batch_axis(node.input[0]) == 0:
            hint = ', or let the first number of these constants be 0, which keeps the axis'
        return (
            f'{label} makes {new} of what was {old}: its shape folds the batch into another axis{count}; '
            f'output {output} mixes the images. Export it with that axis open{hint}'
        )


def _others_differ(array: np.ndarray, base: np.ndarray, image: int, batch: int) -> bool:
    """Return whether two arrays differ beyond one image, whichever axis of that size holds the images.

    Floats may differ by rounding, integers not at all.
    """
    if array.shape != base.shape:
        return False
    rounding = ROUNDING if base.dtype.kind in 'fc' else 0.0
    axes = [axis for axis, size in enumerate(base.shape) if size == batch]
    rests = [[np.delete(values, image, axis) for values in (array, base)] for axis in axes]
    return bool(axes) and all(ArrayDistance(*rest).max_rel > rounding for rest in rests)
