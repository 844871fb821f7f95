"""What is quantised and where it goes: one file, or one graph of a folder of several."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import ModelFileError, UsageError
from mmdeploy_ext.core.files import check_writable
from mmdeploy_ext.core.folders import check_replaceable, replaced_folder
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.quantize.cameras import IMAGES, quantised_graph
from mmdeploy_ext.quantize.dense_layers import is_quantised
from mmdeploy_ext.runtime.exported import files_of_family

if TYPE_CHECKING:
    import onnx

ENDING = '.int8'


@dataclasses.dataclass(frozen=True)
class Target:
    """One float file and its INT8 file, and the other graphs of their folder, which are copied unchanged."""

    model: Path
    output: Path
    beside: tuple[Path, ...] = ()

    @property
    def shown(self) -> str:
        """What the user gets: the file, or the folder."""
        return str(self.output.parent if self.beside else self.output)

    def save(self, model: onnx.ModelProto) -> None:
        """Write the INT8 file; a folder's files are made beside it and replace an older one at once."""
        if not self.beside:
            files.save(model, self.output, inputs=[self.model])
            return
        folder, family = self.output.parent, read_metadata(str(self.model)).family
        with replaced_folder(folder, files_of_family(folder, family)) as staging:
            files.save(model, staging / self.output.name)
            for path in self.beside:
                shutil.copy(path, staging)


def find_target(model: str, output: str | None) -> Target:
    """Return what to quantise, after a look at whether the output can be written.

    The model is an ONNX file, or the folder of an export of several graphs; the output is like it, and has
    the same name with `.int8` where none is given.

    Raises:
        ModelFileError: a folder without the graph that its family has quantised, and without exactly one that
            takes pictures alone.
        UsageError: the output is the input, or cannot be written.
    """
    source = Path(model)
    if not source.is_dir():
        target = Target(source, Path(output) if output else source.with_suffix(f'{ENDING}.onnx'))
        files.check_targets([target.output], [source])
        return target
    folder = Path(output) if output else source.with_name(f'{source.resolve().name}{ENDING}')
    if folder.suffix == '.onnx' or folder.is_file():
        raise UsageError(f'--output {folder}: is a file; {model} is a folder of graphs, give a folder')
    if folder.resolve() == source.resolve():
        raise UsageError(f'--output {folder}: is the input; it is never overwritten, give another name')
    found = sorted(source.glob('*.onnx'))
    graph = _graph_of(found)
    if graph is None:
        held = ', '.join(path.name for path in found) or 'no .onnx file'
        raise ModelFileError(
            f'{model}: holds {held}; expected the folder of an export of several graphs, one of which takes '
            f'{IMAGES!r} alone or is the dense one of a LiDAR model'
        )
    own = (graph.name, f'{graph.name}.data')
    beside = [path for path in sorted(source.iterdir()) if path.is_file() and path.name not in own]
    check_replaceable(folder)
    check_writable(folder / graph.name)
    return Target(graph, folder / graph.name, tuple(beside))


def _graph_of(files: list[Path]) -> Path | None:
    """Return the graph of several that is quantised, as the family says, or the one of pictures alone."""
    known = {path: read_metadata(str(path)) for path in files}
    chosen = [path for path, metadata in known.items() if metadata.form == quantised_graph(metadata.family)]
    chosen = chosen or [path for path, one in known.items() if one.spec.input_names == [IMAGES]]
    return chosen[0] if len(chosen) == 1 and len(files) > 1 else None


def refuse_stale(path: str | os.PathLike[str], reason: str) -> None:
    """Refuse to export over an INT8 file, for whatever reason: a float32 one would stand in its place."""
    if is_quantised(files.load(path)):
        raise ModelFileError(
            f'{path}: is an INT8 file and {reason}; the loop exports float32 files and writes none over it: '
            f'make it again with {tool("quantize")} from a fresh export'
        )
