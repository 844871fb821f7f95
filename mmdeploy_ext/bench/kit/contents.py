"""The content of a kit: raw arrays, and a manifest with the dtype and shape of each. Needs numpy only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from mmdeploy_ext.base.errors import DataError, UsageError
from mmdeploy_ext.base.files import name_problem, path_in, read_json, sha256_file, will_read
from mmdeploy_ext.base.typed_json import Bounds, JsonDataclass, Mismatch, optional, read
from mmdeploy_ext.runtime.detect import check_registered, has_runtime, runtime_of
from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.panoptic import Segments
from mmdeploy_ext.runtime.tasks import TASKS
from mmdeploy_ext.spec.metadata import Metadata
from mmdeploy_ext.spec.registry import registered
from mmdeploy_ext.spec.tensors import GraphSpec

MODEL, MANIFEST, LINES, KIT_HASH = 'model.onnx', 'manifest.json', 'manifest.txt', 'kit.txt'
"""Names of files. Folders of outputs have a `KIT_HASH`, too: the hash of the kit they were computed from."""
LIBSPCONV = 'libspconv'
"""`engine` in the manifest of a sparse backbone, whose file only NVIDIA's libspconv runs."""
DTYPES = (
    *('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64'),
    *('float16', 'float32', 'float64'),
)
"""Dtypes of stored arrays."""
FORMAT = 4
"""Format of the manifest; other formats are refused."""
RESULTS = {cls.__name__: cls for cls in (Detections, Instances, Segments, Detections3D)}
"""Name in the manifest -> class of the results of an image or frame."""


@dataclasses.dataclass(frozen=True)
class StoredArray(JsonDataclass):
    """A file of raw values, little-endian."""

    file: str
    dtype: str
    shape: tuple[Annotated[int, Bounds(0)], ...]

    def check(self) -> None:
        if self.dtype not in DTYPES:
            raise Mismatch(f'{self.file}: dtype is {self.dtype!r}, expected one of {", ".join(DTYPES)}')


Stored = Mapping[str, StoredArray]
"""Arrays by name."""


@dataclasses.dataclass(frozen=True)
class StoredResults(JsonDataclass):
    """Results of an image: the class `type` and its fields, `facts` are no arrays."""

    type: str
    fields: Stored
    facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class StoredCase(JsonDataclass):
    """The entry of a `KitCase`, which describes the fields."""

    name: str
    graph: str
    title: str
    images: tuple[str, ...]
    inputs: Stored
    beside: Stored
    tensors: Stored
    rounding: Stored
    results: tuple[StoredResults, ...]
    output_shapes: Mapping[str, tuple[Annotated[int, Bounds(0)], ...]]

    def check(self) -> None:
        if problem := name_problem(self.name):
            raise Mismatch(f'the name of a case {problem}')
        if len(self.results) not in (0, len(self.images)):
            raise Mismatch(f'{self.name}: {len(self.images)} images have {len(self.results)} results')

    def arrays(self) -> list[StoredArray]:
        parts = [self.inputs, self.beside, self.tensors, self.rounding]
        parts += [entry.fields for entry in self.results]
        return [array for part in parts for array in part.values()]


@dataclasses.dataclass(frozen=True)
class StoredGraph(JsonDataclass):
    """The entry of a `KitGraph`: metadata of a file that mm2onnx exported, else its spec."""

    name: str
    file: str
    metadata: Mapping[str, str] | None = optional()
    spec: Any = optional()
    source_sha256: str = optional('')

    def check(self) -> None:
        if problem := name_problem(self.file):
            raise Mismatch(f'the file of graph {self.name} {problem}')


@dataclasses.dataclass(frozen=True)
class Step(JsonDataclass):
    """A case, and input name -> name of the latest output that replaces the case's input."""

    case: str
    computed: Mapping[str, str]


def file_stem(name: str) -> str:
    """File name of a tensor, without suffix: '/' becomes '%2F'."""
    return urllib.parse.quote(name, safe='.:+-_@,=()[]')


def name_of_stem(stem: str) -> str:
    """Inverse of `file_stem`."""
    return urllib.parse.unquote(stem)


class ArrayFolder:
    """Writes arrays into a kit as raw little-endian files; equal arrays share a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[bytes, str] = {}

    def write(self, place: str, arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
        """Write `place`/NAME.bin; return the manifest's entries: `file`, `dtype`, `shape`."""
        entries = {}
        for name, array in arrays.items():
            array = np.asarray(array)
            content = array.astype(array.dtype.newbyteorder('<')).tobytes()
            file = self._files.setdefault(hashlib.sha256(content).digest(), f'{place}/{file_stem(name)}.bin')
            path = self.folder / file
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            entries[name] = dict(file=file, dtype=array.dtype.name, shape=list(array.shape))
        return entries


