"""How many products a graph has, and how many a second this machine computes at most."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.bench.precision.damage import counted
from mmdeploy_ext.engines.base import record_runs
from mmdeploy_ext.graphs.io.files import load
from mmdeploy_ext.graphs.run import open_session

if TYPE_CHECKING:
    from collections.abc import Callable

SIDES = 512, 1024, 2048
"""Rows and columns of the matrices of `peak`."""
PEAK_RUNS = 5


def products(run: Callable[[], object]) -> float:
    """Return the products of convolutions and matrices that ONNX Runtime's graphs compute in a run, 1e9."""
    with record_runs() as runs:
        run()
    return sum(sum(count for _, count in counted(load(one.path), one.inputs).values()) for one in runs) / 1e9


def peak(threads: int) -> float:
    """Return the most products of float32 a second of ONNX Runtime's MatMul, 1e9."""
    return max(_matmul(side, threads) for side in SIDES)


def _matmul(side: int, threads: int) -> float:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, side, side)).astype(np.float32)
    node = helper.make_node('MatMul', ['left', 'right'], ['out'])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in ('left', 'out')]
    graph = helper.make_graph([node], 'matmul', ends[:1], ends[1:], [numpy_helper.from_array(right, 'right')])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    session = open_session(model, 'all', threads)
    seconds = []
    for _ in range(PEAK_RUNS):
        start = time.perf_counter()
        session.run(None, dict(left=left))
        seconds.append(time.perf_counter() - start)
    return side**3 / min(seconds) / 1e9
