"""Named tensors on disk: one NAME_AxBxC.bin per tensor and a manifest per folder. Needs numpy only."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdeploy_ext.core.errors import ConfigError, DataError, shape_text
from mmdeploy_ext.core.files import atomic_path, read_json, write_json

MANIFEST = 'manifest.json'
UNSAFE = re.compile(r'[%/\\:*?"<>|\x00-\x1f\x7f-\x9f\ud800-\udfff]')
"""Characters of a tensor's name that its file has in another form: of Linux and of Windows."""
LONGEST_NAME = 180
"""Bytes of a tensor's name in that of a file, which has 255 at most."""


def file_name(name: str, array: np.ndarray, suffixes: Mapping[str, str] | None = None) -> str:
    """Return the name of a tensor's file, 'NAME_1x3x256x256.bin'; that of a scalar is 'NAME_scalar.bin'.

    A character of `UNSAFE`, and a dot at the beginning, becomes its number, such as '%2F'; the end of a very
    long name is replaced by its hash. Two names never give the same file name.

    Args:
        name: name of a tensor.
        array: the tensor, of which the shape alone counts.
        suffixes: name prefix -> what comes after the shape, '_pth' in 'post_mem_velo_1x640x2_pth.bin'; with
            None nothing is added.
    """
    suffix = next((end for prefix, end in (suffixes or {}).items() if name.startswith(prefix)), '')
    safe = re.sub(f'^\\.|{UNSAFE.pattern}', lambda match: f'%{ord(match[0]):02X}', name)
    if len(safe.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()
        safe = f'{safe.encode()[: LONGEST_NAME // 2].decode(errors="ignore")}%{digest[:32]}'
    return f'{safe}_{shape_text(array.shape)}{suffix}.bin'


def save_dump(
    folder: str | Path,
    tensors: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    meanings: Mapping[str, str] | None = None,
    suffixes: Mapping[str, str] | None = None,
) -> None:
    """Write tensors and their manifest; the manifest comes last, so that a folder with one is complete.

    Args:
        folder: made when missing, with those above it; its manifest and all its .bin files are removed first.
        tensors: name -> array, not of objects; written in C order, little endian.
        facts: further entries of the manifest, in plain JSON types: config, checkpoint hash, image ...
        meanings: name of a tensor -> one sentence about it; None: '' for all.
        suffixes: see `file_name`; with None nothing is added.

    Raises:
        Mm2OnnxError: a file cannot be written.
        OSError: the folder cannot be made, or these files cannot be removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in [folder / MANIFEST, *folder.glob('*.bin')]:
        old.unlink(missing_ok=True)
    entries = {}
    for name, array in tensors.items():
        content = np.ascontiguousarray(array).astype(array.dtype.newbyteorder('<'), copy=False).tobytes()
        with atomic_path(folder / file_name(name, array, suffixes)) as temporary:
            temporary.write_bytes(content)
        entries[name] = dict(
            file=file_name(name, array, suffixes),
            dtype=str(array.dtype),
            shape=list(array.shape),
            sha256=hashlib.sha256(content).hexdigest(),
            meaning=(meanings or {}).get(name, ''),
        )
    write_json(folder / MANIFEST, dict(facts, tensors=entries))


def load_dump(folder: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_dump` wrote into a folder; return name -> array, which is read-only, and the manifest.

    Raises:
        UsageError: there is no manifest, or it is no JSON.
        DataError: the manifest is not one that `save_dump` writes, a file of a tensor is missing, or its
            content is not what the manifest says.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    tensors = {}
    for name, entry in manifest['tensors'].items():
        path = folder / entry['file']
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
        values = np.frombuffer(content, np.dtype(entry['dtype']).newbyteorder('<'))
        tensors[name] = values.reshape(entry['shape'])
    return tensors, manifest


def load_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of a dump.

    Its `tensors` are name -> `file`, `dtype`, `shape`, `sha256` and `meaning`; the other entries are facts.

    Raises:
        UsageError: it is missing, or no JSON.
        DataError: it is not one that `save_dump` writes.
    """
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


def list_samples(folder: str | Path) -> list[Path]:
    """Return the sample folders of a dump, sorted by path, without incomplete ones, which have no manifest.

    The list is empty if there is no such folder.
    """
    return sorted(path.parent for path in Path(folder).glob(f'*/{MANIFEST}'))


@dataclasses.dataclass(frozen=True)
class DumpWriter:
    """Writes the tensors that a config names, one sample of a data set after the other.

    That config is X_pth.py, with which `test.py` runs the model in PyTorch.

    Attributes:
        folder: one sub-folder per sample, named by its index, is made in it.
        facts: entries of every manifest, see `save_dump`.
        samples: number of samples that are written, the first ones of the data set, or their indices.
        tensors: names of the tensors that are written; None means all.
    """

    folder: Path
    facts: Mapping[str, Any]
    samples: int | Sequence[int] = 4
    tensors: Sequence[str] | None = None

    def wants(self, index: int) -> bool:
        """Return whether the sample with this index in the data set, from 0, is written."""
        return index < self.samples if isinstance(self.samples, int) else index in self.samples

    def write(
        self,
        index: int,
        tensors: Mapping[str, np.ndarray],
        facts: Mapping[str, Any] | None = None,
        meanings: Mapping[str, str] | None = None,
        suffixes: Mapping[str, str] | None = None,
    ) -> None:
        """Write those tensors of a sample that the config names, into the sub-folder of its index (000012).

        Callers ask `wants` before; any index is written here.

        Args:
            index: index of the sample in the data set.
            tensors: name -> array of all tensors of the model.
            facts: further entries of this sample's manifest; with None nothing is added.
            meanings: see `save_dump`.
            suffixes: see `save_dump`.

        Raises:
            ConfigError: `tensors` of the config names an unknown one; for other errors see `save_dump`.
        """
        names = tensors if self.tensors is None else self.tensors
        if unknown := sorted(set(names) - tensors.keys()):
            raise ConfigError(
                f'backend_config.dump.tensors names {unknown}, which this model does not have; there are '
                f'{sorted(tensors)}'
            )
        dumped = {name: array for name, array in tensors.items() if name in names}
        facts = dict(self.facts, sample=index, **(facts or {}))
        save_dump(self.folder / f'{index:06d}', dumped, facts, meanings, suffixes)
