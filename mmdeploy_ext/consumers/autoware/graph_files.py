"""Read the ONNX files of a folder for Autoware: what no engine could load, whichever node it is for.

Needs onnx. The files come from anybody: damaged ones, and ones made to hang a reader, end in a finding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.violations import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx

OLDEST_OPSET, NEWEST_OPSET = 9, 24
"""Opsets outside of which no TensorRT parser is expected to read a file. The bounds were not looked up for
the version that the nodes use, and are wide: a file within them may be refused there."""


def read_graph(path: Path) -> tuple[onnx.ModelProto | None, list[Violation]]:
    """Return a file's model, and why no engine could load it; None where it holds no model at all.

    The weights are in the model unless a violation says that they cannot be read.
    """
    from mmdeploy_ext.graph.io.files import load, read

    model = None
    try:
        model = read(path)
        model = load(path)
    except ModelFileError as error:
        said = ' '.join(str(error).replace(str(path), path.name).split())
        return model, [Violation(path.name, '', 'onnx', said)]
    return model, list(_model_rules(path.name, model))


def _model_rules(file: str, model: onnx.ModelProto) -> Iterator[Violation]:
    from onnx import checker, numpy_helper, shape_inference

    from mmdeploy_ext.graph.io.checks import DEFAULT_DOMAINS
    from mmdeploy_ext.graph.io.index import all_tensors

    opsets = [entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS]
    if len(opsets) != 1 or not OLDEST_OPSET <= opsets[0] <= NEWEST_OPSET:
        got = 'states no opset' if not opsets else f'is of opset {" and ".join(map(str, opsets))}'
        said = f'{file} {got}; expected one of {OLDEST_OPSET} to {NEWEST_OPSET}'
        yield Violation(file, '', 'opset', said)
        return
    try:
        checker.check_model(model)
        # ONNX Runtime, which loads the others, knows no operators of plug-ins
        if any(node.domain not in DEFAULT_DOMAINS for node in model.graph.node):
            shape_inference.infer_shapes(model, strict_mode=True)
    except (checker.ValidationError, shape_inference.InferenceError, ValueError, UnicodeDecodeError) as error:
        said = f'{file}: onnx.checker: {" ".join(str(error).split())[:300]}'
        yield Violation(file, '', 'onnx', said)
        return
    for tensor in all_tensors(model):
        try:
            values = numpy_helper.to_array(tensor)
        except (KeyError, TypeError, ValueError) as error:
            said = f'{file}: the weights of {tensor.name!r} cannot be read: {type(error).__name__}: {error}'
            yield Violation(file, tensor.name, 'onnx', said)
            continue
        if values.dtype.kind == 'f' and np.isnan(values).any():
            count = int(np.isnan(values).sum())
            said = f'{file}: {count} of {values.size} weights of {tensor.name!r} are not a number'
            yield Violation(file, tensor.name, 'not-finite', said)
