"""The test path of a detector as one module of flat tensors: pictures in, results out.

Glossary: H, W network input in pixels, n results.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import itertools
import types
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.errors import one_line
from mmdeploy_ext.base.source_code import place_of_line
from mmdeploy_ext.base.user_modules import users_line
from mmdeploy_ext.exporting.export import patched_libraries, whole_path
from mmdeploy_ext.exporting.substitution import substituted
from mmdeploy_ext.exporting.traced.functions import named_results, ranked, replaced
from mmdeploy_ext.exporting.traced.mode import EACH, PASSED, Caps, Escape, Tracing, is_traced, shape_of
from mmdeploy_ext.spec.tensors import VALID
from mmdeploy_ext.upstream.operators.operator import FRAME, hw

INPUTS = ('input', 'img_shape', 'scale_factor', 'ori_shape', 'border')
LAYOUTS = 'mm2onnx_layouts'
"""Attribute of a model, a dict with its `Layouts`: other types of attributes are listed as its classes."""
CANDIDATES = 'candidate_boxes', 'candidate_scores', 'candidate_labels'
"""Outputs of the form `decode`: inputs of the last NMS."""
SIZE, NETWORK_VALID = OF_BATCH = 'network_size', 'network_valid'
"""Tensors behind the network: H, W (2,) int64; whether what its graph holds of the example is true (1,)."""


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


@dataclasses.dataclass(frozen=True)
class Cut:
    """The modules at the start of a test path that run once for all images of a batch: its network.

    Attributes:
        calls: path of a module -> its result, with names of maps (B, C, h, w) in place of the maps.
        names: of the maps that later code uses, in order.
        counts: numbers of inner tensors in the network, see `BorderNames`.
        borders: inner tensors in the network.
        refusal: why there are no calls, or why other code takes one image.
    """

    calls: Mapping[str, Any]
    names: tuple[str, ...] = ()
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    borders: tuple[str, ...] = ()
    refusal: str = ''

    def results(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return path of a module's `forward` -> its result, of `tensors`, with None for others."""
        return {f'{path}.forward': nested(names, tensors.get) for path, names in self.calls.items()}

    def maps(self, path: str, result: Any) -> dict[str, torch.Tensor]:
        return dict(zip(leaves(self.calls[path]), leaves(result), strict=True))


