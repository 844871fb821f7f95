"""Calls of a detector's `forward`: written for `record.py`, and answered from its recording."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.base.errors import ConfigError, DataError, Mm2OnnxError, one_line, shortened
from mmdeploy_ext.base.file_names import path_in
from mmdeploy_ext.base.files import read_json, will_read, write_json
from mmdeploy_ext.base.typed_json import JsonDataclass, Mismatch, optional, read
from mmdeploy_ext.proving.recorded import record
from mmdeploy_ext.proving.recorded.results import as_mmdet2
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.spec.results import TensorRow

Heads = list[tuple[str, Any]]
"""(module, outputs) of each call."""
MANIFEST = 'manifest.json'
GPU_RTOL = 1e-3
"""Tolerance of the heads' outputs from a GPU, of a slice's largest value."""
NEAR = 1e-5
"""Relative difference of an input's sums on two machines."""


@dataclasses.dataclass(frozen=True)
class FileId(JsonDataclass):
    name: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class InputSums(JsonDataclass):
    """Shapes and sums of an input's arrays, by which it is found again on another machine."""

    shapes: tuple[tuple[int, ...], ...]
    sums: tuple[tuple[float, float], ...]

    def check(self) -> None:
        if len(self.shapes) != len(self.sums):
            raise Mismatch(f'an input has {len(self.shapes)} shapes and {len(self.sums)} sums')

    def is_near(self, other: InputSums) -> bool:
        return self.shapes == other.shapes and np.allclose(self.sums, other.sums, NEAR, 1e-9)


@dataclasses.dataclass(frozen=True)
class RecordedModule(JsonDataclass):
    """JSON of `record.Tree`."""

    name: str
    outputs: Any


@dataclasses.dataclass(frozen=True)
class RecordedCall(JsonDataclass):
    """A call of `forward`: `result` and outputs are JSON of `record.Tree`, with arrays in `file`."""

    name: str
    file: str
    input: InputSums
    modules: tuple[RecordedModule, ...]
    result: Any
    seconds: float = optional(0.0)
    repeats: bool = optional(True)


@dataclasses.dataclass(frozen=True)
class RecordedSample(JsonDataclass):
    """A sample of the user's own test pipeline."""

    name: str
    sha256: str
    file: str
    fed: Any


@dataclasses.dataclass(frozen=True)
class Manifest(JsonDataclass):
    """The manifest that `record.py` writes; `library` is a key of `versions`."""

    format: int
    versions: Mapping[str, str]
    library: str
    device: str
    cuda: str | None
    device_name: str
    checkpoint: FileId
    config: FileId
    test_cfg: Any
    classes: tuple[str, ...]
    weights: Mapping[str, str]
    said: tuple[str, ...]
    own: tuple[RecordedSample, ...]
    unknown_types: tuple[str, ...]
    calls: tuple[RecordedCall, ...]

    def check(self) -> None:
        if missing := {self.library, 'torch'} - self.versions.keys():
            raise Mismatch(f'versions has no {sorted(missing)[0]!r}')


@contextlib.contextmanager
def readable(place: object) -> Iterator[None]:
    """Turn Python errors in the block into a DataError: the JSON of a `record.Tree` may hold anything."""
    try:
        yield
    except Mm2OnnxError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f'{place}: cannot be read ({type(error).__name__}: {one_line(error)[:200]}); record again'
        ) from error


def around(detector: Detector, name: str) -> contextlib.AbstractContextManager[None]:
    """Give the calls of the model inside a block to `detector.recording`; `name` titles the input."""
    if detector.recording is None:
        return contextlib.nullcontext()
    return detector.recording.calls_of(detector.model, name)


