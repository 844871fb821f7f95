"""Files of one export, opened together. No torch."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import InferenceError, ModelFileError, UsageError
from mmdeploy_ext.base.files import external_locations
from mmdeploy_ext.engines import BACKENDS, build_backend
from mmdeploy_ext.spec.metadata import PREFIX, read_props

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mmdeploy_ext.engines.base import Backend
    from mmdeploy_ext.runtime.infos import RigFrame
    from mmdeploy_ext.spec.metadata import Metadata

    Paths = str | Path | Sequence[str | Path]
    """Folder of an export, a file, or files."""

SHARED_FIELDS = ('family', 'checkpoint_sha256', 'config_sha256', 'options')
"""Metadata that all files of an export share."""


class Runtime(contextlib.ExitStack):
    """An exported model with open files; a context manager.

    Attributes:
        metadata: of the file that gives the results.
        state: the memory, or None.
        fed_bytes: bytes copied to the engine for the last frame besides images, or None.
        notes: sentences about the samples so far, for reports.
    """

    metadata: Metadata
    state: Any = None
    fed_bytes: int | None = None
    seconds: dict[str, float]
    notes: Sequence[str] = ()

    def __reduce__(self) -> Any:
        raise UsageError(
            'an open model cannot be pickled, since its session belongs to this process: call '
            'open_model in each worker'
        )

    @property
    def rule(self) -> Any:
        return self.metadata.preprocess

    @property
    def classes(self) -> tuple[str, ...]:
        return self.metadata.classes

    def in_box_frame(self, rig: RigFrame) -> RigFrame:
        """Return a frame of infos with the frame of the boxes in place of the LiDAR frame."""
        return rig

    def opened(
        self, engine: str, path: str | Path, options: Mapping[str, Any], build: Callable = build_backend
    ) -> Backend:
        """Activate an engine with a file until `close`.

        Spinning thread pools slow each other (StreamPETR R50, 2 cores: 1131 against 1101 ms per frame).
        """
        shared = BACKENDS[engine].shared if engine in BACKENDS else {}  # `build` refuses an unknown one
        return self.enter_context(build(engine, str(path), **{**shared, **options}))

    def opened_by_form(
        self,
        files: Iterable[str | Path],
        engine: str,
        options: Mapping[str, Any],
        families: Sequence[str],
        build: Callable = build_backend,
    ) -> dict[str, Backend]:
        """Form of each file -> its engine, open until `close`."""
        backends: dict[str, Backend] = {}
        for file in files:
            backend = self.opened(engine, file, options, build)
            family, form = backend.metadata.family, backend.metadata.form
            backend.metadata.require(file, family if family in families else families[0])
            if form in backends:
                raise ModelFileError(
                    f'{backends[form].path}, {file}: both have the graph {form}; pass one of them'
                )
            backends[form] = backend
        return backends

    def passed(self, part: str, start: float) -> float:
        end = time.perf_counter()
        self.seconds[part] += end - start
        return end

    def graph_seconds(self) -> dict[str, float]:
        return dict(self.seconds)

    def reset(self) -> None:
        """Empty the memory."""


def check_finite(outputs: Mapping[str, np.ndarray], name: str) -> None:
    if not all(np.isfinite(values).all() for values in outputs.values()):
        raise InferenceError(f'{name}: the network returned NaN or infinity')


def export_files(paths: Paths, names: Sequence[str]) -> list[Path]:
    """Files of an export: `names` (without `.onnx`) in a folder, or the given files."""
    if not isinstance(paths, str | Path):
        return [Path(path) for path in paths]
    path = Path(paths)
    if path.is_dir():
        files = [path / f'{name}.onnx' for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelFileError(f'{path}: has no {", ".join(missing)}; export it with {tool("export")}')
        return files
    if path.suffix != '.onnx' and not path.is_file():
        raise ModelFileError(f'{path}: no such folder; export it with {tool("export")}')
    return [path]


def files_by_name(paths: Paths, names: Sequence[str]) -> dict[str, Path]:
    """Name -> file of an export; given files are taken in order."""
    files = export_files(paths, names)
    if len(files) != len(names):
        raise ModelFileError(
            f'{", ".join(map(str, files))}: expected the folder of the export, or its files in the order '
            f'{", ".join(names)}'
        )
    return dict(zip(names, files, strict=True))


def model_files(path: str | Path) -> list[Path]:
    files = sorted(Path(path).glob('*.onnx')) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise ModelFileError(f'{path}: no .onnx file in this folder; export with {tool("export")}')
    return files


def files_of_family(folder: str | Path, family: str) -> set[str]:
    """Names of a family's graphs in a folder, and of the files beside them with their weights."""
    names: set[str] = set()
    for path in Path(folder).glob('*.onnx'):
        with contextlib.suppress(ModelFileError):  # a file of somebody else
            if read_props(path).get(f'{PREFIX}family') == json.dumps(family):
                names |= {path.name, *({f'{path.name}.data'} & external_locations(path))}
    return names


def check_forms(files: Mapping[str, Path], metadata: Mapping[str, Metadata], family: str) -> None:
    for form, file_metadata in metadata.items():
        file_metadata.require(files[form], family, (form,))
    check_same_export({files[form]: file_metadata for form, file_metadata in metadata.items()})


def check_same_export(files: Mapping[object, Metadata]) -> None:
    """Raise ModelFileError for files of several exports."""
    (first, first_metadata), *further_files = files.items()
    for path, metadata in further_files:
        for field in SHARED_FIELDS:
            if getattr(metadata, field) != getattr(first_metadata, field):
                raise ModelFileError(
                    f'{path}: its {field} differs from {first}; use the files of one export, or export '
                    'again into a new folder'
                )