def read_array(folder: Path, entry: StoredArray) -> np.ndarray:
    """Read the array of a manifest's entry; DataError: its file is of another size."""
    path, dtype = folder / entry.file, np.dtype(entry.dtype).newbyteorder('<')
    check_size(path, entry)
    return np.frombuffer(path.read_bytes(), dtype).reshape(entry.shape).astype(entry.dtype)


def check_size(path: Path, entry: StoredArray) -> None:
    size_bytes = path.stat().st_size
    if size_bytes != np.dtype(entry.dtype).itemsize * math.prod(entry.shape):
        raise DataError(f'{path}: has {size_bytes} bytes, expected {entry.dtype} {list(entry.shape)}')


def read_arrays(folder: Path, entries: Stored) -> dict[str, np.ndarray]:
    return {name: read_array(folder, entry) for name, entry in entries.items()}


def result_classes(family: str = '') -> dict[str, type]:
    """Name -> class of results: `RESULTS`, and `RESULT` of a family's runtime."""
    family_class = getattr(runtime_of(family), 'RESULT', None) if has_runtime(family) else None
    return RESULTS if family_class is None else RESULTS | {family_class.__name__: family_class}


def result_parts(results: Any, family: str = '') -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    """Class name, arrays and other values of an image's results."""
    classes = result_classes(family)
    for cls in type(results).__mro__:
        if cls is classes.get(cls.__name__):
            fields = {field.name: getattr(results, field.name) for field in dataclasses.fields(cls)}
            arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
            facts = {
                name: value for name, value in fields.items() if value is not None and name not in arrays
            }
            return cls.__name__, arrays, facts
    raise UsageError(
        f'results of the class {type(results).__name__}: a kit supports {", ".join(classes)}; prove this '
        'model on this machine with mm2onnx verify'
    )


@dataclasses.dataclass(frozen=True)
class KitGraph:
    """One ONNX file of a kit.

    Attributes:
        name: prefix of its cases' names in a kit of frames or sweeps.
        file: path in the kit.
        metadata: None if mm2onnx did not export the file.
        spec: names, dtypes, axes and tolerances of the tensors.
    """

    name: str
    file: str
    metadata: Metadata | None
    spec: GraphSpec

    def to_json(self) -> dict[str, Any]:
        entry: dict[str, Any] = dict(name=self.name, file=self.file)
        if self.metadata is not None:
            return entry | dict(metadata=self.metadata.to_props())
        return entry | dict(spec=self.spec.to_json())

    @classmethod
    def from_json(cls, content: StoredGraph | Mapping[str, Any]) -> KitGraph:
        entry = read(StoredGraph, content)
        if entry.metadata is not None:
            metadata = Metadata.from_props(entry.metadata, entry.file)
            return cls(entry.name, entry.file, metadata, metadata.spec)
        return cls(entry.name, entry.file, None, GraphSpec.from_json(entry.spec))


