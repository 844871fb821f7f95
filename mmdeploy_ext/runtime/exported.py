"""Files of one export, opened together. Needs no torch."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.contract.metadata import read_props
from mmdeploy_ext.contract.metadata_entries import PREFIX
from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import InferenceError, ModelFileError
from mmdeploy_ext.core.files import external_locations
from mmdeploy_ext.engines import BACKENDS, build_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.engines.base import Backend

    Paths = str | Path | Sequence[str | Path]

SAME = ('family', 'checkpoint_sha256', 'config_sha256', 'options')
"""Facts of the metadata that all files of one export share."""


class Opened(contextlib.ExitStack):
    """A model whose files are open: a context manager that closes them, as `close` does."""

    def opened(
        self, engine: str, path: str | Path, options: Mapping[str, Any], build: Callable = build_backend
    ) -> Backend:
        """Return a file on an engine, until `close`.

        Several share the cores: a thread pool that still spins slows the next one (StreamPETR of R50 on 2
        cores: 1131 against 1101 ms per frame).
        """
        return self.enter_context(build(engine, str(path), **{**BACKENDS[engine].shared, **options}))


class Runtime(Opened):
    """A detector whose files are open.

    Attributes:
        metadata: of the file that gives the results.
    """

    metadata: Metadata

    @property
    def rule(self) -> Any:
        """How pictures or points become the input."""
        return self.metadata.preprocess

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        return self.metadata.classes


class Memoryless(Runtime):
    """A model without a memory whose parts are timed: what such `Stepper`s share.

    Attributes:
        state: None, always.
        seconds: spent so far, by part; set by the model.
    """

    state = None
    fed_bytes = None
    seconds: dict[str, float]

    def passed(self, part: str, start: float) -> float:
        """Count the seconds since `start` (of `time.perf_counter`) for a part; return the time of now."""
        now = time.perf_counter()
        self.seconds[part] += now - start
        return now

    def graph_seconds(self) -> dict[str, float]:
        """Return the seconds that were spent in each part so far."""
        return dict(self.seconds)

    def reset(self) -> None:
        """Nothing to do: there is no memory."""


def check_finite(outputs: Mapping[str, np.ndarray], name: str) -> None:
    """Refuse what a network gave of a sample: InferenceError where it is NaN or infinity."""
    if not all(np.isfinite(values).all() for values in outputs.values()):
        raise InferenceError(f'{name}: the network gave NaN or infinity')


def export_files(paths: Paths, names: Sequence[str]) -> list[Path]:
    """Return the files of an export.

    Args:
        paths: a folder, in which files with these names are expected; one file, or several, as they are.
        names: of the files of a folder, without `.onnx`.

    Raises:
        ModelFileError: no such folder, or one without these files.
    """
    if not isinstance(paths, str | Path):
        return [Path(path) for path in paths]
    path = Path(paths)
    if path.is_dir():
        files = [path / f'{name}.onnx' for name in names]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise ModelFileError(
                f'{path}: has no {", ".join(absent)}; export it with {tool("export")}'
            )
        return files
    if path.suffix != '.onnx' and not path.is_file():
        raise ModelFileError(f'{path}: no such folder; export it with {tool("export")}')
    return [path]


def model_files(path: str | Path) -> list[Path]:
    """Return the ONNX files of a folder, or the file itself; ModelFileError where there are none."""
    files = sorted(Path(path).glob('*.onnx')) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise ModelFileError(
            f'{path}: no .onnx file in this folder; export with {tool("export")}'
        )
    return files


def files_of_family(folder: str | Path, family: str) -> set[str]:
    """Return the names of a family's graphs in a folder and of their external data: an earlier export."""
    names: set[str] = set()
    for path in Path(folder).glob('*.onnx'):
        with contextlib.suppress(ModelFileError):  # a file of somebody else
            if read_props(path).get(f'{PREFIX}family') == json.dumps(family):
                names |= {path.name, *external_locations(path)}
    return names


def check_forms(files: Mapping[str, Path], known: Mapping[str, Metadata], family: str) -> None:
    """Refuse files, by their form, that are of another form or family, or not of one export."""
    for name, metadata in known.items():
        metadata.require(files[name], family, (name,))
    check_same_export({files[name]: metadata for name, metadata in known.items()})


def check_same_export(known: Mapping[object, Metadata]) -> None:
    """Refuse files, by their path, of several exports.

    Raises:
        ModelFileError: names two files and the fact in which they differ.
    """
    (first, ours), *others = known.items()
    for path, metadata in others:
        for fact in SAME:
            if getattr(metadata, fact) != getattr(ours, fact):
                raise ModelFileError(
                    f'{path}: its {fact} is not that of {first}; the files have to be of one export: export '
                    f'them again into a folder of their own'
                )