class Ask:
    """The folder that goes to the environment of the training: inputs, `ask.json` and `record.py`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def calls_of(self, model: torch.nn.Module, name: str) -> Iterator[None]:
        """Inside the block each call of the model's `forward` is written with a title."""
        with _calls(model, lambda run, arguments: self._add(name, arguments) or run()):
            yield

    def _add(self, name: str, arguments: Mapping[str, Any]) -> None:
        tree, file = record.Tree(), f'{len(self.calls):06d}.npz'
        entry = tree.put(arguments)
        if tree.unknown:
            raise ConfigError(f'{name}: the arguments {", ".join(tree.unknown)} of forward cannot be written')
        np.savez_compressed(self.folder / file, **tree.arrays)
        self.calls.append(dict(name=name, file=file, arguments=entry, input=sums_of(tree.arrays).to_json()))

    def finish(self, checkpoint_sha256: str) -> None:
        if not self.calls:
            raise ConfigError(
                "the results of this file do not come from the detector's own forward; export it in the "
                'form full or raw'
            )
        write_json(
            self.folder / 'ask.json',
            dict(format=record.FORMAT, checkpoint=checkpoint_sha256, calls=self.calls),
        )
        shutil.copyfile(record.__file__, self.folder / 'record.py')


class Recording:
    """What `record.py` wrote.

    Attributes:
        manifest: see `record.py`.
        rows: (input, comparison of a head's output here with the recorded one).
        answered: files of the recorded inputs that were compared.
        left_out: names of inputs without a recording.
        unreadable: why recorded inputs could not be compared.
        headless: files of the answered inputs whose heads' outputs could not be compared.
        notes: why they could not.
    """

    def __init__(self, folder: str | Path, compare: Callable[..., Iterable[TensorRow]]) -> None:
        """Read the manifest of a folder.

        `compare(here, recorded, rtol, run)` compares arrays of heads by name; `run()` computes `here` again.
        """
        self.folder, path, self._compare = Path(folder), Path(folder) / MANIFEST, compare
        if not path.is_file():
            raise DataError(f'--recorded {folder}: has no {MANIFEST}; record.py writes it')
        content = read_json(path)
        written = content.get('format') if isinstance(content, dict) else None
        if written != record.FORMAT:
            raise DataError(
                f'{path}: has the format {shortened(written)}, expected {record.FORMAT}; record again with '
                f'the record.py of mm2onnx record --ask'
            )
        try:
            self.manifest = read(Manifest, content)
        except Mismatch as error:
            raise DataError(f'{path}: {error}; record again') from error
        names = (entry.file for entry in (*self.manifest.calls, *self.manifest.own))
        will_read('a file of the recording', [path, *(path_in(self.folder, name, path) for name in names)])
        self.rows: list[tuple[str, TensorRow]] = []
        self.answered: list[str] = []
        self.left_out: list[str] = []
        self.unreadable: list[str] = []
        self.headless: list[str] = []
        self.notes: list[str] = []
        self._next: dict[str, int] = {}

    @property
    def title(self) -> str:
        """Such as 'mmdet 3.3.0 with torch 2.1.0+cu121'."""
        versions, library = self.manifest.versions, self.manifest.library
        return f'{library} {versions[library]} with torch {versions["torch"]}'

    @property
    def rtol(self) -> float:
        return GPU_RTOL if self.manifest.device.startswith('cuda') else DEFAULT_RTOL

    @contextlib.contextmanager
    def calls_of(self, model: torch.nn.Module, name: str) -> Iterator[None]:
        """Inside the block `forward` runs, is compared with the recording, and returns what was recorded.

        An input that was not recorded keeps its own result.
        """

        def answer(run: Callable[[], Any], arguments: Mapping[str, Any]) -> Any:
            tree = record.Tree()
            tree.put(arguments)
            call = self._find(sums_of(tree.arrays))
            if call is None:
                self.left_out.append(name)
                return run()
            names = {module.name for module in call.modules}
            outputs: list[tuple[str, Any]] = []
            with record.watched(model, names, outputs):
                own = run()

            def run_again() -> list[tuple[str, Any]]:
                again: list[tuple[str, Any]] = []
                with record.watched(model, names, again), contextlib.suppress(Exception):
                    run()  # what follows the heads may refuse float64
                return again

            try:
                with readable(f'{self.folder}: {call.name}'):
                    arrays = load_arrays(self.folder / call.file)
                    self._compare_heads(name, call, arrays, outputs, run_again)
                    result = as_mmdet2(record.restored(call.result, arrays, 'cpu'), own, model)
            except DataError as error:  # of an input that a proof may do without
                self.unreadable.append(str(error))
                raise
            self.answered.append(call.file)
            return result

        with _calls(model, answer):
            yield

    def _find(self, sums: InputSums) -> RecordedCall | None:
        fitting = [call for call in self.manifest.calls if call.input.is_near(sums)]
        if not fitting:
            return None
        key = fitting[0].file  # equal inputs were recorded in order
        place = self._next.get(key, 0)
        self._next[key] = place + 1
        return fitting[place] if place < len(fitting) else None

    def _compare_heads(
        self,
        name: str,
        call: RecordedCall,
        arrays: Mapping[str, np.ndarray],
        here: Heads,
        run_again: Callable[[], Heads],
    ) -> None:
        recorded = [(module.name, record.restored(module.outputs, arrays)) for module in call.modules]
        expected, actual = _arrays(here), _arrays(recorded)
        if not actual:
            self._note(call, 'no output of a head was recorded: name modules with --module of record.py')
            return
        shapes, shapes_there = (
            {key: array.shape for key, array in side.items()} for side in (expected, actual)
        )
        if other := [key for key in {**shapes, **shapes_there} if shapes.get(key) != shapes_there.get(key)]:
            self._note(
                call,
                f'{", ".join(other)}: not compared: other shapes, or only on one side',
            )
            return
        rows = self._compare(expected, actual, self.rtol, lambda: _arrays(run_again()))
        self.rows += ((name, row) for row in rows)

    def _note(self, call: RecordedCall, text: str) -> None:
        self.headless.append(call.file)
        if text not in self.notes:
            self.notes.append(text)


