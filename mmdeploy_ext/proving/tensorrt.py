"""Compares a TensorRT engine with ONNX Runtime on the same random feeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.base.files import sha256_onnx
from mmdeploy_ext.engines.tensorrt.backend import TensorRtBackend
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.passes.for_tensorrt import fix_inputs, for_tensorrt, parse_constants
from mmdeploy_ext.graphs.run import Runner, random_feeds
from mmdeploy_ext.spec.comparison import compare_named
from mmdeploy_ext.spec.results import FLOAT32, HALF

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from mmdeploy_ext.engines.tensorrt.record import Record
    from mmdeploy_ext.spec.results import TensorRow

LARGEST_DIFFERENCE = 1e-3
"""Tolerance of float32, relative to an output's largest value: GPUs sum in other orders."""


def compare(engine: str, source: str, seed: int = 0) -> list[TensorRow]:
    backend = TensorRtBackend(engine)
    backend.open_session()
    if backend.record.onnx_sha256 != sha256_onnx(source):
        raise ModelFileError(f'{engine}: was not built from {source} (the SHA-256 differs); build it again')
    model = fix_inputs(files.load(source), parse_constants(backend.record.constants))
    feeds = proof_feeds(model, backend.record, seed)
    got = backend.session.run(feeds)
    backend.deactivate()
    return compare_outputs(Runner(model).run(feeds), got, half=holds_float16(backend.record))


def holds_float16(record: Record) -> bool:
    return any('float16' in counts for counts in record.layers.values())


def proof_feeds(model: onnx.ModelProto, record: Record, seed: int = 0) -> dict[str, np.ndarray]:
    usual = {name: shapes[1] for name, shapes in record.profiles.items()}
    feeds = random_feeds(for_tensorrt(model), seed, usual)
    for tensor in model.graph.initializer:
        if tensor.name in feeds:
            array = np.broadcast_to(numpy_helper.to_array(tensor), feeds[tensor.name].shape)
            feeds[tensor.name] = np.ascontiguousarray(array)
    return feeds


def compare_outputs(
    reference: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], *, half: bool
) -> list[TensorRow]:
    """Compare outputs by name in the reference's dtype: TensorRT narrows float64 and int64."""
    outputs = {name: array.astype(reference.get(name, array).dtype) for name, array in got.items()}
    bars = HALF if half else FLOAT32
    return compare_named(reference, outputs, LARGEST_DIFFERENCE, 'the ONNX file', bars=bars)


def row_text(row: TensorRow) -> str:
    if row.cosine is None or (row.max_rel is None and not row.passed):  # no figure shows it
        return f'{row.tensor}: FAILED: {row.reason}'
    verdict = 'ok' if row.passed else 'FAILED'
    relative = 0.0 if row.max_rel is None else row.max_rel
    return f'{row.tensor}: {relative:.2e} of its largest value, cosine {row.cosine:.6f}: {verdict}'