def nested(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return nested lists with changed leaves."""
    if isinstance(value, dict):
        return {key: nested(one, change) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([nested(one, change) for one in value])
    return change(value)


def leaves(value: Any) -> list[Any]:
    found: list[Any] = []
    nested(value, found.append)
    return found


class Reached(Exception):
    """The network of a test path is done."""


@contextlib.contextmanager
def outer_calls(model: nn.Module, done: Any, begin: Callable[[], None] | None = None) -> Iterator[None]:
    """Inside the block `done(path, result)` follows each call of a module by the test path itself."""
    inner: list[str] = []

    def watched(path: str, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if begin and not inner:
            begin()
        inner.append(path)
        try:
            result = forward(*args, **kwargs)
        finally:
            inner.pop()
        if not inner:
            done(path, result)
        return result

    with contextlib.ExitStack() as stack:
        for path, module in model.named_modules():
            if path:
                forward = functools.partial(watched, path, module.forward)
                stack.enter_context(mock.patch.object(module, 'forward', forward))
        yield


class Network(nn.Module):
    """The start of a test path up to its last map."""

    def __init__(self, model: nn.Module, cut: Cut) -> None:
        super().__init__()
        self.model, self.cut = model, cut

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return maps `Cut.names` of normalised images (B, 3, H, W), and `OF_BATCH`."""
        found: dict[str, torch.Tensor] = {}

        def done(path: str, result: Any) -> None:
            found.update(self.cut.maps(path, result))
            if path == list(self.cut.calls)[-1]:
                raise Reached

        valid = torch.ones((), dtype=torch.bool)
        with contextlib.ExitStack() as stack:
            for context in (replaced(self.model), whole_path()) if is_traced() else ():
                stack.enter_context(context)
            metas = metas_of({'input': image}) if is_traced() else eager_metas({'input': image})
            mode = stack.enter_context(Tracing((image,))) if is_traced() else None
            with outer_calls(self.model, done), contextlib.suppress(Reached):
                self.model.simple_test(image, metas, rescale=True)
            if mode:
                valid = mode.valid()
        return (*(found[name] for name in self.cut.names), hw(image), valid[None])


class Whole(nn.Module):
    """`simple_test` of a detector on one picture, or the part behind its network, and `valid`.

    With a number of `rows` the results are padded to it; with `caps` all shapes are constant, and boxes of
    NMS are counted. In the form `decode` the results are `CANDIDATES`.
    """

    def __init__(
        self,
        model: nn.Module,
        names: tuple[str, ...] = (),
        inputs: tuple[str, ...] = INPUTS,
        borders: tuple[str, ...] = (),
        cut: Cut | None = None,
        rows: int = 0,
        caps: Caps | None = None,
        form: str = 'full',
        end: End | None = None,
    ) -> None:
        super().__init__()
        self.model, self.names, self.inputs, self.borders = model, names, inputs, borders
        self.cut, self.rows, self.caps, self.form, self.end = cut, rows, caps, form, end
        self.results: list[int] = []
        self.calls: NetworkCalls | None = None
        self.mode: Tracing | None = None

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the results with an axis of one picture first, and `valid` (1,) bool.

        Args:
            tensors: the `inputs` in turn: `input` (1, 3, H, W) normalised; `img_shape` (1, 2) h, w before
                padding, 0 means the input size; `scale_factor` (1, 4) `w h w h`, input / original;
                `ori_shape` (2,) int64 h, w, 0 means the input size; `border` (1, 2) rows of padding above,
                columns left; the maps of `cut` and `OF_BATCH`.
        """
        images = shape_of(tensors[0])[0]
        if self.caps and images > 1:  # a loop's body may not have all operators in TensorRT
            of_image = (
                [one[image, None] if one.dim() > 1 else one for one in tensors] for image in range(images)
            )
            return tuple(map(torch.cat, zip(*(self.forward(*one) for one in of_image), strict=True)))
        given = dict(zip(self.inputs, tensors, strict=True))
        if SIZE in given:
            given['input'] = torch.zeros(()).expand(1, 3, given[SIZE][0], given[SIZE][1])
        if not is_traced():
            return self._eager(given)
        with contextlib.ExitStack() as stack:
            quiet = warnings.catch_warnings(), torch.no_grad()
            for context in (replaced(self.model), whole_path(), *quiet):
                stack.enter_context(context)
            warnings.simplefilter('ignore')
            if self.cut:
                stack.enter_context(substituted(self.model, self.cut.results(given)))
            if self.calls:
                stack.enter_context(outer_calls(self.model, self.calls.done, self.calls.begin))
            metas = metas_of(given)
            with Tracing(tensors, self.cut.counts if self.cut else {}, self.caps) as self.mode:
                result = self._run(given, metas)
            self.steady = tuple(
                name for name, one in self.mode.borders.items() if not self.mode.selected(one)
            )
            rows, conditions = self._rows(result)
            valid = self.mode.valid(conditions)
            if NETWORK_VALID in given:
                valid = valid & given[NETWORK_VALID][0]
            rows |= {VALID: valid} | self.mode.entered
        self.found = {name: tensor[None] for name, tensor in rows.items()}
        results = tuple(self.found[name].clone() for name in self.names or self.found)
        return (*results, *(border_of(name, self.mode.borders) for name in self.borders))

    def _run(self, given: Mapping[str, torch.Tensor], metas: Any) -> dict[str, torch.Tensor]:
        if self.end is None:
            return named(self.model.simple_test(given['input'], metas, rescale=True))
        with self.end.reached(self.model) as found:
            self.model.simple_test(given['input'], metas, rescale=True)
        return found

    def _rows(
        self, result: dict[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], Sequence[torch.Tensor]]:
        """Return the results, and the conditions under which they are right."""
        mode, self.results = self.mode, list(map(value_of, result.values()))
        if self.end:
            return {name: one for name, one in result.items() if mode.depends(one)}, mode.conditions
        rows = sorted_rows(result)
        if last := mode.suppressed:
            self.last_values = set(map(value_of, (*last.tensors, *last.conditions)))
        if self.form == 'decode':
            return dict(zip(CANDIDATES, last.tensors, strict=True)), last.conditions
        if self.caps:
            rows = without_dropped(rows, self.rows)
        elif self.rows:
            mode.conditions += [tensor.shape[0] <= self.rows for tensor in rows.values()][:1]
            rows = {name: padded(name, tensor, self.rows) for name, tensor in rows.items()}
        return rows, mode.conditions

    def _eager(self, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        metas, network = eager_metas(given), self.cut.results(given) if self.cut else {}
        given_maps = substituted(self.model, network)
        with named_results(self.model), torch.no_grad(), ranked(self.model, {}) as mode, given_maps:
            result = self._run(given, metas)
        rows = result if self.end else sorted_rows(result)
        if self.form == 'decode' and mode.suppressed:
            rows = dict(zip(CANDIDATES, list(mode.suppressed.values())[-1], strict=True))
        rows |= {VALID: torch.ones((), dtype=torch.bool)}
        missing = torch.zeros(0)  # without a result some heads return no masks
        self.found = {name: tensor[None] for name, tensor in rows.items()}
        results = (self.found.get(name, missing[None]) for name in self.names or rows)
        return (*results, *(border_of(name, mode.found, missing) for name in self.borders))


def border_of(name: str, borders: Mapping[str, torch.Tensor], missing: torch.Tensor | None = None) -> Any:
    """Return an inner tensor, with an axis of one image if its name has the prefix `EACH`."""
    found = borders.get(name.removeprefix(EACH), missing)
    return found[None] if name.startswith(EACH) else found


def metas_of(given: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Return the metadata of a picture, of traced tensors."""
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
            scale_factor=given['scale_factor'][0] if 'scale_factor' in given else torch.ones(4),
            border=torch.stack([top, bottom, left, right]),
            filename='',
            ori_filename='',
            flip=False,
            flip_direction=None,
        )
    ]


