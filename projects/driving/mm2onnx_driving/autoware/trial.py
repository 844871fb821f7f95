"""Runs a folder's graphs in ONNX Runtime, in a process with a time limit."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_driving.autoware.probes import convention_rules
from mm2onnx_driving.folder_rules import fits, graph_tensors, shape_text
from mmdeploy_ext.base.errors import Mm2OnnxError, one_line
from mmdeploy_ext.base.violations import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import onnx

SECONDS = 300
"""Time limit of a file."""


def trial_rules(trials: Sequence[tuple[Path, bool]]) -> list[Violation]:
    """Return the violations that ONNX Runtime and the probe find."""
    violations: list[Violation] = []
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        for path, has_boxes in trials:
            try:
                violations += pool.apply_async(try_file, (path, has_boxes)).get(SECONDS)
            except multiprocessing.TimeoutError:
                text = f'{path.name}: ONNX Runtime could not load and run it within {SECONDS} s'
                return [*violations, Violation(path.name, '', 'load', text)]
    return violations


def try_file(path: Path, has_boxes: bool) -> list[Violation]:
    from mmdeploy_ext.graphs.io.files import load

    file, model = path.name, load(path)
    try:
        violations = list(_run_on_zeros(file, model))
    except Mm2OnnxError as error:
        return [Violation(file, '', 'load', f'{file}: {one_line(error)[:300]}')]
    if violations or not has_boxes:
        return violations
    return list(convention_rules(file, model, [value.name for value in model.graph.output]))


def _run_on_zeros(file: str, model: onnx.ModelProto) -> Iterator[Violation]:
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    from mmdeploy_ext.graphs.run import run

    tensors, feeds = graph_tensors(model), {}
    for name, shape in tensors.inputs.items():
        dtype = tensor_dtype_to_np_dtype(TensorProto.DataType.Value(tensors.types[name]))
        feeds[name] = np.zeros([size or 1 for size in shape], dtype)
    for name, values in run(model, feeds).items():
        stated = tensors.outputs[name]
        if not fits(values.shape, stated):
            text = (
                f'{file}: for inputs of zeros {name} is {shape_text(values.shape)}, but the graph declares '
            )
            yield Violation(file, name, 'shape', text + shape_text(stated))
        elif not np.isfinite(values).all():
            yield Violation(file, name, 'not-finite', f'{file}: {name} is not finite for inputs of zeros')
