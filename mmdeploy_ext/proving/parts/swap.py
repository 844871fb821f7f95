"""Sessions in place of the parts of a live model."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from mmdeploy_ext.base.arrays import to_array
from mmdeploy_ext.base.errors import ConfigError, shape_text
from mmdeploy_ext.families.evaluate.loop import Network
from mmdeploy_ext.graphs.io.files import load
from mmdeploy_ext.graphs.passes.round_half import round_half
from mmdeploy_ext.graphs.run import Runner
from mmdeploy_ext.proving.metrics import compare_metrics
from mmdeploy_ext.proving.parts.arrays import stacks_of
from mmdeploy_ext.proving.parts.folder import CutFolder, result_of
from mmdeploy_ext.proving.parts.graph import array_input
from mmdeploy_ext.proving.parts.part import Part, Tree, arguments_of, intercepted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from mmdeploy_ext.proving.parts.export import ModelFactory
    from mmdeploy_ext.spec.results import MetricRow


PASSED_ON = (
    *(
        'view',
        'reshape',
        'flatten',
        'unflatten',
        'squeeze',
        'unsqueeze',
        'permute',
        'transpose',
        'contiguous',
    ),
    *('split', 'chunk', 'unbind', '__getitem__', 'clone', 'detach', 'to', 'float', 'type', 'type_as'),
)
"""Functions that return a tensor's values in another form."""
SIZES = ('__get__', 'size', 'dim', 'numel', 'stride', '__len__', 'is_floating_point', 'is_contiguous')
"""Functions that read no value."""


class Inside(torch.Tensor):
    """Stands for an inner step's result that the part's graph lacks: no code may read it.

    Attributes:
        place: words for the step.
    """

    place: str

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, '__name__', '')
        first = next(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Inside))
        if name not in (*PASSED_ON, *SIZES) and not name.startswith('new_'):
            raise ConfigError(
                f'{first.place}, is also read by other code ({name}), but a graph returns only the '
                'results of its last step: export it as a separate part'
            )
        with torch._C.DisableTorchFunctionSubclass():
            results = func(*args, **(kwargs or {}))
        return (
            pytree.tree_map(lambda leaf: _inside(leaf, first.place), results)
            if name in PASSED_ON
            else results
        )


def _inside(leaf: Any, place: str) -> Any:
    if isinstance(leaf, torch.Tensor):
        leaf = leaf.as_subclass(Inside)
        leaf.place = place
    return leaf


