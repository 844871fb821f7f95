"""Fresh exports of what a file claims to be, changed as the file was: what its graph is compared with."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import ModelFileError, UsageError
from mmdeploy_ext.exporting import deployment as deploy
from mmdeploy_ext.exporting import files
from mmdeploy_ext.graph import edits
from mmdeploy_ext.graph.output_comparison import with_half_ends
from mmdeploy_ext.quantize.dense import QUANTISE, quantise_again

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    import onnx

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.contract.stages import Graph
    from mmdeploy_ext.exporting.deployment import Deployment

REPEATED = {QUANTISE: quantise_again}
"""Commands beyond those of graph.py that can be done again."""


@contextlib.contextmanager
def options_of(path: str) -> Iterator[None]:
    """Turn the refusal of an option into an error of the file that says that it was exported with it."""
    try:
        yield
    except UsageError as error:
        raise ModelFileError(f'{path}: its options fit no export: {error}; export it again') from error


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a graph is compared with; each part is made when it is needed.

    Attributes:
        export: returns a fresh export by the options of the file.
        edits: commands that changed the file, and that `fresh` does again.
    """

    export: Callable[[], onnx.ModelProto]
    edits: tuple[Mapping[str, Any], ...] = ()

    def fresh(self) -> onnx.ModelProto:
        """Return what the file has to be.

        Raises:
            Mm2OnnxError: it cannot be exported, or a command cannot be done again.
        """
        return edits.repeat(self.export(), self.edits, REPEATED)


def of_images(
    deployment: Deployment, options: Options, metadata: Metadata, image_bgr: np.ndarray
) -> Reference:
    """Return what a file of single pictures is compared with; no constant depends on the image."""
    chosen = exported_with(options, metadata)

    def export() -> onnx.ModelProto:
        traced = deploy.prepare_fixed(deployment.rule, image_bgr, chosen.height, chosen.width)
        return files.export_graphs(deployment, chosen, [traced])[0][0]

    return _reference(deployment, chosen, metadata, export)


def of_graph(deployment: Deployment, options: Options, metadata: Metadata, graph: Graph | None) -> Reference:
    """Return what one file of a sequence family is compared with; None is no graph of the family."""
    chosen = exported_with(options, metadata)

    def export() -> onnx.ModelProto:
        if graph is None:
            raise ModelFileError(f'the model has no graph {metadata.form!r} with the options in the file')
        return files.export_graph(graph, chosen, deployment.family.keep_fp32)

    return _reference(deployment, chosen, metadata, export)


def _reference(
    deployment: Deployment, options: Options, metadata: Metadata, export: Callable[[], onnx.ModelProto]
) -> Reference:
    """Return a reference whose export is made once per deployment."""
    key = metadata.form, options

    def export_once() -> onnx.ModelProto:
        if key not in deployment.exports:
            deployment.keep(key, export())
        return deployment.exports[key]

    return Reference(export_once, metadata.edits)


def exported_with(options: Options, metadata: Metadata) -> Options:
    """Return the options of the export itself: float16 that a command wrote into the file came later."""
    if _half_edits(metadata):
        return options.replace(precision='fp32', fp16_io=False, keep_fp32=())
    return options


def contract_after(spec: GraphSpec, metadata: Metadata) -> GraphSpec:
    """Return the contract of a file that the recorded commands made of an export with this one."""
    half_ends = any(edit['arguments'].get('io') == 'fp16' for edit in _half_edits(metadata))
    return with_half_ends(spec) if half_ends else spec


def _half_edits(metadata: Metadata) -> list[dict[str, Any]]:
    return [edit for edit in metadata.edits if edit['command'] == 'fp16']
