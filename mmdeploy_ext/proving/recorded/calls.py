"""Calls of a detector's `forward`: written for `record.py`, answered from its recording, and judged."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.base.errors import ConfigError, DataError, Mm2OnnxError, one_line, shortened
from mmdeploy_ext.base.files import path_in, read_json, sha256_file, will_read, write_json
from mmdeploy_ext.base.typed_json import JsonDataclass, Mismatch, optional, read
from mmdeploy_ext.proving.inputs import points_of, read_picture
from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.recorded import record
from mmdeploy_ext.proving.subject import Sample, Step, Subject
from mmdeploy_ext.runtime.detections3d import in_lidar_columns
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL
from mmdeploy_ext.spec.verdict import NOTHING_COMPARED, Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.runtime.frames import StepResult, StreamState
    from mmdeploy_ext.spec.verdict import Verdict


# Converts recorded results of every generation of OpenMMLab to results of mmdet 2.28 and mmdet3d 1.0.0rc6.


ARRAYS = np.ndarray | torch.Tensor
CORNERS_M = 1e-4
"""Largest difference of recorded corners from those of the right convention, relative to the range."""


def as_mmdet2(recorded: Any, own: Any, model: torch.nn.Module) -> Any:
    """Return a recorded result in the form of `own`, the result of the model here."""
    if not isinstance(recorded, list | tuple) or len(recorded) != len(own):
        raise DataError(f'the recorded result has {len(recorded)} samples, expected {len(own)}')
    samples = []
    for there, here in zip(recorded, own, strict=True):
        samples.append(_sample(there, here, model))
        _check_form(samples[-1], here)
    return type(own)(samples) if isinstance(own, list | tuple) else samples


def _sample(recorded: Any, own: Any, model: torch.nn.Module) -> Any:
    if isinstance(recorded, dict) and 'pred_instances_3d' in recorded and len(recorded['pred_instances_3d']):
        instances = recorded['pred_instances_3d']
        recorded = {name.replace('bboxes_3d', 'boxes_3d'): value for name, value in instances.items()}
        if 'pts_bbox' in own:
            recorded = dict(pts_bbox=recorded)
    elif isinstance(recorded, dict) and 'pred_panoptic_seg' in recorded:
        return dict(own, pan_results=np.asarray(recorded['pred_panoptic_seg']['sem_seg'])[0])
    elif isinstance(recorded, dict) and 'pred_instances' in recorded:
        return _by_class(recorded['pred_instances'], own)
    if isinstance(recorded, dict):
        return _with_boxes(recorded, model)
    return recorded


def _check_form(recorded: Any, own: Any) -> None:
    """Refuse results without an entry that `own` has, such as masks: it would not be compared."""
    if isinstance(own, dict):
        absent = [key for key in own if not isinstance(recorded, dict) or key not in recorded]
        if absent:
            raise DataError(f'the recorded result has no {", ".join(map(str, absent))}, expected {[*own]}')
        for key, value in own.items():
            if isinstance(value, ARRAYS | dict):
                _check_form(recorded[key], value)
    elif isinstance(own, ARRAYS):
        _check_shape(recorded, own)
    elif isinstance(own, list | tuple):
        if not isinstance(recorded, list | tuple) or len(recorded) != len(own):
            count = len(recorded) if isinstance(recorded, list | tuple) else type(recorded).__name__
            raise DataError(
                f'the recorded result has {count} entries, expected {len(own)} (classes, or boxes and masks)'
            )
        for there, here in zip(recorded, own, strict=True):
            if isinstance(own, tuple) or isinstance(here, ARRAYS):
                _check_form(there, here)


def _check_shape(recorded: Any, own: np.ndarray | torch.Tensor) -> None:
    """Refuse another number of axes or columns; the number of rows is compared later."""
    got = tuple(recorded.shape) if isinstance(recorded, ARRAYS) else type(recorded).__name__
    if isinstance(got, str) or len(got) != own.ndim or got[1:] != tuple(own.shape[1:]):
        raise DataError(f'the recorded result has {got}, expected {tuple(own.shape)}')


def _by_class(instances: Mapping[str, torch.Tensor], own: Any) -> Any:
    """mmdet 3's `InstanceData` as lists per class: of rows (n, 5), and of masks if the model has them."""
    rows = np.concatenate([instances['bboxes'].numpy(), instances['scores'].numpy()[:, None]], 1)
    if isinstance(own, np.ndarray):  # proposals
        return rows
    boxes_own = own[0] if isinstance(own, tuple) else own
    labels = instances['labels'].numpy()
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(boxes_own)):
        raise DataError(
            f'the recorded labels are {labels.min()} to {labels.max()}, expected {len(boxes_own)} classes'
        )
    of_class = [labels == index for index in range(len(boxes_own))]
    boxes = [rows[chosen] for chosen in of_class]
    if not isinstance(own, tuple):
        return boxes
    if 'masks' not in instances:
        raise DataError('the recorded result has no masks, the model here has')
    if isinstance(own[1], tuple):
        raise DataError(
            'the recorded scores are those of masks, as Mask Scoring R-CNN of mmdet 3 gives them; the model '
            'here has scores of boxes, too: give it a model without mask_iou_head on both sides'
        )
    masks = np.asarray(instances['masks'])
    for own_mask in (mask for of_own_class in own[1] for mask in of_own_class):
        # RTMDet-Ins of mmdet 3 leaves out rows and columns that end outside of the input
        missing = np.maximum(np.subtract(own_mask.shape, masks.shape[1:]), 0)
        masks = np.pad(masks, [(0, 0), *((0, count) for count in missing)])
        break
    return boxes, [list(masks[chosen]) for chosen in of_class]


