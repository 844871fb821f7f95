"""Autoware's plug-ins of spconv in numpy, for onnx's reference evaluator: pairs of sites, and products.

Pairs are (K, W) rows of the input, -1 for none. Masks and their order, which the plug-in of the engine needs
to be quick, are zeros here: nothing else reads them.

Glossary: V sites that a convolution reads, W that it writes, K offsets of its kernel, I, O channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.sparse.engine import gathered
from mmdeploy_ext.sparse.rulebook import pairs

if TYPE_CHECKING:
    import onnx
    from onnx.reference import ReferenceEvaluator

NOTHING = -1


def _indice_pairs(self: Any, indices: np.ndarray, **given: Any) -> tuple[np.ndarray, ...]:
    """Return sites (W, 4), pairs (K, W), masks (W, 1), their order (W,), and how many sites there are."""
    geometry = (given[name] for name in ('ksize', 'stride', 'padding', 'dilation'))
    reached, table = pairs(indices, given['spatial_shape'], bool(given['subm']), *geometry)
    table = np.where(table < len(indices), table, NOTHING).astype(np.int32)
    unread = np.zeros(len(reached), np.int32)
    return reached, table, unread[:, None], unread, np.array(len(reached), np.int32)


def _products(
    self: Any,
    features: np.ndarray,
    filters: np.ndarray,
    table: np.ndarray,
    masks: np.ndarray,
    order: np.ndarray,
    **_: Any,
) -> tuple[np.ndarray]:
    """Return (W, O): for each site the sum over its pairs of features times the filters of the offset."""
    return (gathered(features, filters, np.where(table < 0, len(features), table)),)


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """Return what runs a graph of standard operators and these two."""
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    from mmdeploy_ext.sparse.implicit_gemm import DOMAIN, PAIRS, PRODUCTS

    kernels = {PAIRS: _indice_pairs, PRODUCTS: _products}
    operators = [
        type(name, (OpRun,), dict(op_domain=DOMAIN, _run=kernel)) for name, kernel in kernels.items()
    ]
    return ReferenceEvaluator(model, new_ops=operators)
