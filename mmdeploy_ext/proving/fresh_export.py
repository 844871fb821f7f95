"""The first check of level 1, that of graphs: is the graph of a file that of a new export of the same model?

Equal graphs compute the same for every input. The fresh export is made with the options in the file's
metadata; then the commands that changed the file after its export (`metadata.edits`) are repeated on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import PREFIX
from mmdeploy_ext.contract.metadata_schema import OF_SPARSE_GRAPHS
from mmdeploy_ext.core.errors import Mm2OnnxError, ModelFileError, UsageError
from mmdeploy_ext.core.printable import one_line
from mmdeploy_ext.exporting import deployment as deploy
from mmdeploy_ext.exporting import files
from mmdeploy_ext.exporting.code_warnings import recorded_warnings
from mmdeploy_ext.graph import edits, signature
from mmdeploy_ext.graph.output_comparison import with_half_ends
from mmdeploy_ext.graph.passes.shapes import fixed_spec
from mmdeploy_ext.graph.signature import GraphDifference
from mmdeploy_ext.proving.results import SHOWN, GraphResult
from mmdeploy_ext.quantize.dense import QUANTISE, quantise_again

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    import onnx

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.contract.stages import Graph
    from mmdeploy_ext.exporting.deployment import Deployment

REPEATED = {QUANTISE: quantise_again}
"""Name of a command outside of `graph/edits.py` -> function that repeats it."""


@contextlib.contextmanager
def option_errors(path: str) -> Iterator[None]:
    """Inside the block a UsageError about an option becomes a ModelFileError of the file at `path`."""
    try:
        yield
    except UsageError as error:
        raise ModelFileError(f'{path}: export it again; its options fit no export: {error}') from error


@dataclasses.dataclass(frozen=True)
class FreshExport:
    """How to make the graph that a file is compared with: the export, and the commands to repeat on it.

    Attributes:
        export: returns a fresh export with the options of the file; raises an `Mm2OnnxError` if that fails.
        edits: commands that changed the file after its export, see `Metadata.edits`.
    """

    export: Callable[[], onnx.ModelProto]
    edits: tuple[Mapping[str, Any], ...] = ()

    def edited(self) -> onnx.ModelProto:
        """Export, repeat the commands that changed the file, and return the graph.

        What `export` returned, maybe from a cache, stays as it is; without commands it is the result itself.

        Raises:
            Mm2OnnxError: it cannot be exported, or a command cannot be repeated.
        """
        return edits.repeat(self.export(), self.edits, REPEATED)


def of_images(
    deployment: Deployment, options: Options, metadata: Metadata, image_bgr: np.ndarray
) -> FreshExport:
    """Return the fresh export of a file that takes single pictures.

    Args:
        deployment: config and checkpoint.
        options: options in the metadata of the file.
        metadata: metadata of the file.
        image_bgr: picture (h, w, 3) uint8 that is traced at the height and width of the options, also for a
            file of any size; the graph does not depend on it.
    """
    export_options = options_of_export(options, metadata)

    def export() -> onnx.ModelProto:
        size = export_options.height, export_options.width
        traced = deploy.prepare_fixed(deployment.rule, image_bgr, *size)
        return files.export_graphs(deployment, export_options, [traced])[0][0]

    return _made_once(deployment, export_options, metadata, export)


def of_graph(
    deployment: Deployment, options: Options, metadata: Metadata, graph: Graph | None
) -> FreshExport:
    """Return the fresh export of one file of a family that takes frames or sweeps.

    Args:
        deployment: config and checkpoint.
        options: options in the metadata of the file.
        metadata: metadata of the file.
        graph: the graph of the model that the file holds; None if the model has no such graph: then `edited`
            raises a ModelFileError.
    """
    export_options = options_of_export(options, metadata)

    def export() -> onnx.ModelProto:
        if graph is None:
            raise ModelFileError(f'the model has no graph {metadata.form!r} with the options in the file')
        with recorded_warnings(deployment.code_warnings):
            return files.export_graph(graph, export_options, deployment.family.keep_fp32)

    return _made_once(deployment, export_options, metadata, export)


def _made_once(
    deployment: Deployment, options: Options, metadata: Metadata, export: Callable[[], onnx.ModelProto]
) -> FreshExport:
    """Return a fresh export that is made once per deployment."""
    key = metadata.form, options

    def export_once() -> onnx.ModelProto:
        if key not in deployment.exports:
            deployment.cache_export(key, export())
        return deployment.exports[key]

    return FreshExport(export_once, metadata.edits)


def options_of_export(options: Options, metadata: Metadata) -> Options:
    """Return the options of the export of a file before any command changed the file.

    `options` are those in its `metadata`. If a command converted the file to float16 later, they state
    float16, and the returned ones float32; if one fixed the sizes, the returned ones leave them open, with
    batch 1. No value of an option is checked here.
    """
    if _half_edits(metadata):
        options = options.replace(precision='fp32', fp16_io=False, keep_fp32=())
    if opened := edits.opened_by(metadata.edits):
        options = options.replace(batch=1, **{name: True for name in opened if name in options})
    return options


def contract_after(spec: GraphSpec, metadata: Metadata) -> GraphSpec:
    """Return the contract of a file after the commands that its metadata records.

    `spec` is the contract of its export. The conversion to float16 with `--io fp16` changes it: outputs of
    float32, and inputs of float32 without a default value, become float16; and so does `set-shape`, which
    fixes the sizes of pictures.
    """
    if edits.opened_by(metadata.edits) and metadata.samples == 'images':
        size = tuple(metadata.options[name] for name in ('batch', 'height', 'width'))
        outputs = {tensor.name: tensor.axes for tensor in metadata.spec.outputs}  # as its graph has them
        spec = fixed_spec(spec, size, outputs)
    half_ends = any(edit['arguments'].get('io') == 'fp16' for edit in _half_edits(metadata))
    return with_half_ends(spec) if half_ends else spec


def _half_edits(metadata: Metadata) -> list[dict[str, Any]]:
    return [edit for edit in metadata.edits if edit['command'] == 'fp16']


def compare_with_fresh_export(
    model: onnx.ModelProto, metadata: Metadata, fresh_export: FreshExport, name: str = ''
) -> GraphResult:
    """Compare the graph of a file with its fresh export: nodes, weights bit for bit, and sparse metadata.

    Names of nodes and inner tensors, and the order of nodes, do not count; names and order of the graph's
    inputs and outputs do (`graph/signature.py`). A fresh export that fails is the `error` of the result, in
    at most 500 characters. `equal` of the result is also True if edits were repeated that replace parts of a
    graph by rules of a user, or by approximate ones: `by_inputs` then names the rules, which both sides have
    alike and inputs have to judge.

    Args:
        model: the file.
        metadata: metadata of the file.
        fresh_export: the fresh export of the same model.
        name: name of the graph of a model of frames or sweeps, which the result has, too; else ''.
    """
    try:
        fresh = fresh_export.edited()
    except Mm2OnnxError as error:
        return GraphResult(name, signature.count_nodes(model), False, error=one_line(error)[:500])
    file_signature, fresh_signature = (signature.compute_signature(graph) for graph in (model, fresh))
    if facts := differing_facts(model, fresh):
        return GraphResult(name, file_signature.size, False, tuple(facts))
    if file_signature.equals(fresh_signature):
        commands = ', '.join(edit['command'] for edit in metadata.edits)
        note = f'both after {commands}' if commands else ''
        rules = rules_text(metadata.edits)
        return GraphResult(name, file_signature.size, True, by_inputs=rules, note=note)
    differences = tuple(signature.differences(model, fresh, (file_signature, fresh_signature)))
    other_versions = '; '.join(edits.other_versions(metadata.edits))
    return GraphResult(name, file_signature.size, False, differences, note=other_versions)


def rules_text(recorded: Sequence[Mapping[str, Any]]) -> str:
    """Return the rules in recorded edits that inputs have to judge in one line; '' for none.

    Of more than `SHOWN` the first are named, the others counted. A rule replaces a part of a graph. No
    comparison of graphs can judge those that a user wrote, and named ones that are approximate. Each is
    'replace: RULE'. `recorded` are the edits of `Metadata.edits`.
    """
    rules = edits.judged_by_inputs(recorded)
    if len(rules) > SHOWN:
        rules = [*rules[:SHOWN], f'{len(rules) - SHOWN} more']
    return ', '.join(rules)


def differing_facts(model: onnx.ModelProto, fresh: onnx.ModelProto) -> list[GraphDifference]:
    """Return a difference for each entry `OF_SPARSE_GRAPHS` of a file that differs from its fresh export's.

    Graphs have these entries before other metadata is added. The others are compared with config and
    checkpoint in `provenance.py`, and unknown ones are refused (`metadata.check_entry_names`).
    """
    file_entries, fresh_entries = (
        {entry.key: entry.value for entry in graph.metadata_props} for graph in (model, fresh)
    )
    keys = [PREFIX + name for name in OF_SPARSE_GRAPHS]
    return [
        GraphDifference('metadata', key, '', 'is not what a fresh export says')
        for key in keys
        if _parsed(file_entries.get(key)) != _parsed(fresh_entries.get(key))
    ]


def _parsed(text: str | None) -> object:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text
