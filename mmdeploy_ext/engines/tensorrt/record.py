"""The record beside an engine, `m.engine.json`: its ONNX file, architectures, version and tensors.

An engine runs on the architecture and by the version that it was built for, and holds little about them.
Imports no TensorRT.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import EngineError, ModelFileError, UsageError
from mmdeploy_ext.core.files import atomic_path, read_json, sha256_file, sha256_onnx, write_json
from mmdeploy_ext.engines.tensorrt.binding import Port

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FORMAT = 1
"""Version of the record's format; others are refused."""
RTX_MAGIC = b'vtrt'
"""First bytes of an engine of tensorrt-rtx."""
RTX_ARCHITECTURES = (75, 80, 86, 89, 120, 121)
"""Number of a bit of the header's mask -> architecture, as measured on tensorrt-rtx 1.7.1."""
HEADER_BYTES = 64
"""First bytes of an engine of tensorrt-rtx that `read_header` takes."""
AS_GIVEN = 'as given'
"""Precision of a build that kept the dtypes of the ONNX file."""


@dataclasses.dataclass(frozen=True)
class Record:
    """The facts of an engine; shapes have -1 for an open axis.

    Attributes:
        package: 'tensorrt' or 'tensorrt-rtx'.
        version: `__version__` of the package's module; no other version loads the engine.
        architectures: GPU architectures that it was built for, e.g. (86,) for SM 8.6.
        sha256, nbytes: digest and size of the engine file.
        onnx, onnx_sha256: name of the ONNX file that it was built from, and the digest of it and its weights
            beside it (`core.files.sha256_onnx`).
        precision: `AS_GIVEN`, or 'fp16' if the build wrote float16 into the graph.
        keep_fp32: patterns of nodes (of their names, operators, modules or outputs) that stayed float32 in a
            build for 'fp16'.
        constants: inputs of the ONNX file that are constants in the engine, as they were written: NAME or
            NAME=VALUES.
        inputs, outputs: inputs and outputs of the engine.
        profiles: input with an open axis -> smallest, usual and largest shape.
        layers: kind of layer -> dtype of its first output -> number of layers of the strongly typed network,
            before TensorRT fuses them.
        metadata: `metadata_props` of the ONNX file.
        tf32: whether products of float32 may round their factors to 10 bits.
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
        """'fp16' if the build wrote float16 into the graph, else '': in the dtypes of the ONNX file."""
        return '' if self.precision == AS_GIVEN else self.precision

    def to_json(self) -> dict[str, Any]:
        """Return attribute -> value, in plain JSON types but for tuples, and the version, `format`."""
        return dict(format=FORMAT, **dataclasses.asdict(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: object = 'the record') -> Record:
        """Rebuild from the result of `to_json`; `path` is the record's file, for the message.

        ModelFileError: another format, or attributes that are missing, unknown or cannot be converted. The
        values of most are taken as they are.
        """
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
    """Return the path of the record of the engine at a path, which need not be there: `m.engine.json`."""
    return Path(f'{os.fspath(engine)}.json')


def write_engine(path: str | os.PathLike[str], data: bytes, record: Record) -> None:
    """Write an engine, whose content is `data`, to a path, and its record beside it.

    An old record is removed first, so that no record lies beside another engine than its own. A missing
    folder is made; `core.files.atomic_path` has the errors.
    """
    record_path(path).unlink(missing_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    write_json(record_path(path), record.to_json())


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read the record of the engine at a path.

    ModelFileError: the engine or its record is missing, the record is damaged, or the engine is another one
    or incomplete by its size and SHA-256.
    """
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
        question = 'was it cut short?' if size < record.nbytes else 'is it another engine?'
        raise ModelFileError(
            f'{path}: has {size} bytes, its record {record.nbytes}: {question} Copy it again or build it '
            f'again'
        )
    if sha256_file(path) != record.sha256:
        raise ModelFileError(
            f'{path}: is not the engine that {beside.name} is about (another SHA-256); copy both, or build '
            f'it again'
        )
    return record


def check_source(record: Record, path: str | os.PathLike[str]) -> None:
    """Refuse an engine beside an ONNX file of the name that it was built from, and of other content.

    Whoever exported that file again takes the engine for one of it. Nothing happens if no such file is there.

    Args:
        record: the record of the engine.
        path: the engine.

    Raises:
        ModelFileError: the file beside it is another one than the record has.
    """
    source = Path(path).parent / record.onnx
    if source.is_file() and sha256_onnx(source) != record.onnx_sha256:
        raise ModelFileError(
            f'{path}: was built from another {record.onnx} than the one beside it (another SHA-256); build '
            f'it again with {tool("tensorrt")} {source}, or move the engine and its record elsewhere'
        )


def check_version(record: Record, package: str, version: str, path: object) -> None:
    """Refuse an engine of another package or version than those given; the EngineError names both.

    `version` is the `__version__` of the package's module. `path` is the engine, for the message.
    """
    if (record.package, record.version) != (package, version):
        raise EngineError(
            f'{path}: was built by {record.package} {record.version}, here is {package} {version}, and an '
            f'engine is for one version: install that version, or build the engine again from {record.onnx}'
        )


def check_architecture(record: Record, architecture: int, gpu: str, path: object) -> None:
    """Refuse an engine that was not built for the GPU's architecture; the EngineError names both.

    `architecture` is e.g. 86 for SM 8.6, `gpu` the GPU's name, `path` the engine, for the message.
    """
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
    """The first bytes of a tensorrt-rtx engine, whose layout was measured and is not documented.

    `version` is e.g. '1.7.1.116', `architectures` e.g. (86, 89), `nbytes` the length of a complete file.
    """

    version: str
    architectures: tuple[int, ...]
    nbytes: int


def read_header(data: bytes) -> Header | None:
    """Return the header from the first `HEADER_BYTES` of a tensorrt-rtx engine; None for anything else."""
    if len(data) < HEADER_BYTES or not data.startswith(RTX_MAGIC):
        return None
    mask = int.from_bytes(data[32:36], 'little')
    architectures = tuple(number for bit, number in enumerate(RTX_ARCHITECTURES) if mask >> bit & 1)
    return Header('.'.join(map(str, data[24:28])), architectures, int.from_bytes(data[16:24], 'little'))


def _header_text(path: Path) -> str:
    """Return the header of an engine in words, for a message; '' if it has none that is understood."""
    with path.open('rb') as stream:
        header = read_header(stream.read(HEADER_BYTES))
    if header is None:
        return ''
    short = ', cut short' if path.stat().st_size < header.nbytes else ''
    return f' (tensorrt-rtx {header.version}, {_sm_list(header.architectures)}{short})'
