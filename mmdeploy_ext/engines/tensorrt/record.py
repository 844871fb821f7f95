"""The record beside an engine, `m.engine.json`: ONNX file, architectures, version, tensors."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import EngineError, ModelFileError, UsageError
from mmdeploy_ext.base.files import atomic_path, read_json, sha256_file, sha256_onnx, write_json
from mmdeploy_ext.engines.tensorrt.binding import Port

FORMAT = 1
RTX_MAGIC = b'vtrt'
RTX_ARCHITECTURES = (75, 80, 86, 89, 120, 121)
"""Bit of the header's mask -> architecture, measured on tensorrt-rtx 1.7.1."""
HEADER_BYTES = 64
AS_GIVEN = 'as given'


@dataclasses.dataclass(frozen=True)
class Record:
    """Facts of an engine; open axes are -1.

    Attributes:
        version: the only version that loads the engine.
        architectures: e.g. (86,) for SM 8.6.
        sha256, nbytes: of the engine file.
        onnx, onnx_sha256: name and `base.files.sha256_onnx` of the ONNX file.
        precision: `AS_GIVEN` or 'fp16'.
        profiles: input with an open axis -> profile.
        layers: kind -> dtype of the first output -> number, before fusion.
        metadata: `metadata_props` of the ONNX file.
    """

    package: str
    version: str
    architectures: tuple[int, ...]
    sha256: str
    nbytes: int
    onnx: str
    onnx_sha256: str
    precision: str
    keep_fp32: tuple[str, ...]
    constants: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    profiles: dict[str, list[list[int]]]
    layers: dict[str, dict[str, int]]
    metadata: dict[str, str]
    tf32: bool

    @property
    def computes_in(self) -> str:
        """'fp16' if the build wrote float16, else ''."""
        return '' if self.precision == AS_GIVEN else self.precision

    def to_json(self) -> dict[str, Any]:
        return dict(format=FORMAT, **dataclasses.asdict(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: object = 'the record') -> Record:
        try:
            fields = dict(content)
            if fields.pop('format') != FORMAT:
                raise ModelFileError(
                    f'{path}: is a record of format {content["format"]}, expected {FORMAT}; build it again'
                )
            for name in ('inputs', 'outputs'):
                ports = fields[name]
                fields[name] = tuple(
                    Port(port['name'], port['dtype'], tuple(port['shape'])) for port in ports
                )
            for name in ('architectures', 'keep_fp32', 'constants'):
                fields[name] = tuple(fields[name])
            fields['nbytes'] = int(fields['nbytes'])
            return cls(**fields)
        except ModelFileError:  # is a ValueError, too
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f'{path}: is not a record of an engine ({error}); build the engine again'
            ) from error


def record_path(engine: str | os.PathLike[str]) -> Path:
    """`m.engine.json`, existing or not."""
    return Path(f'{os.fspath(engine)}.json')


def write_engine(path: str | os.PathLike[str], data: bytes, record: Record) -> None:
    """Write an engine and its record; an old record is removed first."""
    record_path(path).unlink(missing_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    write_json(record_path(path), record.to_json())


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read an engine's record; ModelFileError: missing or damaged, or size or SHA-256 differ."""
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f'{path}: no such engine; build it with {tool("tensorrt")}')
    beside = record_path(path)
    if not beside.is_file():
        raise ModelFileError(
            f'{path}: its record {beside.name} is not beside it{_header_text(path)}; copy both, or build it '
            f'again with {tool("tensorrt")}'
        )
    try:
        record = Record.from_json(read_json(beside), beside)
    except UsageError as error:
        raise ModelFileError(f'{error}; build the engine again') from error
    size = path.stat().st_size
    if size != record.nbytes:
        question = 'it may be cut short.' if size < record.nbytes else 'it may be another engine.'
        raise ModelFileError(
            f'{path}: has {size} bytes, its record {record.nbytes}: {question} Copy it again or build it '
            f'again'
        )
    if sha256_file(path) != record.sha256:
        raise ModelFileError(
            f'{path}: is not the engine of {beside.name} (the SHA-256 differs); copy both, or build it again'
        )
    return record


def check_source(record: Record, path: str | os.PathLike[str]) -> None:
    """Raise ModelFileError if the ONNX file beside an engine has changed since the build."""
    source = Path(path).parent / record.onnx
    if source.is_file() and sha256_onnx(source) != record.onnx_sha256:
        raise ModelFileError(
            f'{path}: was built from another {record.onnx} than the one beside it (another SHA-256); build '
            f'it again with {tool("tensorrt")} {source}, or move the engine and its record elsewhere'
        )


def check_version(record: Record, package: str, version: str, path: object) -> None:
    """Raise EngineError if the engine is of another package or version."""
    if (record.package, record.version) != (package, version):
        raise EngineError(
            f'{path}: was built by {record.package} {record.version}, but {package} {version} is '
            'installed, and an engine runs in one version only: install that version, or build the '
            f'engine again from {record.onnx}'
        )


def check_architecture(record: Record, architecture: int, gpu: str, path: object) -> None:
    """Raise EngineError if the engine was not built for the GPU's architecture (86 for SM 8.6)."""
    if architecture in record.architectures:
        return
    advice = f'build it again from {record.onnx} with --sm {architecture}'
    if record.package == 'tensorrt-rtx' and architecture not in RTX_ARCHITECTURES:
        advice = f'tensorrt-rtx does not run there: build {record.onnx} with tensorrt on that GPU'
    raise EngineError(
        f'{path}: was built for {_sm_list(record.architectures)}, and {gpu} is SM {architecture}; {advice}'
    )


def _sm_list(architectures: Iterable[int]) -> str:
    return ', '.join(f'SM {number}' for number in architectures)


class Header(NamedTuple):
    """First bytes of a tensorrt-rtx engine; the layout was measured, not documented.

    `version` is e.g. '1.7.1.116', `nbytes` the complete length.
    """

    version: str
    architectures: tuple[int, ...]
    nbytes: int


def read_header(data: bytes) -> Header | None:
    if len(data) < HEADER_BYTES or not data.startswith(RTX_MAGIC):
        return None
    mask = int.from_bytes(data[32:36], 'little')
    architectures = tuple(number for bit, number in enumerate(RTX_ARCHITECTURES) if mask >> bit & 1)
    return Header('.'.join(map(str, data[24:28])), architectures, int.from_bytes(data[16:24], 'little'))


def _header_text(path: Path) -> str:
    with path.open('rb') as stream:
        header = read_header(stream.read(HEADER_BYTES))
    if header is None:
        return ''
    short = ', cut short' if path.stat().st_size < header.nbytes else ''
    return f' (tensorrt-rtx {header.version}, {_sm_list(header.architectures)}{short})'