@dataclasses.dataclass(frozen=True)
class KitCase:
    """One input of one file of a kit.

    Attributes:
        name: name of its folders, '000', or 'head_000' in a kit of frames or sweeps.
        graph: name of its `KitGraph`.
        title: 'batch of 2', or the name of the frame.
        images: title of each image of the batch; empty if no results are compared.
        inputs: arrays by input name.
        beside: arrays that only the post-processing outside of the graph takes.
        tensors: PyTorch's values of the outputs that are compared as tensors.
        results: PyTorch's results, one object of `result_classes` per image.
        family: family with a result class of its own, or ''.
        rounding: distances of `tensors` from PyTorch's in float64, where it runs.
    """

    name: str
    graph: str
    title: str
    images: tuple[str, ...]
    inputs: dict[str, np.ndarray]
    beside: dict[str, np.ndarray]
    tensors: dict[str, np.ndarray]
    results: list[Any]
    family: str = ''
    rounding: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def write(self, folder: ArrayFolder, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Write the arrays into a kit; return the manifest's entry."""
        results = []
        for index, image in enumerate(self.results):
            name, arrays, facts = result_parts(image, self.family)
            fields = folder.write(f'results/{self.name}/{index}', arrays)
            results.append(dict(type=name, fields=fields, facts=facts))
        rounding = {name: array.astype(np.float32) for name, array in self.rounding.items()}
        return dict(
            name=self.name,
            graph=self.graph,
            title=self.title,
            images=list(self.images),
            inputs=folder.write(f'inputs/{self.name}', self.inputs),
            beside=folder.write(f'beside/{self.name}', self.beside),
            tensors=folder.write(f'expected/{self.name}', self.tensors),
            rounding=folder.write(f'rounding/{self.name}', rounding),
            results=results,
            output_shapes={name: list(np.shape(array)) for name, array in outputs.items()},
        )

    @classmethod
    def read(cls, folder: Path, entry: StoredCase, family: str = '') -> KitCase:
        """Read a case and its arrays from the manifest's entry."""
        classes, results = result_classes(family), []
        for image in entry.results:
            if image.type not in classes:
                if family:
                    check_registered(family)
                raise DataError(
                    f'{folder}: results of the class {image.type}; expected one of {", ".join(classes)}'
                )
            fields = {field.name: field for field in dataclasses.fields(classes[image.type])}
            given = {**read_arrays(folder, image.fields), **image.facts}
            needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
            if not needed <= given.keys() <= fields.keys():
                raise DataError(
                    f'{folder / MANIFEST}: {entry.name}: results have {", ".join(given)}; {image.type} has '
                    f'{", ".join(fields)}'
                )
            results.append(classes[image.type](**given))
        names = ('inputs', 'beside', 'tensors', 'rounding')
        parts = {part: read_arrays(folder, getattr(entry, part)) for part in names}
        return cls(
            entry.name, entry.graph, entry.title, entry.images, **parts, results=results, family=family
        )


Row = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class ChainedFrame(JsonDataclass):
    """One frame of a kit with files that run one after the other, on outputs of earlier files.

    Attributes:
        name: number, '000'; outputs of the last file are called `chain_000`.
        title: title of the frame.
        steps: the cases that run.
        reset: the memory is emptied before the frame; always True without a memory.
        scene: '' if there is none.
        timestamp_s: seconds, absolute; 0 of a module.
        ego_pose: (4, 4) LiDAR frame to global frame; None without a memory.
    """

    name: str
    title: str
    steps: Annotated[tuple[Step, ...], Bounds(1)]
    reset: bool = True
    scene: str = ''
    timestamp_s: float = 0.0
    ego_pose: tuple[Row, Row, Row, Row] | None = None

    def check(self) -> None:
        if problem := name_problem(self.outputs):
            raise Mismatch(f'the name of the outputs of a frame {problem}')

    @property
    def outputs(self) -> str:
        return f'chain_{self.name}'

    @property
    def last_case(self) -> str:
        return self.steps[-1].case

    def to_json(self) -> dict[str, Any]:
        return dict(super().to_json(), outputs=self.outputs)


@dataclasses.dataclass(frozen=True)
class Manifest(JsonDataclass):
    """What the programs of this package read of a manifest.

    Attributes:
        files: path in the kit -> SHA-256.
        task: of the results; None without.
        memory: `MemorySpec` of a model with one, as JSON.
        rows, tolerance: `prove_module`'s of the file of a module.
        engine: `LIBSPCONV`, or ''.
    """

    kit_sha256: str
    files: Mapping[str, str]
    graphs: Annotated[tuple[StoredGraph, ...], Bounds(1)]
    cases: Annotated[tuple[StoredCase, ...], Bounds(1)]
    frames: tuple[ChainedFrame, ...]
    task: str | None = optional()
    memory: Mapping[str, Any] | None = optional()
    teacher_forced: bool = optional(False)
    precision: Literal['fp32', 'fp16', 'int8'] | None = optional()
    rows: tuple[str, ...] = optional(())
    tolerance: float = optional(0.0)
    engine: str = optional('')

    def check(self) -> None:
        graphs = {graph.name: graph for graph in self.graphs}
        cases = {case.name: case for case in self.cases}
        self._find('files', [graph.file for graph in self.graphs], self.files)
        for case in self.cases:
            self._find(f'graph of {case.name}', [case.graph], graphs)
            self._find(f'files of {case.name}', [array.file for array in case.arrays()], self.files)
            if case.results and not (self.task and graphs[case.graph].metadata):
                raise Mismatch(f'{case.name} has results, but the manifest has no task or metadata for them')
        for frame in self.frames:
            self._find(f'steps of frame {frame.name}', [step.case for step in frame.steps], cases)
            if self.memory is not None and not (frame.ego_pose and cases[frame.last_case].results):
                raise Mismatch(f'frame {frame.name} has no ego_pose or results, but the model has a memory')

    @staticmethod
    def _find(key: str, names: Iterable[str], known_names: Mapping[str, Any]) -> None:
        if missing := [name for name in names if name not in known_names]:
            raise Mismatch(f'{key}: {missing[0]!r} is not in the manifest')


def hashes_of(folder: Path) -> dict[str, str]:
    """Path in the folder -> SHA-256 of every file but `MANIFEST` and `KIT_HASH`."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    paths = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: sha256_file(path) for name, path in paths.items() if name not in (MANIFEST, KIT_HASH)}


def kit_hash(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without `kit_sha256`."""
    content = {key: value for key, value in manifest.items() if key != 'kit_sha256'}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read a kit's manifest; DataError: it or one of its files is missing, was changed, or is no plain file.

    The run may not write these files.
    """
    path = folder / MANIFEST
    if not path.is_file():
        got = f'{folder}: is a file' if folder.is_file() else f'{path}: no such file'
        raise DataError(f'{got}; expected the folder that mm2onnx kit wrote')
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
        raise DataError(f'{path}: has another format version; write the kit again with mm2onnx kit')
    if kit_hash(manifest) != manifest.get('kit_sha256'):
        raise DataError(f'{path}: was changed since the kit was written; write it again')
    typed = _typed(manifest, path)
    task = typed.task
    if task and task not in TASKS and task.partition('.')[0] not in _packages_of_families():
        raise DataError(
            f'{path}: no installed family has the task {task!r}; install the package of that family'
        )
    files = {file: path_in(folder, file, path, below=True) for file in typed.files}
    will_read('a file of the kit', [path, folder / KIT_HASH, *files.values()])
    for name, file in files.items():
        if not file.is_file():
            raise DataError(f'{file}: is missing; the kit is incomplete: copy or write it again')
        if sha256_file(file) != typed.files[name]:
            raise DataError(f'{file}: was changed since the kit was written; write it again')
    for array in (array for case in typed.cases for array in case.arrays()):
        check_size(files[array.file], array)
    return typed


def _typed(manifest: Mapping[str, Any], path: Path) -> Manifest:
    names = [field.name for field in dataclasses.fields(Manifest)]
    chosen = {name: manifest[name] for name in names if name in manifest}
    frames = chosen.get('frames')
    for frame in frames if isinstance(frames, list) else ():
        # programs write to this name; here it follows from the frame's own
        if isinstance(frame, dict) and frame.pop('outputs', None) != f'chain_{frame.get("name")}':
            raise DataError(f'{path}: frames.outputs is not chain_ and the name of its frame')
    try:
        return read(Manifest, chosen)
    except Mismatch as error:
        raise DataError(f'{path}: {error}; write the kit again') from error


def _packages_of_families() -> set[str]:
    return {entry.family.partition('.')[0].partition(':')[0] for entry in registered().values()}


def write_lines(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest.txt`: the cases and frames of a manifest as lines of words, for programs without JSON.

    case CASE FILE.onnx
    input NAME DTYPE AXES SIZE... FILE.bin
    output NAME DTYPE AXES SIZE...
    frame OUTPUTS
    step CASE
    computed INPUT OUTPUT
    """
    graphs = {graph['name']: KitGraph.from_json(graph) for graph in manifest['graphs']}
    lines = []
    for case in manifest['cases']:
        graph = graphs[case['graph']]
        lines.append(f'case {case["name"]} {graph.file}')
        for name, entry in case['inputs'].items():
            lines.append(f'input {_tensor_words(name, entry["dtype"], entry["shape"])} {entry["file"]}')
        for name, shape in case['output_shapes'].items():
            lines.append(f'output {_tensor_words(name, graph.spec.tensor(name).dtype, shape)}')
    for frame in manifest['frames']:
        lines.append(f'frame {frame["outputs"]}')
        for step in frame['steps']:
            lines.append(f'step {step["case"]}')
            for name, output in step['computed'].items():
                lines.append(f'computed {file_stem(name)} {file_stem(output)}')
    (folder / LINES).write_text('\n'.join([*lines, '']), encoding='utf-8')


def _tensor_words(name: str, dtype: str, shape: list[int]) -> str:
    return ' '.join(map(str, (file_stem(name), dtype, len(shape), *shape)))
