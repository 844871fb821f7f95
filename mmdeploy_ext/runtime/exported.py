"""Files of one export, opened together. Needs no torch."""

from __future__ import annotations

import abc
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mmdeploy_ext.core.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata

SAME = ('family', 'checkpoint_sha256', 'config_sha256', 'options')
"""Facts of the metadata that all files of one export share."""


class Opened(abc.ABC):
    """A model whose files are open: a context manager that closes them."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the sessions."""

    def __enter__(self) -> Self:
        """Nothing to do: the files are open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class Memoryless(Opened):
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


def export_files(paths: str | Path | Sequence[str | Path], names: Sequence[str]) -> list[Path]:
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
                f'{path}: has no {", ".join(absent)}; export it with tools/deployment/pytorch2onnx.py'
            )
        return files
    if path.suffix != '.onnx' and not path.is_file():
        raise ModelFileError(f'{path}: no such folder; export it with tools/deployment/pytorch2onnx.py')
    return [path]


def model_files(path: str | Path) -> list[Path]:
    """Return the ONNX files of a folder, or the file itself.

    Raises:
        ModelFileError: nothing there.
    """
    files = sorted(Path(path).glob('*.onnx')) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise ModelFileError(
            f'{path}: no .onnx file in this folder; export with tools/deployment/pytorch2onnx.py'
        )
    return files


def check_same_export(known: Mapping[object, Metadata]) -> None:
    """Refuse files of several exports.

    Args:
        known: path of a file -> its metadata.

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
