"""The test path of a detector as one module of flat tensors: pictures in, results out.

Glossary: H, W network input in pixels, n results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.source_code import place_of_line
from mmdeploy_ext.exporting.export import patched_libraries, whole_path
from mmdeploy_ext.exporting.traced.functions import named_results, ranked, replaced
from mmdeploy_ext.exporting.traced.mode import PASSED, Escape, Tracing, is_traced
from mmdeploy_ext.spec.tensors import VALID
from mmdeploy_ext.upstream.operators.operator import FRAME, hw

INPUTS = ('input', 'img_shape', 'scale_factor', 'ori_shape', 'border')


def named(result: Any, path: str = '') -> dict[str, torch.Tensor]:
    """Return the tensors of a result by key, or by their place in lists."""
    if isinstance(result, torch.Tensor):
        return {path or 'output': result}
    if isinstance(result, np.ndarray):
        return {path or 'output': torch.from_numpy(result)}
    found: dict[str, torch.Tensor] = {}
    items = result.items() if isinstance(result, dict) else ()
    if isinstance(result, tuple | list):
        items = ((('' if len(result) == 1 else str(index)), value) for index, value in enumerate(result))
    for key, value in items:
        is_named = isinstance(value, torch.Tensor) and isinstance(result, dict)
        inner = str(key) if is_named and key not in found else '_'.join(filter(None, (path, str(key))))
        found |= {name: tensor for name, tensor in named(value, inner).items() if name not in found}
    return found


class Whole(nn.Module):
    """`simple_test` of a detector on one picture, and `valid`."""

    def __init__(
        self,
        model: nn.Module,
        names: tuple[str, ...] = (),
        inputs: tuple[str, ...] = INPUTS,
        borders: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.model, self.names, self.inputs, self.borders = model, names, inputs, borders
        self.mode: Tracing | None = None

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the results with an axis of one picture first, and `valid` (1,) bool.

        Args:
            tensors: the `inputs` in turn: `input` (1, 3, H, W) normalised; `img_shape` (1, 2) h, w before
                padding, 0 means the input size; `scale_factor` (1, 4) `w h w h`, input / original;
                `ori_shape` (2,) int64 h, w, 0 means the input size; `border` (1, 2) rows of padding above,
                columns left.
        """
        given = dict(zip(self.inputs, tensors, strict=True))
        if not is_traced():
            return self._eager(given)
        with replaced(self.model), whole_path(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            metas = self._metas(given)
            with Tracing(tensors) as self.mode:
                result = self.model.simple_test(given['input'], metas, rescale=True)
            rows = sorted_rows(named(result)) | {VALID: self.mode.valid()}
        self.found = {name: tensor[None] for name, tensor in rows.items()}
        results = tuple(self.found[name].clone() for name in self.names or self.found)
        return (*results, *(self.mode.borders[name] for name in self.borders))

    def _eager(self, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        metas = self._metas(given)
        for meta in metas:
            for name in ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'):
                meta[name] = tuple(map(int, meta[name]))
            meta['scale_factor'], meta['border'] = meta['scale_factor'].numpy(), meta['border'].numpy()
        with named_results(self.model), torch.no_grad(), ranked(self.model, {}) as mode:
            result = self.model.simple_test(given['input'], metas, rescale=True)
        rows = sorted_rows(named(result)) | {VALID: torch.ones((), dtype=torch.bool)}
        missing = torch.zeros(0)  # without a result some heads return no masks
        results = (rows.get(name, missing)[None] for name in self.names or rows)
        return (*results, *(mode.found.get(name, missing) for name in self.borders))

    def _metas(self, given: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        image = given['input']
        size = hw(image)
        shapes = {}
        for name in ('img_shape', 'ori_shape'):
            asked = given[name].reshape(2).to(torch.int64) if name in given else torch.zeros_like(size)
            shapes[name] = torch.where(asked > 0, asked, size)
        border = given['border'][0] if 'border' in given else torch.zeros(2)
        top, left = border[0], border[1]
        height, width = (shapes['img_shape'][axis] for axis in (0, 1))
        bottom, right = top + height, left + width
        return [
            dict(
                img_shape=(height, width, 3),
                ori_shape=(shapes['ori_shape'][0], shapes['ori_shape'][1], 3),
                pad_shape=(*image.shape[2:], 3),
                batch_input_shape=tuple(image.shape[2:]),
                scale_factor=given['scale_factor'][0],
                border=torch.stack([top, bottom, left, right]),
                filename='',
                ori_filename='',
                flip=False,
                flip_direction=None,
            )
        ]


def sorted_rows(results: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return results by descending score; some heads keep the order of a top-k that has none."""
    scores = results['dets'][:, -1] if 'dets' in results else results.get('scores')
    if scores is None or 'labels' not in results:
        return results
    order = scores.sort(0, descending=True)[1]
    return {name: tensor[order] for name, tensor in results.items()}


def trace(whole: Whole, tensors: Sequence[torch.Tensor]) -> tuple[torch._C.Graph, tuple[torch.Tensor, ...]]:
    """Return TorchScript's graph of a whole test path, and its results."""
    with patched_libraries(), torch.no_grad():
        graph, outputs = torch.jit._get_trace_graph(
            whole, tuple(tensors), strict=False, _force_outplace=False
        )
    return graph, outputs


@dataclasses.dataclass(frozen=True)
class Layout:
    """What two traces say of a whole test path.

    Attributes:
        outputs: name -> dtype and number of axes, `valid` last.
        used: inputs that an output depends on.
        escapes: facts of the example that the graph holds, each place once.
        borders: inner tensors where rounding decides.
        difference: first node in which the traces differ, and its line; '' if they are equal.
    """

    outputs: dict[str, tuple[str, int]]
    used: tuple[str, ...]
    escapes: tuple[Escape, ...]
    borders: tuple[str, ...]
    difference: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.outputs)


def layout_of(model: nn.Module, sizes: Sequence[tuple[int, int]], inputs: tuple[str, ...] = INPUTS) -> Layout:
    """Trace a test path twice, with other pictures, at two `sizes` (H, W), which may be equal."""
    wholes, graphs = [], []
    for seed, size in enumerate(sizes):
        whole = Whole(model, inputs=inputs).eval()
        graphs.append(trace(whole, example(model, size, seed, inputs))[0])
        wholes.append(whole)
    first, second = (whole.mode.escapes for whole in wholes)
    found = wholes[0].found
    return Layout(
        {name: (str(tensor.dtype).removeprefix('torch.'), tensor.dim()) for name, tensor in found.items()},
        _used(graphs[0], inputs),
        tuple(_held(first, second)),
        tuple(name for name in wholes[0].mode.borders if name in wholes[1].mode.borders),
        first_difference(*graphs),
    )


def example(
    model: nn.Module, size: tuple[int, int], seed: int, inputs: Sequence[str]
) -> tuple[torch.Tensor, ...]:
    like, (height, width) = next(model.parameters()), size
    draw = torch.Generator().manual_seed(seed)
    picture = torch.randn(1, getattr(model, 'picture_channels', 3), height, width, generator=draw)
    tensors = dict(
        input=picture,
        img_shape=torch.tensor([[height - 8.0 * seed, width - 12.0 * seed]]),
        scale_factor=torch.tensor([[0.5, 0.5, 0.5, 0.5]]) + 0.25 * seed,
        ori_shape=torch.tensor([2 * height + seed, 2 * width]),
        border=torch.zeros(1, 2),
    )
    return tuple(tensors[name].to(like.device) for name in inputs)


def _held(first: Sequence[Escape], second: Sequence[Escape]) -> Iterator[Escape]:
    """Yield the escapes whose fact is not the same for every picture, each place once."""
    values: dict[tuple[str, int], tuple[list[Any], list[Any]]] = {}
    for side, escapes in enumerate((first, second)):
        for escape in escapes:
            values.setdefault((escape.file, escape.line), ([], []))[side].append(repr(escape.value))
    seen = set()
    for escape in first:
        key = escape.file, escape.line
        is_same = escape.constant and values[key][0] == values[key][1]
        if escape.kind == 'value' and not is_same and key not in seen:
            seen.add(key)
            yield escape


def _used(graph: torch._C.Graph, names: Sequence[str]) -> tuple[str, ...]:
    reached = {value.unique() for value in graph.outputs()}
    for node in reversed(list(graph.nodes())):
        if node.kind().endswith('_') or reached.intersection(value.unique() for value in node.outputs()):
            reached.update(value.unique() for value in node.inputs())
    values = list(graph.inputs())[: len(names)]
    return tuple(name for name, value in zip(names, values, strict=True) if value.unique() in reached)


def line_of(node: torch._C.Node) -> str:
    """Return the innermost line of code that is neither PyTorch's nor an exporter's, FILE:LINE."""
    frames = [match.groups() for match in FRAME.finditer(str(node.sourceRange()))]
    lines = (f'{place_of_line(file)}:{line}' for file, line, _ in frames if not file.startswith(PASSED))
    return next(lines, 'a result')


def first_difference(first: torch._C.Graph, second: torch._C.Graph) -> str:
    """Return the first node in which two traces differ, with its line, or ''."""
    rows = [list(_rows(graph)) for graph in (first, second)]
    nodes = list(first.nodes())
    for node, *pair in zip(nodes, *rows, strict=False):
        if pair[0] != pair[1]:
            kinds = ' and '.join(dict.fromkeys(row[0] for row in pair))
            return f'{kinds} ({line_of(node)})'
    if len(rows[0]) != len(rows[1]):
        longer = max((first, second), key=lambda graph: len(list(graph.nodes())))
        node = list(longer.nodes())[min(map(len, rows))]
        return f'{node.kind()} ({line_of(node)})'
    return ''


def _rows(graph: torch._C.Graph) -> Iterator[tuple[str, tuple[int, ...], str]]:
    numbers: dict[int, int] = {}

    def number(value: torch._C.Value) -> int:
        return numbers.setdefault(value.unique(), len(numbers))

    for node in graph.nodes():  # values are numbered by their first use: a first run may register buffers
        constant = ''
        if node.kind() == 'prim::Constant' and node.output().type().kind() != 'FunctionType':
            constant = _constant(node.output().toIValue())
        yield node.kind(), tuple(map(number, node.inputs())), constant
        if node.kind() == 'aten::contiguous':  # of one cell, PyTorch returns the input itself
            numbers[node.output().unique()] = number(node.inputsAt(0))
        for value in node.outputs():
            number(value)


def _constant(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous()
        content = array.numpy().tobytes() if array.dtype != torch.bfloat16 else repr(array)
        digest = hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()
        return f'{array.dtype}{tuple(array.shape)}{digest}'
    return repr(value)