def sums_of(arrays: Mapping[str, np.ndarray]) -> InputSums:
    shapes, sums = [], []
    for array in arrays.values():
        values = np.abs(np.nan_to_num(np.asarray(array, np.float64).reshape(-1), posinf=0, neginf=0))
        weights = np.arange(1, values.size + 1) / max(values.size, 1)
        shapes.append(list(np.shape(array)))
        sums.append([float(values.sum()), float(values @ weights)])
    return InputSums(shapes, sums)


@contextlib.contextmanager
def _calls(
    model: torch.nn.Module, call: Callable[[Callable[[], Any], Mapping[str, Any]], Any]
) -> Iterator[None]:
    """Inside the block `call(run, arguments)` takes the place of the model's `forward`."""
    forward = model.forward

    def instead(*args: Any, **arguments: Any) -> Any:
        if args:
            raise ConfigError('the detector is called with arguments by position, which are not recorded')
        return call(lambda: forward(**arguments), arguments)

    with replaced_entry(vars(model), 'forward', instead):
        yield


def _arrays(outputs: Iterable[tuple[str, Any]]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for call, (name, value) in enumerate(outputs):
        leaves = _tensors(value)
        title = f'{name}' if not call else f'{name}, call {call + 1}'
        arrays |= {f'{title}[{index}]': leaf.detach().cpu().numpy() for index, leaf in enumerate(leaves)}
    return arrays


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, dict):  # generations of a head fill it in another order
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, torch.Tensor):
        yield value


def identity_of(manifest: Manifest, model: torch.nn.Module, checkpoint_sha256: str) -> list[str]:
    """Return why the recorded model is another one than `model`, or []."""
    if manifest.checkpoint.sha256 == checkpoint_sha256:
        return []
    recorded = {*manifest.weights.values()}
    other = [
        name
        for name, value in model.state_dict().items()
        if not name.endswith('num_batches_tracked') and record.weight_digest(value) not in recorded
    ]
    return [f'no weight of the recorded model equals {name}' for name in other]
