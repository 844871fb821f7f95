"""Whether a graph keeps several images apart when its batch axis gets another size. Needs ONNX Runtime."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.errors import InferenceError, ModelFileError
from mmdeploy_ext.graph import types
from mmdeploy_ext.graph.index import Index
from mmdeploy_ext.graph.passes.shapes import UNKNOWN, set_shapes
from mmdeploy_ext.graph.run import Runner, random_feeds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

RESHAPING = ('Reshape', 'Flatten')


@dataclasses.dataclass(frozen=True)
class Batches:
    """Shapes of tensors in a run with as many images as before, and in one with more."""

    sizes: tuple[int, int]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def grows(self, name: str) -> bool:
        """Return whether the first axis of a tensor is the batch."""
        return tuple(shape[0] if shape else 0 for shape in self.shapes[name]) == self.sizes

    def folds(self, name: str) -> bool:
        """Return whether a tensor holds more for more images while its first axis stays the old batch."""
        one, more = self.shapes[name]
        if not one or not more or (one[0], more[0]) != (self.sizes[0],) * 2:
            return False
        return int(np.prod(more)) * self.sizes[0] == int(np.prod(one)) * self.sizes[1] > 0


def check_batch(before: onnx.ModelProto, after: onnx.ModelProto, *, seed: int = 0) -> None:
    """Refuse a graph whose Reshape nodes fold another batch into another axis.

    Raises:
        InferenceError: they do, up to an output: a constant of theirs holds the old batch. Names the first.
    """
    model, sizes = _opened(before, after)
    if model is None or sizes[0] == sizes[1]:
        return
    index = Index(model)
    nodes = [node for node in index.nodes if node.op_type in RESHAPING]
    ends = [name for node in nodes for name in (node.input[0], node.output[0])]
    names = list(dict.fromkeys([*index.outputs, *ends]))
    try:
        found = _shapes(model, before, sizes, names, seed)
    except (InferenceError, ModelFileError):
        return  # it does not run with that batch alone: the trial at the sizes asked for speaks of that
    folded = [name for name in index.outputs if found.folds(name)]
    guilty = [node for node in nodes if found.grows(node.input[0]) and found.folds(node.output[0])]
    if not folded or not guilty:
        return
    label = index.label(index.nodes.index(guilty[0]))
    others = f', as {len(guilty) - 1} others do' if len(guilty) > 1 else ''
    one, more = ('x'.join(map(str, shape)) for shape in found.shapes[guilty[0].output[0]])
    raise InferenceError(
        f'with {sizes[1]} images instead of {sizes[0]} the graph runs, but {label} ({guilty[0].op_type}) '
        f'makes {more} of what was {one}: its constant shape folds the batch into another axis{others}; '
        f'output {folded[0]} mixes the images. Export it with that axis open, '
        f'or let the first number of these constants be 0, which keeps the axis (--no-trial writes the file '
        f'all the same)'
    )


def _opened(
    before: onnx.ModelProto, after: onnx.ModelProto
) -> tuple[onnx.ModelProto | None, tuple[int, int]]:
    """Return the graph with an open batch, where the edit changes that of its inputs, and both batches."""
    index, new = Index(before), {value.name: types.shape(value.type) for value in after.graph.input}
    shapes: dict[str, Sequence[int | str]] = {}
    batches: set[tuple[int, int]] = set()
    for value in before.graph.input:
        old, wanted = types.shape(value.type), new.get(value.name)
        if value.name not in index.inputs or not old or not wanted or old[0] == wanted[0]:
            continue
        first = old[0] if isinstance(old[0], int) else 1
        batches.add((first, wanted[0] if isinstance(wanted[0], int) else 2 * first))
        shapes[value.name] = [UNKNOWN, *old[1:]]
    if len(batches) != 1:
        return None, (0, 0)
    return set_shapes(before, shapes), batches.pop()


def _shapes(
    model: onnx.ModelProto, before: onnx.ModelProto, sizes: tuple[int, int], names: Sequence[str], seed: int
) -> Batches:
    """Run the graph with both batches, the other axes as they were."""
    usual = {name: list(array.shape) for name, array in random_feeds(before, seed).items()}
    opened = {
        value.name
        for value in model.graph.input
        if (types.shape(value.type) or [0])[0] == UNKNOWN and value.name in usual
    }
    runner, found = Runner(model, names), []
    for batch in sizes:
        feeds: Mapping[str, Any] = {
            name: [batch, *shape[1:]] if name in opened else shape for name, shape in usual.items()
        }
        results = runner.run(random_feeds(model, seed, feeds))
        found.append({name: np.shape(value) for name, value in results.items()})
    return Batches(sizes, {name: (found[0][name], found[1][name]) for name in names})
