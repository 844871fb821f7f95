"""Named tensors on disk: a NAME_AxBxC.bin for each and a manifest per folder. Needs only numpy."""

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdeploy_ext.base.errors import ConfigError, DataError, shape_text
from mmdeploy_ext.base.files import path_in, read_json, replaced_folder, write_json

MANIFEST = 'manifest.json'
SAMPLES = 'samples.json'
"""Names of the sub-folders of a dump."""
UNSAFE = re.compile(r'^\.|[%/\\:*?"<>|]')
"""Characters that file names escape, for Linux and Windows."""


def file_name(name: str, array: np.ndarray, suffixes: Mapping[str, str] | None = None) -> str:
    """File name of a tensor: 'NAME_1x3x256x256.bin' or 'NAME_scalar.bin', '/' and the like escaped.

    `suffixes`: name prefix -> text after the shape, such as '_pth'.
    """
    suffix = next((end for prefix, end in (suffixes or {}).items() if name.startswith(prefix)), '')
    safe = UNSAFE.sub(lambda match: f'%{ord(match[0]):02X}', name)
    return f'{safe}_{shape_text(array.shape)}{suffix}.bin'


def save_dump(
    folder: str | Path,
    tensors: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    meanings: Mapping[str, str] | None = None,
    suffixes: Mapping[str, str] | None = None,
) -> None:
    """Write tensors in C order, little endian, and their manifest; they take the place of older ones at once.

    `facts` are further entries of the manifest; `meanings` has a sentence per tensor.
    """
    entries: dict[str, Any] = {}
    with replaced_folder(folder, _files_of(Path(folder))) as staging:
        for name, array in tensors.items():
            content = np.ascontiguousarray(array).astype(array.dtype.newbyteorder('<'), copy=False).tobytes()
            (staging / file_name(name, array, suffixes)).write_bytes(content)
            entries[name] = dict(
                file=file_name(name, array, suffixes),
                dtype=str(array.dtype),
                shape=list(array.shape),
                sha256=hashlib.sha256(content).hexdigest(),
                meaning=(meanings or {}).get(name, ''),
            )
        write_json(staging / MANIFEST, dict(facts, tensors=entries))


def _files_of(folder: Path) -> list[str]:
    return [MANIFEST, *(path.name for path in folder.glob('*.bin'))]


def load_dump(folder: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a folder of `save_dump`: read-only arrays by name, and the manifest. Hashes are checked."""
    folder = Path(folder)
    manifest = load_manifest(folder)
    tensors = {}
    for name, entry in manifest['tensors'].items():
        path = path_in(folder, entry['file'], folder / MANIFEST)
        if not path.is_file():
            raise DataError(
                f'{path}: is named in {folder / MANIFEST} and missing; dump again with the _pth config'
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry['sha256']:
            raise DataError(
                f'{path}: its content is not the one that was dumped (sha256 differs); dump again with the '
                f'_pth config'
            )
        try:
            values = np.frombuffer(content, np.dtype(entry['dtype']).newbyteorder('<'))
            tensors[name] = values.reshape(entry['shape'])
        except (TypeError, ValueError) as error:
            raise DataError(f'{folder / MANIFEST}: {name}: {error}; dump again') from error
    return tensors, manifest


def load_manifest(folder: str | Path) -> dict[str, Any]:
    """Read a manifest: `tensors` (name -> `file`, `dtype`, `shape`, `sha256`, `meaning`) and facts."""
    path = Path(folder) / MANIFEST
    manifest = read_json(path)
    entries = manifest.get('tensors') if isinstance(manifest, dict) else None
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict)
        and entry.keys() >= {'file', 'dtype', 'shape', 'sha256'}
        and isinstance(entry['file'], str)
        for entry in entries.values()
    ):
        raise DataError(f'{path}: is not a manifest of a dump; dump again with the _pth config')
    return manifest


@contextlib.contextmanager
def replaced_dump(folder: str | Path) -> Iterator[Path]:
    """Yield a folder for samples (`DumpWriter`) that takes the place of a former dump when it is whole."""
    samples = [path for path in Path(folder).glob('*') if path.name.isdecimal()]
    outdated = [f'{sample.name}/{name}' for sample in samples for name in _files_of(sample)]
    with replaced_folder(folder, [SAMPLES, *outdated]) as staging:
        yield staging
        samples = sorted(path.parent.name for path in staging.glob(f'*/{MANIFEST}'))
        write_json(staging / SAMPLES, dict(samples=samples))


def list_samples(folder: str | Path) -> list[Path]:
    """Sample folders of a dump, sorted; [] without a dump. DataError: a sample or `SAMPLES` is missing."""
    folder = Path(folder)
    found = {path.parent.name for path in folder.glob(f'*/{MANIFEST}')}
    again = 'dump again with the _pth config'
    if not (folder / SAMPLES).is_file():
        if not found:
            return []
        raise DataError(
            f'{folder}: has {len(found)} samples and no {SAMPLES}: its run was interrupted, or an older '
            f'version made it; {again}'
        )
    content = read_json(folder / SAMPLES)
    names = content.get('samples') if isinstance(content, dict) else None
    if not isinstance(names, list):
        raise DataError(f'{folder / SAMPLES}: is not the list of a dump; {again}')
    if missing := [str(name) for name in names if name not in found]:
        raise DataError(f'{folder}: misses {", ".join(missing)} of {len(names)} samples; {again}')
    return [folder / name for name in names]


@dataclasses.dataclass(frozen=True)
class DumpWriter:
    """Writes the tensors of X_pth.py, in a sub-folder per sample.

    Attributes:
        samples: number of first samples to write, or their indices.
        tensors: names to write; None means all.
    """

    folder: Path
    facts: Mapping[str, Any]
    samples: int | Sequence[int] = 4
    tensors: Sequence[str] | None = None

    def wants(self, index: int) -> bool:
        return index < self.samples if isinstance(self.samples, int) else index in self.samples

    def write(
        self,
        index: int,
        tensors: Mapping[str, np.ndarray],
        facts: Mapping[str, Any] | None = None,
        meanings: Mapping[str, str] | None = None,
        suffixes: Mapping[str, str] | None = None,
    ) -> None:
        """Write the chosen tensors of a sample into sub-folder `index` (000012); see `save_dump`."""
        names = tensors if self.tensors is None else self.tensors
        if unknown := sorted(set(names) - tensors.keys()):
            raise ConfigError(
                f'backend_config.dump.tensors names {unknown}, which this model does not have; there are '
                f'{sorted(tensors)}'
            )
        dumped = {name: array for name, array in tensors.items() if name in names}
        facts = dict(self.facts, sample=index, **(facts or {}))
        save_dump(self.folder / f'{index:06d}', dumped, facts, meanings, suffixes)
