"""The float file to quantise and its INT8 file, alone or as one graph of a folder."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import ModelFileError, UsageError
from mmdeploy_ext.base.files import check_writable
from mmdeploy_ext.base.folders import check_replaceable, replaced_folder
from mmdeploy_ext.bench.precision.calibration_sets import IMAGE_INPUT, quantised_graph
from mmdeploy_ext.exporting.int8.dense_layers import is_quantised
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.runtime.exported import files_of_family
from mmdeploy_ext.spec.metadata import read_metadata

if TYPE_CHECKING:
    import onnx

SUFFIX = '.int8'


@dataclasses.dataclass(frozen=True)
class Target:
    """A float file and its INT8 file.

    Attributes:
        beside: other files of the folder, copied unchanged.
        is_folder: the user named a folder; `model` is one graph in it.
    """

    model: Path
    output: Path
    beside: tuple[Path, ...] = ()
    is_folder: bool = False

    @property
    def shown(self) -> str:
        return str(self.output.parent if self.is_folder else self.output)

    def save(self, model: onnx.ModelProto) -> None:
        """Write the INT8 file; a complete folder replaces an older one, keeping unrelated files."""
        if not self.is_folder:
            files.save(model, self.output, inputs=[self.model])
            return
        folder, family = self.output.parent, read_metadata(str(self.model)).family
        with replaced_folder(folder, files_of_family(folder, family)) as staging:
            files.save(model, staging / self.output.name, inputs=[self.model])
            for path in self.beside:
                shutil.copy(path, staging)


def find_target(model: str, output: str | None) -> Target:
    """Writable target of a file or folder; the default output is next to it, named `.int8`.

    ModelFileError: a folder without one graph to quantise.
    """
    source = Path(model)
    if not source.is_dir():
        target = Target(source, Path(output) if output else source.with_suffix(f'{SUFFIX}.onnx'))
        files.check_targets([target.output], [source])
        return target
    named = source if source.name not in ('', '..') else source.resolve()
    folder = Path(output) if output else named.with_name(f'{source.resolve().name}{SUFFIX}')
    if folder.suffix == '.onnx' or folder.is_file():
        raise UsageError(f'--out {folder}: is a file; {model} is a folder of graphs, so name a folder')
    if folder.resolve() == source.resolve():
        raise UsageError(f'--out {folder}: is the input, which is never overwritten; choose another name')
    graph = find_graph(source)
    graph_files = (graph.name, f'{graph.name}.data')
    beside = [path for path in sorted(source.iterdir()) if path.is_file() and path.name not in graph_files]
    check_replaceable(folder)
    check_writable(folder / graph.name)
    return Target(graph, folder / graph.name, tuple(beside), is_folder=True)


def find_graph(source: Path) -> Path:
    """The file, or a folder's only graph, that can be quantised; ModelFileError: none or several."""
    if not source.is_dir():
        return source
    paths = sorted(source.glob('*.onnx'))
    metadata_of = {path: read_metadata(str(path)) for path in paths}
    graphs = [
        path for path, metadata in metadata_of.items() if metadata.form == quantised_graph(metadata.family)
    ]
    if not graphs:
        graphs = [
            path for path, metadata in metadata_of.items() if metadata.spec.input_names == [IMAGE_INPUT]
        ]
    if len(graphs) != 1 or (len(paths) == 1 and not quantised_graph(metadata_of[paths[0]].family)):
        names = ', '.join(path.name for path in paths) or 'no .onnx file'
        raise ModelFileError(
            f'{source}: has {names}; expected a folder with the image backbone (its only input is '
            f'{IMAGE_INPUT!r}) or the dense graph of a LiDAR model'
        )
    return graphs[0]


def refuse_stale(path: str | os.PathLike[str], reason: str) -> None:
    """Raise ModelFileError for an INT8 file that `test.py` would overwrite in float32."""
    if is_quantised(files.load(path)):
        raise ModelFileError(
            f'{path}: is an INT8 file and {reason}; it is not overwritten by a float32 export: write it '
            f'again with {tool("quantize")} from a fresh export'
        )