def eager_metas(given: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    metas = metas_of(given)
    for meta in metas:
        for name in ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'):
            meta[name] = tuple(map(int, meta[name]))
        meta['scale_factor'], meta['border'] = meta['scale_factor'].numpy(), meta['border'].numpy()
    return metas


def sorted_rows(results: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return results by descending score; some heads keep the order of a top-k that has none."""
    scores = results['dets'][:, -1] if 'dets' in results else results.get('scores')
    if scores is None or 'labels' not in results:
        return results
    order = scores.sort(0, descending=True)[1]
    return {name: tensor[order] for name, tensor in results.items()}


def without_dropped(results: dict[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
    """Return results of a constant size with `rows` rows; one is 0, its label -1, if its score is below 0."""
    present = (results['dets'][:, -1] if 'dets' in results else results['scores']) >= 0
    found = {}
    for name, tensor in results.items():
        empty = torch.tensor(-1 if name == 'labels' else 0).to(tensor.dtype)
        tensor = torch.where(present.reshape(-1, *[1] * (tensor.dim() - 1)), tensor, empty)
        is_short = shape_of(tensor)[0] < rows
        found[name] = padded(name, tensor, rows) if is_short else tensor[:rows]
    return found


def padded(name: str, tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Return a result with rows of 0, labels of -1, behind its own."""
    missing = (rows - tensor.shape[0], *tensor.shape[1:])
    return torch.cat([tensor, tensor.new_full(missing, -1 if name == 'labels' else 0)])


def network_of(model: nn.Module, size: tuple[int, int]) -> Cut:
    """Return the calls of modules that start a test path, with images of a size (H, W).

    They end before the first module whose results are no maps (B, C, h, w) of each image of a batch, or
    before other code that refuses a batch.
    """
    found, refusal = [], ''
    for batch in (3, 2):
        calls: dict[str, Any] = {}
        image = example(model, size, 0, INPUTS[:1])[0].expand(batch, -1, -1, -1).contiguous()

        def done(path: str, result: Any) -> None:
            if path in calls or not all(is_map(one, batch) for one in leaves(result)):  # noqa: B023
                raise Reached
            calls[path] = nested(result, lambda one: one)  # noqa: B023 later code may write to its lists

        try:
            with torch.no_grad(), outer_calls(model, done):
                model.simple_test(image, eager_metas({'input': image}) * batch, rescale=True)
        except Reached:
            pass
        except Exception as error:  # the user's code takes one image
            refusal = f'{type(error).__name__}: {one_line(error)}{users_line(error)}'
        found.append(calls)
    names = {}
    for other, (path, result) in zip(found[1], found[0].items(), strict=False):
        if other != path:
            break
        number = itertools.count()
        names[path] = nested(result, lambda _: f'{path.replace(".", "_")}_{next(number)}')  # noqa: B023
    return Cut(names, tuple(leaves(list(names.values()))), refusal=refusal)


@dataclasses.dataclass
class Reach:
    """What a trace knows when a network has come to the end of a module.

    Attributes:
        maps: value of the graph -> names of a map.
        inside: values of each module's call.
        known: conditions of `valid` so far.
        counts, borders: of inner tensors, see `Cut`.
    """

    maps: dict[int, list[str]]
    inside: tuple[range, ...]
    known: set[int]
    counts: dict[str, int]
    borders: tuple[str, ...]


class NetworkCalls:
    """Follows the calls of a network in a trace; `reached` has the path of each module."""

    def __init__(self, whole: Whole, network: Cut) -> None:
        self.whole, self.network = whole, network
        self.reached: dict[str, Reach] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._inside: list[range] = []
        self._start = 0

    def begin(self) -> None:
        self._start = _last_value()

    def done(self, path: str, result: Any) -> None:
        if path not in self.network.calls or path in self.reached:
            return
        mode, maps = self.whole.mode, {}
        self._inside.append(range(self._start + 1, _last_value() + 1))
        self._tensors |= self.network.maps(path, result)
        for name, tensor in self._tensors.items():
            maps.setdefault(value_of(tensor), []).append(name)
        known = set(map(value_of, mode.conditions))
        counts, borders = dict(mode.names.counts), tuple(mode.borders)
        self.reached[path] = Reach(maps, tuple(self._inside), known, counts, borders)

    def cut(self, graph: torch._C.Graph, image: torch.Tensor) -> Cut:
        """Return the longest network whose maps and sizes are all that later code takes from it.

        Later code runs once on an image: a graph does not have what it reads and does not use.
        """
        refusal, kept = self.network.refusal, dict(self.network.calls)
        for path, reach in reversed(self.reached.items()):
            used, reason = crossing(graph, reach)
            if used and not reason:
                names = tuple(name for name in self.network.names if name in used)
                cut = Cut(dict(kept), names, reach.counts, reach.borders, refusal)
                if not (reason := self._reads_others(cut, image)):
                    return cut
            del kept[path]
            refusal = refusal or reason
        return Cut({}, refusal=refusal or 'its first module returns no maps of each image')

    def _reads_others(self, cut: Cut, image: torch.Tensor) -> str:
        with torch.no_grad():
            maps = Network(self.whole.model, cut)(image)
        try:
            Whole(self.whole.model, inputs=('input', *cut.names, *OF_BATCH), cut=cut).eval()(image, *maps)
        except Exception as error:
            return f'its code reads a map that no result depends on{users_line(error)}'
        return ''


def value_of(tensor: torch.Tensor) -> int:
    return torch._C._get_value_trace(tensor).unique()


def _last_value() -> int:
    nodes = torch._C._get_tracing_state().graph().nodes()
    return max((value.unique() for node in nodes for value in node.outputs()), default=0)


WITHOUT_VALUES = {
    'aten::size', 'aten::new_zeros', 'aten::new_ones', 'aten::new_full', 'aten::new_empty',
    'aten::zeros_like', 'aten::ones_like', 'aten::full_like', 'aten::empty_like',
}  # fmt: skip
"""Operators that read the size and type of their first input."""


def crossing(graph: torch._C.Graph, network: Reach) -> tuple[set[str], str]:
    """Return the maps that later code uses, and why the network cannot be a graph of its own, or ''."""
    image, *settings = [value.unique() for value in graph.inputs()][: len(INPUTS)]
    if _sources(graph, network.maps).intersection(settings):
        return set(), 'its network reads sizes of images'
    reached: dict[int, tuple[Any, bool]] = {value.unique(): (None, False) for value in graph.outputs()}
    used, is_behind = set(), True
    for node in reversed(list(graph.nodes())):
        outputs = {value.unique() for value in node.outputs()}
        is_behind = is_behind and not network.maps.keys() & outputs
        needed = [reached[one] for one in outputs if one in reached]
        if outputs & network.known or not (needed or (is_behind and node.kind().endswith('_'))):
            continue
        user, is_inner = node if is_behind else needed[0][0], any(inner for _, inner in needed)
        names = [name for one in outputs for name in network.maps.get(one, ())]
        if names and is_inner:
            return used, f'{line_of(user)} reads inner tensors of the network'
        used.update(names)
        is_inner = any(one in inside for inside in network.inside for one in outputs)
        for one in () if names else _read(node, image, is_inner):
            reached[one] = user, is_inner or reached.get(one, (None, False))[1]
    for one in (image, *settings):
        user, is_inner = reached.get(one, (None, False))
        if user and (is_inner or one == image):
            return used, f'{line_of(user)} reads inner tensors of the network'
    return used, ''


def _sources(graph: torch._C.Graph, values: Iterable[int]) -> set[int]:
    sources = set(values)
    for node in reversed(list(graph.nodes())):
        if any(value.unique() in sources for value in node.outputs()):
            sources.update(value.unique() for value in node.inputs())
    return sources


def _read(node: torch._C.Node, image: int, is_inner: bool) -> list[int]:
    """Return the inputs of a node, without an image whose size alone it reads."""
    inputs = [value.unique() for value in node.inputs()]
    is_size = node.kind() in WITHOUT_VALUES and inputs[0] == image and not is_inner
    return inputs[1:] if is_size else inputs


def is_map(value: Any, batch: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 4 and value.shape[0] == batch


def trace(whole: Whole, tensors: Sequence[torch.Tensor]) -> torch._C.Graph:
    """Return TorchScript's graph of a whole test path."""
    with patched_libraries(), torch.no_grad():
        return torch.jit._get_trace_graph(whole, tuple(tensors), strict=False, _force_outplace=False)[0]


@dataclasses.dataclass(frozen=True)
class End:
    """The method where a test path leaves the tensors for Python or numpy; its arguments are the results.

    Attributes:
        path: of the method in the model, such as `panoptic_fusion_head.simple_test`.
        line: first line that reads values, FILE:LINE.
    """

    path: str
    line: str

    @contextlib.contextmanager
    def reached(self, model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
        """Run a test path up to the method in the block; the dict gets the tensors that it takes."""
        owner, _, name = self.path.rpartition('.')
        part, found = model.get_submodule(owner), {}
        method = getattr(part, name)

        def keep(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(method).bind(*args, **kwargs).arguments
            found.update(named(without_metas(given)))
            raise Reached

        with mock.patch.object(part, name, keep), contextlib.suppress(Reached):
            yield found


def without_metas(value: Any) -> Any:
    """Return nested tensors without the metadata of images, which are inputs of a graph."""
    if isinstance(value, dict):
        return {} if 'img_shape' in value else {key: without_metas(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [without_metas(one) for one in value]
    return value if isinstance(value, torch.Tensor) else None


def end_of(model: nn.Module, whole: Whole, places: Container[tuple[str, int]] | None = None) -> End | None:
    """Return the innermost method of a module where a trace left the tensors, first or at one of `places`."""
    paths = {id(module): path for path, module in model.named_modules() if path}
    for (file, line), methods in whole.mode.left.items() if whole.mode else ():
        for owner, name in methods if places is None or (file, line) in places else ():
            if id(owner) in paths and not isinstance(getattr(nn.Module, name, None), types.FunctionType):
                return End(f'{paths[id(owner)]}.{name}', f'{place_of_line(file)}:{line}')
    return None


def unlike(first: Sequence[Escape], second: Sequence[Escape]) -> set[tuple[str, int]]:
    """Return the places that loop, or compute in Python, over values that differ between two traces."""
    values: dict[tuple[str, int], tuple[list[str], list[str]]] = {}
    for side, escapes in enumerate((first, second)):
        for one in escapes:
            if one.kind == 'value' and not one.constant:
                value = '' if one.name == '__bool__' else repr(one.value)  # a branch is not left for good
                values.setdefault((one.file, one.line), ([], []))[side].append(value)
    return {place for place, sides in values.items() if sides[0] != sides[1]}


@dataclasses.dataclass(frozen=True)
class Layout:
    """What two traces say of a whole test path.

    Attributes:
        outputs: name -> dtype and number of axes, `valid` last.
        used: inputs that an output depends on.
        escapes: facts of the example that the graph holds, each place once.
        borders: inner tensors where rounding decides.
        difference: first node in which the traces differ, and its line; '' if they are equal.
        cut: where the network ends; without calls it is no stage of its own.
        candidates: inner tensors in front of the last NMS, then its boxes and scores; () without an NMS.
        read: inputs that these depend on.
        end: where the test path leaves the tensors, or None.
        steady: those of `borders` that have one size for all images of a batch.
    """

    outputs: dict[str, tuple[str, int]]
    used: tuple[str, ...]
    escapes: tuple[Escape, ...]
    borders: tuple[str, ...]
    difference: str
    cut: Cut
    candidates: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    end: End | None = None
    steady: tuple[str, ...] = ()

    @property
    def suppresses(self) -> bool:
        return any(name.startswith('nms_scores') for name in self.borders)

    @property
    def has_box_masks(self) -> bool:
        """Whether the results are boxes with masks in their frames."""
        dtype, _ = self.outputs.get('masks', ('', 0))
        return dtype == 'float32' and 'dets' in self.outputs


UNKNOWN = '', ''
"""Candidates of a layout of one run: a head may suppress nothing without a result."""


RESULTS = {'dets', 'labels', 'masks', 'scores', 'boxes', VALID}
"""Results that commands know; others come from code behind the tensors."""


class Layouts(dict[bool, Layout]):
    """Layouts of a model and its copies: of one run (False), of two traces (True).

    Attributes:
        is_loaded: whether the model has the weights of its export.
    """

    is_loaded = False

    def __deepcopy__(self, memo: Any) -> Layouts:
        return self


def layouts_of(model: nn.Module) -> Layouts:
    return vars(model).setdefault(LAYOUTS, {LAYOUTS: Layouts()})[LAYOUTS]


def outline_of(model: nn.Module, sizes: Sequence[tuple[int, int]]) -> Layout:
    """Run a test path once in PyTorch; heads without a result may return no masks."""
    whole = Whole(model).eval()
    whole(*example(model, sizes[0], 0, INPUTS))
    return Layout(_types(whole.found), INPUTS, (), (), '', network_of(model, sizes[0]), UNKNOWN)


def layout_of(model: nn.Module, sizes: Sequence[tuple[int, int]]) -> Layout:
    """Trace a test path twice, with other pictures, at two `sizes` (H, W), which may be equal.

    A test path that leaves the tensors for good is traced again, up to there.
    """
    first, second = (Whole(model).eval() for _ in sizes)
    first.calls = NetworkCalls(first, network_of(model, sizes[0]))
    examples = [example(model, size, seed, INPUTS) for seed, size in enumerate(sizes)]
    try:
        graph, other = trace(first, examples[0]), trace(second, examples[1])
        places = unlike(first.mode.escapes, second.mode.escapes)
        is_known = first.found.keys() <= RESULTS
        is_left = not is_known or not all(_used(graph, INPUTS[:1], {value}) for value in first.results)
        end = end_of(model, first, None if is_left else places)
    except Exception:
        if (end := end_of(model, first)) is None:
            raise
    if end:
        first, second = (Whole(model, end=end).eval() for _ in sizes)
        graph, other = trace(first, examples[0]), trace(second, examples[1])
        cut = Cut({}, refusal=f'the graph ends in {end.path}')
    else:
        cut = first.calls.cut(graph, examples[0][0])
    borders = [name for name in first.mode.borders if name in second.mode.borders]
    candidates, read = (), ()
    if (last := first.mode.suppressed) and second.mode.suppressed and not end:
        candidates = (*(name for name in last.borders if name in borders), *last.names)
        read = _used(graph, INPUTS, first.last_values)
    borders = [name for name in borders if name not in cut.borders]
    return Layout(
        _types(first.found),
        _used(graph, INPUTS),
        tuple(_held(first.mode.escapes, second.mode.escapes)),
        tuple(borders),
        first_difference(graph, other),
        cut,
        candidates,
        read,
        end,
        tuple(name for name in borders if name in first.steady),
    )


def _types(found: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, int]]:
    return {name: (str(tensor.dtype).removeprefix('torch.'), tensor.dim()) for name, tensor in found.items()}


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


def _used(graph: torch._C.Graph, names: Sequence[str], ends: Container[int] | None = None) -> tuple[str, ...]:
    """Return the inputs that the outputs, or `ends`, depend on."""
    reached = {value.unique() for value in graph.outputs()} if ends is None else set(ends)
    is_before = ends is None
    for node in reversed(list(graph.nodes())):
        is_read = bool(reached.intersection(value.unique() for value in node.outputs()))
        is_before = is_before or is_read
        if is_read or (is_before and node.kind().endswith('_')):
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
