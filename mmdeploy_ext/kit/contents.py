"""What is in a kit: raw arrays, and a manifest that names each with its dtype and shape. Needs numpy only.

model.onnx                    the file
manifest.json                 what is below, how it was made, and the hash of every file
inputs/000/img.bin            inputs of the first case, little-endian, row by row
beside/000/img_shape.bin      what the post-processing outside of the graph takes beside them
expected/000/cls_score_0.bin  PyTorch's tensors for it
results/000/0/scores.bin      PyTorch's results for its first image

A case is one input of the graph, with PyTorch's outputs and results for it; 000 is its name. The manifest is
a dict: `format`, `task` (that matches results), `file` (that of the model), `config`, `checkpoint_sha256`,
`made_with` (package -> version), `python`, `cases` (what `Case.write` returns, and `output_shapes`, output ->
shape), `files` (path in the kit -> SHA-256), and `kit_sha256`, see `kit_hash`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.panoptic import Segments

if TYPE_CHECKING:
    from collections.abc import Mapping

MODEL, MANIFEST = 'model.onnx', 'manifest.json'
FORMAT = 1
"""Number of the manifest's format; a kit of another one is refused."""
RESULTS = {cls.__name__: cls for cls in (Detections, Instances, Segments)}
"""Name in the manifest -> class of the results of an image."""


def write_arrays(folder: Path, place: str, arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Write arrays as raw little-endian files.

    Args:
        folder: of the kit.
        place: folder inside of it, such as 'inputs/000'.
        arrays: name -> array.

    Returns:
        Their entries in the manifest: name -> dict of `file`, the path in the kit, `dtype` and `shape`.
    """
    entries = {}
    (folder / place).mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        array = np.asarray(array)
        file = f'{place}/{name}.bin'
        (folder / file).write_bytes(array.astype(array.dtype.newbyteorder('<')).tobytes())
        entries[name] = dict(file=file, dtype=array.dtype.name, shape=list(array.shape))
    return entries


def read_array(folder: Path, entry: Mapping[str, Any]) -> np.ndarray:
    """Return the array of an entry of the manifest; DataError if its file is missing or has another size.

    `folder` is that of the kit; `entry` has `file`, `dtype` and `shape`, as `write_arrays` returns them.
    """
    path = folder / entry['file']
    if not path.is_file():
        raise DataError(f'{path}: is missing; the kit is not whole: make it again')
    dtype, shape = np.dtype(entry['dtype']).newbyteorder('<'), tuple(entry['shape'])
    content = path.read_bytes()
    if len(content) != dtype.itemsize * int(np.prod(shape)):
        raise DataError(f'{path}: has {len(content)} bytes, expected {entry["dtype"]} {list(shape)}')
    return np.frombuffer(content, dtype).reshape(shape).astype(entry['dtype'])


def result_arrays(results: Any) -> dict[str, np.ndarray]:
    """Return name -> array of the fields of an image's results, of a class in `RESULTS`, unless None."""
    fields = ((field.name, getattr(results, field.name)) for field in dataclasses.fields(results))
    return {name: value for name, value in fields if value is not None}


@dataclasses.dataclass(frozen=True)
class Case:
    """One input of a kit.

    Attributes:
        name: name of its folders, such as '000'.
        title: what it tests, such as 'batch of 2'.
        images: title of each image of the batch.
        inputs: name -> input of the graph.
        beside: name -> array that is no input of the graph and that the post-processing outside of it takes.
        tensors: name -> PyTorch's value of an output; empty if the graph's outputs are results.
        results: PyTorch's results, one object of a class in `RESULTS` per image.
    """

    name: str
    title: str
    images: tuple[str, ...]
    inputs: dict[str, np.ndarray]
    beside: dict[str, np.ndarray]
    tensors: dict[str, np.ndarray]
    results: list[Any]

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the arrays into the folder of a kit; return the case's entry in the manifest.

        Its keys are `name`, `title`, `images`; `inputs`, `beside` and `tensors`, which are what
        `write_arrays` returns; and `results`, per image `type`, a key of `RESULTS`, and `fields`, arrays too.
        """
        results = [
            dict(
                type=type(image).__name__,
                fields=write_arrays(folder, f'results/{self.name}/{index}', result_arrays(image)),
            )
            for index, image in enumerate(self.results)
        ]
        return dict(
            name=self.name,
            title=self.title,
            images=list(self.images),
            inputs=write_arrays(folder, f'inputs/{self.name}', self.inputs),
            beside=write_arrays(folder, f'beside/{self.name}', self.beside),
            tensors=write_arrays(folder, f'expected/{self.name}', self.tensors),
            results=results,
        )

    @classmethod
    def read(cls, folder: Path, entry: Mapping[str, Any]) -> Case:
        """Return a case from its entry in the manifest; for the errors see `read_array`."""
        arrays = {
            part: {name: read_array(folder, value) for name, value in entry[part].items()}
            for part in ('inputs', 'beside', 'tensors')
        }
        results = [
            RESULTS[image['type']](
                **{name: read_array(folder, value) for name, value in image['fields'].items()}
            )
            for image in entry['results']
        ]
        return cls(entry['name'], entry['title'], tuple(entry['images']), **arrays, results=results)


def hashes_of(folder: Path) -> dict[str, str]:
    """Return path in the folder -> SHA-256 (hexadecimal) of every file in it and below, but the manifest."""
    files = sorted(path for path in folder.rglob('*') if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def kit_hash(files: Mapping[str, str]) -> str:
    """Return the hash (hexadecimal) that a kit is recognised by: that of all `files`, see `hashes_of`."""
    return hashlib.sha256(json.dumps(dict(sorted(files.items()))).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a kit after its files were compared with the hashes in it.

    Raises:
        DataError: no manifest, one of another format, or a file that is missing or was changed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f'{path}: no such file; expected the folder that mm2onnx kit wrote')
    try:
        manifest = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise DataError(f'{path}: is not valid JSON: {error}') from error
    if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
        raise DataError(f'{path}: is of another format; make the kit again')
    for file, expected in manifest['files'].items():
        if not (folder / file).is_file():
            raise DataError(f'{folder / file}: is missing; the kit is not whole: make it again')
        if sha256_file(folder / file) != expected:
            raise DataError(f'{folder / file}: was changed since the kit was made; make it again')
    return manifest
