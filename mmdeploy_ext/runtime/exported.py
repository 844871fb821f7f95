"""Files of one export, opened together. Needs no torch."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.contract.metadata import PREFIX, read_props
from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import InferenceError, ModelFileError
from mmdeploy_ext.core.files import external_locations
from mmdeploy_ext.engines import BACKENDS, build_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.engines.base import Backend

    Paths = str | Path | Sequence[str | Path]
    """A folder of an export, one file, or several files."""

SHARED_FIELDS = ('family', 'checkpoint_sha256', 'config_sha256', 'options')
"""Fields of the metadata that all files of one export share."""


class Runtime(contextlib.ExitStack):
    """An exported model whose files are open: a context manager that closes them, as `close` does.

    It has the parts of a `runtime.frames.Stepper` that models without a memory share; a model with one
    overrides them.

    Attributes:
        metadata: metadata of the file whose outputs are the results.
        state: the memory; None without one.
        fed_bytes: bytes copied to the engine for the last frame, besides the images; None if not counted.
        seconds: spent so far, by part of the model; subclasses that time their parts set it, others, such as
            `ImageModel`, do not have it.
        notes: sentences about the samples so far that a reader of the results has to know.
    """

    metadata: Metadata
    state: Any = None
    fed_bytes: int | None = None
    seconds: dict[str, float]
    notes: Sequence[str] = ()

    @property
    def rule(self) -> Any:
        """The preprocessing rule, from pictures or points to the input."""
        return self.metadata.preprocess

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        return self.metadata.classes

    def opened(
        self, engine: str, path: str | Path, options: Mapping[str, Any], build: Callable = build_backend
    ) -> Backend:
        """Return an engine with a file, open until `close`.

        Args:
            engine: registered name of the backend.
            path: path of the file.
            options: options of the backend, for example `providers`, `threads`; those that it does not have
                are set for engines that share the cores.
            build: makes the engine of its name, the path and the options, and raises the errors of
                `build_backend`.

        Several share the cores: a thread pool that still spins slows the next one (StreamPETR of R50 on 2
        cores: 1131 against 1101 ms per frame).
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
        """Return name of a graph, the `form` of its metadata -> engine with the file, open until `close`.

        Args:
            files: paths of files of one model, each of another graph.
            engine: registered name of the backend.
            options: options of the backend, for example `providers`, `threads`.
            families: names of the families that the files may be of, at least one.
            build: see `opened`.

        Raises:
            ModelFileError: a file cannot be read, or is of another family or of the graph of an earlier one.
            EngineError: the engine or a provider is not here.
            ConfigError: no such engine, or one without these options.
        """
        backends: dict[str, Backend] = {}
        for file in files:
            backend = self.opened(engine, file, options, build)
            family, form = backend.metadata.family, backend.metadata.form
            backend.metadata.require(file, family if family in families else families[0])
            if form in backends:
                raise ModelFileError(
                    f'{backends[form].path}, {file}: both have the graph {form}; give one of them'
                )
            backends[form] = backend
        return backends

    def passed(self, part: str, start: float) -> float:
        """Count the seconds since `start` (of `time.perf_counter`) for a part; return the present time."""
        end = time.perf_counter()
        self.seconds[part] += end - start
        return end

    def graph_seconds(self) -> dict[str, float]:
        """Return name of a part -> seconds that were spent in it so far."""
        return dict(self.seconds)

    def reset(self) -> None:
        """Empty the memory, if there is one."""


def check_finite(outputs: Mapping[str, np.ndarray], name: str) -> None:
    """Refuse outputs of a network that are NaN or infinite: InferenceError names the sample."""
    if not all(np.isfinite(values).all() for values in outputs.values()):
        raise InferenceError(f'{name}: the network gave NaN or infinity')


def export_files(paths: Paths, names: Sequence[str]) -> list[Path]:
    """Return the files of an export.

    Args:
        paths: a folder, in which files with these names are expected; one file, or several, which are
            returned as they are, also if an `.onnx` file is missing.
        names: names of the files of a folder, without `.onnx`.

    Raises:
        ModelFileError: no such folder, or one without these files.
    """
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
    """Return name -> file of an export that has one file for each of the names, see `export_files`.

    Several paths are taken in the order of the names, whatever the files are called.

    Raises:
        ModelFileError: as `export_files`, or another number of files.
    """
    files = export_files(paths, names)
    if len(files) != len(names):
        raise ModelFileError(
            f'{", ".join(map(str, files))}: expected the folder of the export, or its files in the order '
            f'{", ".join(names)}'
        )
    return dict(zip(names, files, strict=True))


def model_files(path: str | Path) -> list[Path]:
    """Return the ONNX files of a folder, sorted, or the path itself if it is no folder; it may be of no file.

    ModelFileError: a folder without such files.
    """
    files = sorted(Path(path).glob('*.onnx')) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise ModelFileError(f'{path}: no .onnx file in this folder; export with {tool("export")}')
    return files


def files_of_family(folder: str | Path, family: str) -> set[str]:
    """Return the names of a family's graphs in a folder and of their external data: an earlier export."""
    names: set[str] = set()
    for path in Path(folder).glob('*.onnx'):
        with contextlib.suppress(ModelFileError):  # a file of somebody else
            if read_props(path).get(f'{PREFIX}family') == json.dumps(family):
                names |= {path.name, *external_locations(path)}
    return names


def check_forms(files: Mapping[str, Path], metadata: Mapping[str, Metadata], family: str) -> None:
    """Refuse (ModelFileError) files, by their form, of another form or family, or of several exports."""
    for form, file_metadata in metadata.items():
        file_metadata.require(files[form], family, (form,))
    check_same_export({files[form]: file_metadata for form, file_metadata in metadata.items()})


def check_same_export(files: Mapping[object, Metadata]) -> None:
    """Refuse files, path -> metadata, one or more, of several exports.

    Raises:
        ModelFileError: names two files and the field in which they differ.
    """
    (first, first_metadata), *further_files = files.items()
    for path, metadata in further_files:
        for field in SHARED_FIELDS:
            if getattr(metadata, field) != getattr(first_metadata, field):
                raise ModelFileError(
                    f'{path}: its {field} is not that of {first}; the files have to be of one export: export '
                    f'them again into a folder of their own'
                )
