"""Fresh exports of what a file claims to be, for the values of constants that no checkpoint holds."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from mmdeploy_ext import deploy
from mmdeploy_ext.errors import Mm2OnnxError
from mmdeploy_ext.verify.weights import Derived

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import onnx

    from mmdeploy_ext.deploy import Deployment
    from mmdeploy_ext.family import BaseFamily, ExportOptions
    from mmdeploy_ext.sequence.family import Graph, SequenceOptions


def of_images(deployment: Deployment, options: ExportOptions, image_bgr: np.ndarray) -> Derived:
    """Return what is computed in a file of single pictures.

    Args:
        deployment: the model.
        options: of the file.
        image_bgr: what is traced; no constant depends on it.
    """

    def export(chosen: ExportOptions) -> onnx.ModelProto:
        traced = deploy.prepare_fixed(deployment.rule, image_bgr, options.height, options.width)
        return deploy.export_model(deployment, chosen, [traced])[0]

    return _derived(deployment.family, options, export)


def of_graph(family: BaseFamily, options: SequenceOptions, graph: Graph | None) -> Derived:
    """Return what is computed in one file of a model of frames.

    Args:
        family: of the model.
        options: of the file.
        graph: that it holds; None where the family has no such graph.
    """
    from mmdeploy_ext.sequence.files import export_graph

    if graph is None:
        return Derived(family.derived_prefixes, family.derives)
    return _derived(family, options, lambda chosen: export_graph(graph, chosen, family.keep_fp32))


def _derived(
    family: BaseFamily,
    options: ExportOptions | SequenceOptions,
    export: Callable[[ExportOptions | SequenceOptions], onnx.ModelProto],
) -> Derived:
    """Return the family's word, with exports: by the quicker exporter, by that of the file, simplified."""

    def fresh() -> Iterator[onnx.ModelProto]:
        chosen = [dataclasses.replace(options, exporter='torchscript'), options]
        chosen.append(dataclasses.replace(options, simplify=True))  # what graph.py simplify folds later
        for one in dict.fromkeys(chosen):
            with contextlib.suppress(Mm2OnnxError):  # the next one may do
                yield export(one)

    return Derived(family.derived_prefixes, family.derives, fresh)
