"""The files of a streaming model's export: a folder of graphs, or one file."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import Metadata, read_metadata
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.errors import ModelFileError, UsageError
from mmdeploy_ext.core.files import check_writable, will_write
from mmdeploy_ext.deploy import deployment as deploy
from mmdeploy_ext.exporting import export
from mmdeploy_ext.graph.passes.precision import check_patterns, in_precision
from mmdeploy_ext.runtime.exported import check_same_export

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.families.sequence import Graph, SequenceFamily


def check_output(output: str, options: Options, graphs: Sequence[str], where: str = '--output-file ') -> None:
    """Refuse an output that the contract cannot be written to.

    Args:
        output: file or folder.
        options: for the contract.
        graphs: names of the graphs of a folder.
        where: the option or key that gave it, for the message.

    Raises:
        UsageError: a file name for a folder of graphs, or the other way round, or not writable.
    """
    is_file = output.endswith('.onnx')
    if options.contract == 'fork' and not is_file:
        raise UsageError(f'{where}{output}: the fork contract is one file, expected a name in .onnx')
    if options.contract != 'fork' and is_file:
        raise UsageError(
            f'{where}{output}: the {options.contract} contract is several graphs, expected a folder'
        )
    if not is_file and Path(output).is_file():
        raise UsageError(f'{where}{output}: is a file, expected a folder')
    paths = [Path(output)] if is_file else [Path(output) / f'{name}.onnx' for name in graphs]
    for path in paths:
        check_writable(path)
    will_write(where.strip(' ='), paths)


def graph_metadata(deployment: Deployment, options: Options, graph: Graph) -> Metadata:
    """Return what one file will say about itself."""
    return Metadata(
        form=graph.name,
        spec=graph.spec,
        preprocess=deployment.rule,
        options=dict(options.to_json(), cfg_options=deploy.plain_options(deployment.cfg_options)),
        **deploy.model_facts(deployment),
    )


def export_sequence(deployment: Deployment, options: Options, output: str) -> tuple[list[str], float]:
    """Export all graphs of a contract, whole or not at all.

    Args:
        deployment: the trained model; its family is a SequenceFamily.
        options: what the user chose.
        output: a file in .onnx (fork contract), or a folder.

    Returns:
        The paths in the order in which a frame goes through them, and the seconds it took.

    Raises:
        ExportError: a graph cannot be exported; nothing was written.
    """
    start = time.perf_counter()
    family: SequenceFamily = deployment.family
    models = []
    for graph in family.graphs(deployment.model, options):
        model = export_graph(graph, options, family.keep_fp32)
        models.append((graph.name, model, graph_metadata(deployment, options, graph)))
    check_patterns([model for _, model, _ in models], options.keep_fp32)
    if output.endswith('.onnx'):
        ((_, model, metadata),) = models
        export.save(model, output, metadata)
        paths = [output]
    else:
        paths = _write_folder(models, Path(output))
    for name, model, _ in models:
        deployment.keep((name, options), model)
    return paths, time.perf_counter() - start


def export_graph(graph: Graph, options: Options, keep_fp32: Sequence[str] = ()) -> Any:
    """Export one graph with the names, types and opset of its spec and in its precision.

    Args:
        graph: to export; a finished one is taken as it is.
        options: what the user chose.
        keep_fp32: patterns of nodes that stay float32 in the family's float16 files.
    """
    model = graph.model
    if model is None:
        stage = Stage('', graph.module, tuple(graph.spec.input_names), tuple(graph.spec.output_names))
        model = export.export_stages([stage], graph.example, graph.spec, options)
    return in_precision(model, graph.spec, options, keep_fp32)


def _write_folder(models: Sequence[tuple[str, Any, Metadata]], folder: Path) -> list[str]:
    """Write all files beside the folder first; they move in together, replacing an older export."""
    whole = folder.resolve()  # '.' has no name
    staging = whole.with_name(f'{whole.name}.partial-{os.getpid()}')
    try:
        for name, model, metadata in models:
            export.save(model, staging / f'{name}.onnx', metadata)
        folder.mkdir(parents=True, exist_ok=True)
        for name, _, _ in models:
            (folder / f'{name}.onnx').unlink(missing_ok=True)
        for name, _, _ in models:
            os.replace(staging / f'{name}.onnx', folder / f'{name}.onnx')
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [str(folder / f'{name}.onnx') for name, _, _ in models]


@dataclasses.dataclass(frozen=True)
class ExportedFiles:
    """Files of one export.

    Attributes:
        paths: in the order in which a frame goes through them.
        metadata: of the last one, which gives the outputs.
    """

    paths: list[str]
    metadata: Metadata


def read_files(path: str) -> ExportedFiles:
    """Read what an exported folder or file says about itself.

    Raises:
        ModelFileError: not there, not ours, or files of different exports in one folder.
    """
    target = Path(path)
    files = sorted(target.glob('*.onnx')) if target.is_dir() else [target]
    if not files:
        raise ModelFileError(
            f'{path}: no .onnx file in this folder; export with tools/deployment/pytorch2onnx.py'
        )
    known = {str(file): read_metadata(str(file)) for file in files}
    check_same_export(known)
    order = sorted(known, key=lambda file: (len(known[file].spec.state) > 0, file))
    return ExportedFiles(order, known[order[-1]])
