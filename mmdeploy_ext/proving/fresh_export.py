"""Comparison 1 of a proof: is the graph of a file that of a fresh export of the same model?

Equal graphs compute the same for every input. The fresh export is made with the options in the file's
metadata. A file that commands changed after its export is not compared, see `not_compared`.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from mmdeploy_ext.contract.metadata import PREFIX
from mmdeploy_ext.contract.metadata_schema import OF_SPARSE_GRAPHS
from mmdeploy_ext.core.errors import Mm2OnnxError, ModelFileError, UsageError, one_line
from mmdeploy_ext.exporting import files
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.exporting.export import recorded_warnings
from mmdeploy_ext.exporting.model import prepare_fixed
from mmdeploy_ext.graph import signature
from mmdeploy_ext.graph.io.index import count_nodes
from mmdeploy_ext.graph.signature import GraphDifference
from mmdeploy_ext.proving.results import AS_WRITTEN, EDITED, QUANTIZED, GraphResult
from mmdeploy_ext.quantize.dense import QUANTISE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import onnx

    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.exporting.model import Model

    Export = Callable[[], onnx.ModelProto]


@contextlib.contextmanager
def option_errors(path: str) -> Iterator[None]:
    """Inside the block a UsageError about an option becomes a ModelFileError of the file at `path`."""
    try:
        yield
    except UsageError as error:
        raise ModelFileError(f'{path}: export it again; its options fit no export: {error}') from error


def of_images(deployment: Model, options: Options, image_bgr: np.ndarray) -> Export:
    """Return the function that exports a file that takes single pictures, with the options in its metadata.

    `image_bgr` (h, w, 3) uint8 is traced at the height and width of the options, also for a file of any size;
    the graph does not depend on it.
    """

    def export() -> onnx.ModelProto:
        traced = prepare_fixed(deployment.rule, image_bgr, options.height, options.width)
        return files.export_graphs(deployment, options, [traced])[0][0]

    return export


def of_graph(deployment: Model, options: Options, name: str) -> Export:
    """Return the function that exports one graph of a model of frames or sweeps, by its name.

    The function raises a ModelFileError if the model has no such graph with these options.
    """

    def export() -> onnx.ModelProto:
        for graph in deployment.family.graphs(prepared(deployment.model), options):
            if graph.name == name:
                with recorded_warnings(deployment.code_warnings):
                    return files.export_graph(graph, options, deployment.family.keep_fp32)
        raise ModelFileError(f'the model has no graph {name!r} with the options in the file')

    return export


def not_compared(
    name: str, nodes: int, edits: Sequence[str], *, edited: bool, written: bool
) -> GraphResult | None:
    """Return the result of a file that is not compared with a fresh export; None if it has to be.

    Args:
        name: name of the graph of a model of frames or sweeps; else ''.
        nodes: number of nodes of the main graph that are no Constant.
        edits: commands that changed the file after its export, see `Metadata.edits`.
        edited: whether the user says that it was edited on purpose.
        written: whether the export has just written it.
    """
    others = [edit for edit in edits if not edit.startswith(QUANTISE)]
    if written or edited:
        return GraphResult(name, nodes, False, left_out=AS_WRITTEN if written else EDITED)
    if others:
        commands = ', '.join(dict.fromkeys(others))
        error = f'edited by graph {commands}: give --edited to compare the outputs alone'
        return GraphResult(name, nodes, False, error=error)
    return GraphResult(name, nodes, False, left_out=QUANTIZED) if edits else None


def compare_with_fresh_export(model: onnx.ModelProto, export: Export, name: str = '') -> GraphResult:
    """Compare the graph of a file with its fresh export: nodes, weights, and sparse metadata.

    Names of nodes and inner tensors, and the order of nodes, do not count; names and order of the graph's
    inputs and outputs do (`graph/signature.py`). A fresh export that fails is the `error` of the result, in
    at most 500 characters.

    Args:
        model: the file.
        export: returns the fresh export of the same model.
        name: name of the graph of a model of frames or sweeps, which the result has, too; else ''.
    """
    nodes = count_nodes(model)
    try:
        fresh = export()
    except Mm2OnnxError as error:
        text = f'no fresh export to compare with: {one_line(error)[:500]}'
        return GraphResult(name, nodes, False, error=text)
    found = differing_facts(model, fresh) or signature.differences(model, fresh)
    return GraphResult(name, nodes, not found, tuple(found))


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
