"""Reads an engine's outputs of the cases of a kit, in the formats of engines' tools. Needs numpy only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.errors import DataError, one_line
from mmdeploy_ext.base.files import will_read
from mmdeploy_ext.base.typed_json import parse_json
from mmdeploy_ext.bench.kit.contents import KIT_HASH, name_of_stem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.spec.tensors import GraphSpec


def has_outputs(folder: Path, name: str) -> bool:
    """Whether a folder has NAME.npz, NAME.json or a folder NAME."""
    return any((folder / f'{name}{suffix}').exists() for suffix in ('.npz', '.json', ''))


def read_outputs(
    folder: Path, name: str, spec: GraphSpec, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Outputs of one run of a graph by name.

    Args:
        folder: folder of the outputs of all runs.
        name: name of the run: of a case, '000', or `ChainedFrame.outputs` of a frame, 'chain_000'.
        spec: spec of the graph: dtypes of raw files and JSON files; JSON floats for an integer output stay
            float64.
        shapes: output name -> shape, for raw files.
    """
    archive, listing, single = folder / f'{name}.npz', folder / f'{name}.json', folder / name
    arrays_in_folder = [path for path in sorted(single.glob('*')) if path.suffix in ('.npy', '.bin')]
    stems = [path.stem for path in arrays_in_folder]
    sources = [path for path in (archive, listing) if path.is_file()]
    sources += arrays_in_folder[:1] if len(set(stems)) == len(stems) else arrays_in_folder
    if not sources:
        raise DataError(
            f'{folder}: has no outputs of {name}: expected {name}.npz, {name}.json of trtexec, or '
            f'{name}/NAME.npy or .bin'
        )
    if len(sources) > 1:
        names = ', '.join(str(path.relative_to(folder)) for path in sources)
        raise DataError(f'{folder}: has outputs of {name} twice: {names}; write each run to a new folder')
    will_read('an output of the engine', sources)
    if archive.is_file():
        return load_arrays(archive)
    if listing.is_file():
        return _read_trtexec(listing, spec)
    arrays = {}
    for file in arrays_in_folder:
        if file.suffix == '.npy':
            arrays |= load_arrays(file, name_of_stem(file.stem))
        else:
            arrays[name_of_stem(file.stem)] = _read_raw(file, spec, shapes)
    return arrays


def _read_raw(file: Path, spec: GraphSpec, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    name, content = name_of_stem(file.stem), file.read_bytes()
    if name not in spec.output_names or name not in shapes:
        expected = ', '.join(spec.output_names)
        raise DataError(f'{file}: {name!r} has no known shape; outputs are {expected}; write .npy instead')
    dtype = np.dtype(spec.tensor(name).dtype).newbyteorder('<')
    count = int(np.prod(shapes[name]))
    if len(content) != dtype.itemsize * count:
        advice = "a raw file stores no shape: write .npy if the engine's shape differs"
        if count and len(content) % count == 0 and len(content) // count in (1, 2, 4, 8):
            advice = f'{len(content) // count} bytes per value: write the dtype of the file, or .npy'
        raise DataError(
            f'{file}: has {len(content)} bytes, expected {dtype.itemsize * count} of {dtype.name} '
            f'{list(shapes[name])}; {advice}'
        )
    return np.frombuffer(content, dtype).reshape(shapes[name]).astype(spec.tensor(name).dtype)


def _read_trtexec(file: Path, spec: GraphSpec) -> dict[str, np.ndarray]:
    try:
        entries = parse_json(file.read_text(encoding='utf-8'))
        arrays = {}
        for entry in entries:
            shape = tuple(int(size) for size in str(entry['dimensions']).split('x') if size)
            dtype = spec.tensor(entry['name']).dtype if entry['name'] in spec.output_names else 'float32'
            values = np.asarray(entry['values'], np.float64).reshape(shape)
            with np.errstate(invalid='ignore'):
                array = values.astype(dtype)
            is_cut = array.dtype.kind in 'iub' and not np.array_equal(array, values)  # 0.7 is no label
            arrays[entry['name']] = values if is_cut else array
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DataError(f'{file}: is not what trtexec --exportOutput writes: {one_line(error)}') from error
    return arrays


def check_kit(folder: Path, expected: str) -> bool:
    """Whether a folder has a file `KIT_HASH`; DataError unless its first word is `expected`."""
    path = folder / KIT_HASH
    if path.is_file() and path.read_bytes().split()[:1] != [expected.encode()]:
        raise DataError(f'{path}: these outputs belong to another kit; run the inputs of this one')
    return path.is_file()