def _with_boxes(result: dict[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    changed = dict(result)
    for name, value in result.items():
        if name == 'boxes_3d':
            rows = value['tensor'].float()
            ours = getattr(model, 'box_convention', '') or '1.x'
            theirs = convention_of(value) or ours
            if theirs != ours:
                raise DataError(
                    f'the recorded boxes are boxes of mmdet3d {theirs}, expected {ours}, as the file decodes '
                    f"them: write box_convention = '{theirs}' into the config, and export again"
                )
            changed[name] = LiDARInstance3DBoxes(rows, box_dim=rows.shape[-1], with_yaw=rows.shape[-1] > 6)
        elif isinstance(value, dict):
            changed[name] = _with_boxes(value, model)
    return changed


def convention_of(boxes: Mapping[str, Any]) -> str:
    """Return '1.x' or '0.17', whichever reading of the columns has the recorded corners; '': no boxes.

    DataError: neither has.
    """
    if 'corners' not in boxes:
        return ''
    rows, corners = boxes['tensor'].double().numpy(), boxes['corners'].double().numpy()
    readings = {'1.x': rows, '0.17': in_lidar_columns(rows)}
    misses = {name: _miss(corners, corners_of(reading)) for name, reading in readings.items()}
    name = min(misses, key=misses.__getitem__)
    scale = max(float(np.abs(corners).max()), 1.0)
    if not misses[name] <= CORNERS_M * scale:
        raise DataError(
            f'the recorded corners are {misses[name]:.2g} m away from those of our reading of the boxes: '
            f'this box convention is not known'
        )
    return name


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Return corners (n, 8, 3) of boxes (n, 7 or more) of mmdet3d 1.x: bottom center, l, w, h, yaw."""
    signs = np.array([[i, j, k] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for k in (0, 1)])
    places = signs * boxes[:, None, 3:6]
    cosine, sine = np.cos(boxes[:, 6])[:, None], np.sin(boxes[:, 6])[:, None]
    x, y, z = np.moveaxis(places, -1, 0)
    return np.stack([x * cosine - y * sine, x * sine + y * cosine, z], -1) + boxes[:, None, :3]


def _miss(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest distance, per axis, of a corner to the nearest of the same box."""
    between = np.abs(first[:, :, None] - second[:, None]).max(-1)
    return float(between.min(2).max())


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
        heads: outputs of heads here and recorded ones, and what runs the former again; see `Heads`.
        answered: files of the recorded inputs that were compared.
        left_out: names of inputs without a recording.
        unreadable: why recorded inputs could not be compared.
        headless: files of the answered inputs whose heads' outputs could not be compared.
        notes: why they could not.
    """

    def __init__(self, folder: str | Path, has_memory: bool = False) -> None:
        """Read the manifest of a folder."""
        self.folder, path, self.has_memory = Path(folder), Path(folder) / MANIFEST, has_memory
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
        self.heads: list[Sample] = []
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

            def run_again() -> dict[str, np.ndarray]:
                again: list[tuple[str, Any]] = []
                with record.watched(model, names, again), contextlib.suppress(Exception):
                    run()  # what follows the heads may refuse float64
                return _arrays(again)

            try:
                with readable(f'{self.folder}: {call.name}'):
                    arrays = load_arrays(self.folder / call.file)
                    self._keep_heads(name, call, arrays, outputs, run_again)
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

    def _keep_heads(
        self,
        name: str,
        call: RecordedCall,
        arrays: Mapping[str, np.ndarray],
        here: Sequence[tuple[str, Any]],
        run_again: Callable[[], dict[str, np.ndarray]],
    ) -> None:
        recorded = [(module.name, record.restored(module.outputs, arrays)) for module in call.modules]
        expected, actual = _arrays(here), _arrays(recorded)
        shapes, shapes_there = (
            {key: array.shape for key, array in side.items()} for side in (expected, actual)
        )
        other = [key for key in {**shapes, **shapes_there} if shapes.get(key) != shapes_there.get(key)]
        if not actual:
            self._note(call, 'no output of a head was recorded: name modules with --module of record.py')
        elif other:
            self._note(
                call,
                f'{", ".join(other)}: not compared: other shapes, or only on one side',
            )
        else:
            self.heads.append(Sample(name, (expected, actual, run_again)))

    def _note(self, call: RecordedCall, text: str) -> None:
        self.headless.append(call.file)
        if text not in self.notes:
            self.notes.append(text)


class Heads(Subject):
    """Outputs of heads of the model here, and the recorded ones."""

    again = -1

    def __init__(self, recording: Recording, model: torch.nn.Module) -> None:
        self.given, self.rtol = recording.heads, recording.rtol
        self.module = None if recording.has_memory else model

    def sample(self, entry: Sample, index: int, mode: str) -> Sample:
        return entry

    def want(self, sample: Sample, state: Any) -> Step:
        return Step(sample.data[0])

    def got(self, sample: Sample, state: Any) -> Step:
        return Step(sample.data[1])

    def tensors(self, sample: Sample, state: Any, got: Step) -> Mapping[str, np.ndarray]:
        return sample.data[2]()


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


# A model of frames or sweeps whose results are recorded ones.


class RecordedStepper:
    """A reference with the tensors of the model here, and the results of `detector.recording`."""

    def __init__(self, detector: Detector, reference: Any) -> None:
        self.detector, self.reference = detector, reference

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reference, name)

    @property
    def state(self) -> StreamState | None:
        return self.reference.state

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.reference.state = state

    def step(self, sample: Any) -> StepResult:
        with around(self.detector, sample.name or 'sample'):
            return self.reference.step(sample)


# Findings of a recorded reference.


LEVELS, MEAN_LEVELS = 2.0, 0.1
"""Grey levels between two OpenCV builds' prepared images, at most and on average."""


def judge_recording(verdict: Verdict, detector: Detector, files: Sequence[Path]) -> None:
    """Add findings on the recorded model, its heads' outputs, and its inputs.

    `files`: the proof's images or sweeps, to compare the user's own test pipeline there.
    """
    recording: Recording = detector.recording
    manifest = recording.manifest
    others = identity_of(manifest, detector.model, detector.checkpoint_sha256)
    text = '; '.join(others[:3]) + (f'; and {len(others) - 3} more' if len(others) > 3 else '')
    verdict.findings.append(Finding('surroundings', 'recorded weights', not others, text))
    verdict.findings += _settings(manifest, detector)
    verdict.findings += _preparation(recording, detector, files)
    for case in compare(Heads(recording, detector.model))[0]:
        for row in case.tensors:
            title = f'{case.name}: recorded {row.tensor}'
            facts = dict(recorded=case.name)
            verdict.findings.append(Finding('outputs', title, row.passed, row.reason, facts))
    verdict.add_failures(filter(None, [_gap(verdict, recording)]))
    answered = len(dict.fromkeys(recording.answered))
    inputs = 'input' if answered == 1 else 'inputs'
    rests_on = f'recorded on {answered} {inputs}'
    if recording.headless:
        rests_on += f', {len({*recording.headless})} with results only'
    verdict.subject['recorded'] = f'{recording.title} ({rests_on})'
    verdict.notes += recording.notes
    verdict.notes += [f'recorded: {line}' for line in manifest.said]
    if unsteady := [call.name for call in manifest.calls if not call.repeats]:
        verdict.notes.append(f'a second run there gave different values: {", ".join(unsteady)}')


def _gap(verdict: Verdict, recording: Recording) -> str:
    """Return why the verdict is not one on the recorded results, or ''."""
    again = 'run mm2onnx record again with the --images and --frames of this command'
    if recording.unreadable:
        return recording.unreadable[0]
    if not recording.answered:
        return f'no input of this proof was recorded: {again}'
    if left_out := sorted({*recording.left_out}):
        return (
            f'the recording answered {len(dict.fromkeys(recording.answered))} inputs; compared with PyTorch '
            f'here: {", ".join(left_out)}: {again}'
        )
    has_results = bool(verdict.with_figure('image') or verdict.series)
    there = verdict.summary()['reference'] + sum(sum(one['reference']) for one in verdict.series.values())
    if not (there if has_results else recording.heads):
        return f'{NOTHING_COMPARED}: the recording has no results'
    return ''


def _preparation(recording: Recording, detector: Detector, files: Sequence[Path]) -> Iterator[Finding]:
    """Compare images and sweeps of the user's test pipeline and of the file's rule."""
    by_content = {sha256_file(path): path for path in files}
    for entry in recording.manifest.own:
        subject, path = f'recorded preparation of {entry.name}', by_content.get(entry.sha256)
        if path is None:
            yield Finding('surroundings', subject, None, 'no file of --images has this content')
            continue
        compare = _compare_points if path.suffix == '.bin' else _compare_picture
        with readable(f'{recording.folder}: {entry.name}'):
            fed = record.restored(entry.fed, load_arrays(recording.folder / entry.file))
            compared = compare(_network_input(fed), path, detector)
        yield Finding('surroundings', subject, *compared)


def _compare_picture(there: np.ndarray, path: Path, detector: Detector) -> tuple[bool, str]:
    here = prepare_image(detector.rule, read_picture(path, detector.rule)).tensor[None]
    if there.shape != here.shape:
        return False, f'recorded {there.shape}, here {here.shape}'
    levels = np.abs(there - here) * np.float32(detector.rule.std)[:, None, None]
    text = f'{levels.max():.3g} grey levels apart at most, {levels.mean():.3g} on average'
    return bool(levels.max() <= LEVELS and levels.mean() <= MEAN_LEVELS), text


def _compare_points(there: np.ndarray, path: Path, detector: Detector) -> tuple[bool, str]:
    """Compare a single sweep's points, in order, in the model's range."""
    with tempfile.TemporaryDirectory() as folder:
        infos = Path(folder) / 'infos.pkl'
        infos.write_bytes(pickle.dumps([dict(lidar_path=str(path.resolve()), sweeps=[], timestamp=0)]))
        ((_, here),) = points_of(str(infos), detector.cfg, detector.rule, 1)
    low, high = np.float32(detector.rule.point_cloud_range).reshape(2, 3)
    there, here = (cloud[((cloud[:, :3] > low) & (cloud[:, :3] < high)).all(1)] for cloud in (there, here))
    if there.shape != here.shape:
        return False, f'recorded points {there.shape}, here {here.shape}'
    apart = np.abs(there - here).max(0, initial=0)
    columns = ', '.join(f'column {index} by {apart[index]:.3g}' for index in np.flatnonzero(apart))
    return not columns, columns and f'points differ: {columns} at most'


def _network_input(fed: Mapping[str, Any]) -> np.ndarray:
    value = fed.get('inputs', fed)
    if isinstance(value, dict):
        value = value['points' if 'points' in value else 'img']
    while isinstance(value, list | tuple):
        (value,) = value
    return value.numpy()


def _settings(manifest: Manifest, detector: Detector) -> list[Finding]:
    """Compare class names and, in the same generation of OpenMMLab, `test_cfg`."""
    findings = []
    if len(manifest.classes) == len(detector.classes):  # a checkpoint of RPN names classes without outputs
        same = [*manifest.classes] == [*map(str, detector.classes)]
        text = '' if same else f'recorded {manifest.classes[:5]}, here {[*detector.classes][:5]}'
        findings.append(Finding('surroundings', 'recorded classes', same, text))
    own = detector.cfg.model.get('test_cfg') or detector.cfg.get('test_cfg')
    if 'mmengine' not in manifest.versions and own and manifest.test_cfg:
        there, here = _plain(manifest.test_cfg), _plain(own)
        names = sorted(key for key in {*there, *here} if there.get(key) != here.get(key))
        text = ', '.join(f'{name}: recorded {there.get(name)}, here {here.get(name)}' for name in names[:3])
        findings.append(Finding('surroundings', 'recorded test_cfg', not names, text))
    return findings


def _plain(settings: Any, prefix: str = '') -> dict[str, str]:
    """Return dotted key -> text of each value."""
    if isinstance(settings, dict):
        rows: dict[str, str] = {}
        for key, value in settings.items():
            rows |= _plain(value, f'{prefix}{key}.')
        return rows
    if isinstance(settings, list | tuple):
        return {prefix.rstrip('.'): str([*settings])}
    return {prefix.rstrip('.'): str(settings)}
