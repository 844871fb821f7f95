"""Check that an edited graph computes the same, and that one with other shapes runs. Needs ONNX Runtime."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from mmdeploy_ext.core.errors import InferenceError, ModelFileError, ShapeError
from mmdeploy_ext.graph.diff.walk import compare
from mmdeploy_ext.graph.feeds import check_feeds, random_feeds
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.run import Runner

ROUNDING = 1e-5
"""Relative to an output's largest value: a kernel may sum in another order once a constant is an input."""


@dataclasses.dataclass(frozen=True)
class Proof:
    """Outputs of an edited graph beside those of the graphs that it was made from.

    `tensors` says of each output the largest absolute difference, relative to its largest absolute value;
    inf where shapes, dtypes, NaNs or integers differ.
    """

    tensors: dict[str, float]

    @property
    def exact(self) -> bool:
        """Whether all are the same, bit for bit; False when nothing was compared."""
        return bool(self.tensors) and not any(self.tensors.values())

    @property
    def equal(self) -> bool:
        """Whether all are the same up to rounding, `ROUNDING`; False when nothing was compared."""
        return bool(self.tensors) and max(self.tensors.values()) <= ROUNDING

    @property
    def text(self) -> str:
        """One line."""
        many = len(self.tensors)
        if self.exact:
            return f'EQUAL ON 1 INPUT: {many} outputs equal bit for bit on random numbers'
        if self.equal:
            most = max(self.tensors.values())
            return f'EQUAL ON 1 INPUT: {many} outputs equal on random numbers, to {most:.1e} of their largest'
        wrong = {name: value for name, value in self.tensors.items() if value > ROUNDING}
        words = ', '.join(f'{name} by {value:.3g}' for name, value in list(wrong.items())[:5])
        return f'NOT EQUAL: {len(wrong)} of {many} outputs differ (relative to their largest value): {words}'

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        tensors = {name: value if np.isfinite(value) else 'different' for name, value in self.tensors.items()}
        return dict(equal=self.equal, exact=self.exact, max_relative=tensors)


def prove(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    *,
    seed: int = 0,
    renamed: Mapping[str, str] | None = None,
) -> Proof:
    """Run a graph and one that was edited from it, and compare every output of the edited one.

    The edited graph gets its inputs from the same tensors of the first, so that cuts are compared too; their
    names may differ (`renamed`: old -> new). The shapes are those of the graph whose inputs are fixed.

    Raises:
        ShapeError: no inputs suit both.
        InferenceError: ONNX Runtime failed on one of them.
    """
    new = renamed or {}
    old = {name: other for other, name in new.items()}
    edited, feeds = Index(after), _common_feeds(before, after, new, seed)
    names = {name: old.get(name, name) for name in (*edited.inputs, *edited.outputs)}
    found = Runner(before, list(names.values())).run(feeds)
    result = Runner(after).run({name: found[names[name]] for name in edited.inputs})
    return Proof({name: difference(result[name], found[names[name]]) for name in edited.outputs})


def _common_feeds(
    before: onnx.ModelProto, after: onnx.ModelProto, new: Mapping[str, str], seed: int
) -> dict[str, np.ndarray]:
    """Return feeds of `before` that `after`, where tensors have `new` names, takes as well."""
    index, theirs, sizes = Index(before), types.shapes(after.graph.input), {}
    for name, own in types.shapes(before.graph.input).items():
        wanted = theirs.get(new.get(name, name))
        if name in index.inputs and wanted is not None and own is not None:
            sizes[name] = _filled(own, wanted)
    feeds = random_feeds(before, seed, _numbers(before, sizes))
    try:
        check_feeds(index, feeds)
    except ShapeError as error:
        raise ShapeError(f'--prove: no inputs suit both graphs: {error}') from error
    return feeds


def prove_chain(
    models: Sequence[onnx.ModelProto],
    merged: onnx.ModelProto,
    connections: Mapping[str, str],
    *,
    seed: int = 0,
) -> Proof:
    """Run models in the order of execution and compare the outputs of the one that was made from them.

    `connections` are output -> input that it feeds, where the names differ.
    """
    feeds = random_feeds(merged, seed)
    known: dict[str, Any] = dict(feeds)
    sources = {entry: out for out, entry in connections.items()}
    for model in models:
        inputs = Index(model).inputs
        given = {name: known[sources[name] if sources.get(name) in known else name] for name in inputs}
        known.update(Runner(model).run(given))
    result = Runner(merged).run(feeds)
    return Proof({name: difference(value, known[name]) for name, value in result.items()})


def difference(ours: Any, theirs: Any) -> float:
    """Return the largest difference of two outputs, relative to the largest absolute value of `theirs`.

    Returns inf where they cannot be subtracted: other shapes, dtypes, integers, NaNs or infinities.
    """
    if isinstance(ours, list) and isinstance(theirs, list):
        pairs = zip(ours, theirs, strict=False)
        return max((difference(*pair) for pair in pairs), default=0.0) if len(ours) == len(theirs) else np.inf
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    error, _ = compare(ours, theirs)
    same = ours.dtype == theirs.dtype and (ours.dtype.kind in 'fc' or not error)
    return error if same else np.inf


def try_sizes(before: onnx.ModelProto, after: onnx.ModelProto, *, seed: int = 0) -> str:
    """Run a graph at sizes that the graph before did not take, and return these as text; '' where all were.

    A size that was opened is tried at twice what it was. An InferenceError says that a size is baked in.
    """
    own, sizes = types.shapes(before.graph.input), trial_sizes(before, after)
    pairs = [pair for name, shape in sizes.items() for pair in zip(shape, own[name], strict=True)]
    if not any(isinstance(there, int) and there != size for size, there in pairs):
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
    fed, own = Index(after).inputs, types.shapes(before.graph.input)
    doubled: dict[str, int] = {}

    def size(new: int | str, old: int | str) -> int | str:
        if isinstance(new, int) or not isinstance(old, int):
            return new
        return 2 * old if new == '?' else doubled.setdefault(new, 2 * old)

    wanted = {
        name: [size(*pair) for pair in zip(new, own[name], strict=True)]
        for name, new in types.shapes(after.graph.input).items()
        if name in fed and new is not None and own.get(name) is not None
    }
    return _numbers(after, wanted)


def _numbers(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int | str]]) -> dict[str, list[int]]:
    """Replace the names in shapes by the sizes that `random_feeds` would take for them."""
    usual = random_feeds(model)
    return {name: _filled(shape, usual[name].shape) for name, shape in shapes.items()}


def _filled(shape: Sequence[int | str], other: Sequence[int | str]) -> list[int | str]:
    """Return a shape with the sizes of another one where it has names."""
    return [size if isinstance(size, int) else there for size, there in zip(shape, other, strict=True)]