class PartSession:
    """One exported part in ONNX Runtime."""

    def __init__(self, folder: CutFolder, entry: dict[str, Any], round_fp16: bool = False) -> None:
        """Open a session.

        Args:
            folder: the exported folder.
            entry: of the part.
            round_fp16: round stored float16 values as GPUs do.
        """
        self.entry, self.part, self.is_seeded = entry, Part.parse(entry['part']), folder.is_seeded
        graph = load(str(folder.file(entry)))
        self.runner = Runner(round_half(graph) if round_fp16 else graph, optimization='all')
        self.taken = {value.name for value in self.runner.index.graph.input}

    def run(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return path -> output tensor; ConfigError: a tensor is missing or has another shape."""
        feeds, device = {}, None
        for entry in self.entry['inputs']:
            if entry['path'] not in tensors:
                raise ConfigError(f'{self.part.text}: got no {entry["path"]}, which its graph needs')
            tensor = tensors[entry['path']]
            device = tensor.device if device is None and not entry['metas'] else device
            _check_shape(self.part, entry, tensor)
            if entry['name'] in self.taken:
                feeds[entry['name']] = to_array(tensor)
        results = self.runner.run(feeds)
        outputs = {}
        for entry in self.entry['outputs']:
            tensor = torch.from_numpy(results[entry['name']])
            outputs[entry['path']] = tensor.to(device=device, dtype=getattr(torch, entry['dtype']))
        return outputs


def _check_shape(part: Part, entry: dict[str, Any], tensor: torch.Tensor) -> None:
    expected = entry['shape']
    fits = len(expected) == tensor.dim() and all(
        isinstance(axis, str) or axis == size for axis, size in zip(expected, tensor.shape, strict=True)
    )
    if not fits:
        raise ConfigError(
            f'{part.text}: {entry["path"]} is {shape_text(tensor.shape)}, its graph expects '
            f'{shape_text(expected)}; an axis is dynamic if it differs between the samples of the export'
        )


def _check_rig(part: Part, rig: Mapping[str, Any], stacks: Mapping[str, np.ndarray]) -> None:
    for key, values in rig.items():
        if key in stacks and not np.array_equal(stacks[key], values):
            raise ConfigError(
                f'{part.text}: its graph is valid only for the camera rig of the export, and {key} '
                'differs; export it with samples of this rig'
            )


class _Swapped:
    """Handlers of a part's steps: the first runs the session, the last returns its results."""

    def __init__(self, session: PartSession) -> None:
        self.session, self.pending = session, {}
        steps = session.part.steps
        self.handlers = {step: functools.partial(self.handle, index) for index, step in enumerate(steps)}

    def handle(
        self, index: int, original: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        entry = self.session.entry
        if index == 0:
            arguments = arguments_of(original, args, kwargs)
            tensors = dict(Tree.of(arguments).tensors)
            stacks = stacks_of(arguments)
            _check_rig(self.session.part, entry.get('rig', {}), stacks)
            keys = [tensor['path'] for tensor in entry['inputs'] if tensor['metas']]
            tensors |= {key: array_input(stacks[key]) for key in keys if key in stacks}
            self.pending = self.session.run(tensors)
        if index == len(entry['results']) - 1:
            return result_of(entry['results'][index], self.pending)
        part = self.session.part
        place = f'{part.text}: what {part.steps[index].text} returns'
        stand_ins = {
            leaf['tensor']: _inside(torch.zeros(leaf['shape'], dtype=getattr(torch, leaf['dtype'])), place)
            for leaf in entry['results'][index]['leaves']
            if 'tensor' in leaf
        }
        return result_of(entry['results'][index], stand_ins)


def open_sessions(folder: CutFolder, round_fp16: bool = False) -> list[PartSession]:
    """Return a session per part."""
    return [PartSession(folder, entry, round_fp16) for entry in folder.entries]


@contextlib.contextmanager
def swapped(model: torch.nn.Module, sessions: Sequence[PartSession]) -> Iterator[None]:
    """Inside the block the sessions run in place of their parts."""
    handlers = {}
    for session in sessions:
        handlers |= _Swapped(session).handlers
    with intercepted(model, handlers), torch.no_grad():
        yield


@contextlib.contextmanager
def with_parts(model: torch.nn.Module, folder: str | Path) -> Iterator[torch.nn.Module]:
    """Inside the block exported parts replace a model's own modules.

    Args:
        model: the parts' source, with its weights.
        folder: of `mm2onnx export --parts`.

    Yields:
        The model. Its parts run in ONNX Runtime on the CPU; everything else runs as before.

    Raises:
        UsageError: no such folder, or the model lacks a part.
        ConfigError: a part gets other tensors or sizes than at its export.
    """
    with swapped(model, open_sessions(CutFolder.read(folder))):
        yield model


# Evaluation of a config's data set in PyTorch and with sessions in place of parts.


class OneByOneDetector(Network):
    """A detector for single samples in data set order, as parts and memories require."""

    one_by_one = True

    def __init__(self, model: nn.Module) -> None:
        from mmcv.parallel import MMDataParallel

        device = next(model.parameters()).device
        ids = [device.index or 0] if device.type == 'cuda' else [-1]
        self.model = MMDataParallel(model, device_ids=ids)
        if device.type == 'cpu':
            self.model.device_ids = []

    def run(self, data: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
        with torch.no_grad():
            return self.model(return_loss=False, rescale=True, **data)


class SwappedDetector(OneByOneDetector):
    """A detector with sessions in place of its parts."""

    def __init__(self, factory: ModelFactory, folder: CutFolder) -> None:
        self.own_model = factory.make()
        self.sessions = open_sessions(folder)
        super().__init__(self.own_model)

    def run(self, data: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
        with swapped(self.own_model, self.sessions):
            return super().run(data, indices)


def compare_on_dataset(factory: ModelFactory, folder: CutFolder, metrics: Sequence[str]) -> list[MetricRow]:
    """Evaluate `data.test` by both; the export's precision sets the bars."""
    networks = OneByOneDetector(factory.make()), SwappedDetector(factory, folder)
    return compare_metrics(factory.cfg, *networks, metrics, folder.options['precision'])
