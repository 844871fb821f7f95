"""Options of ONNX Runtime's sessions by the names that users type, and those of its execution providers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

GRAPH_OPTIMIZATION = {
    'none': 'ORT_DISABLE_ALL',
    'basic': 'ORT_ENABLE_BASIC',
    'extended': 'ORT_ENABLE_EXTENDED',
    'all': 'ORT_ENABLE_ALL',
}
"""Name that users type -> name of the member of `onnxruntime.GraphOptimizationLevel`."""
PROVIDER_OPTIONS = {'CUDAExecutionProvider': {'use_tf32': '0'}}
"""Execution provider -> its options that differ from ONNX Runtime's defaults.

On GPUs from Ampere on CUDA rounds the factors of float32 products to 10 bits (TF32) by default, which is not
the model that the file holds.
"""


def providers_with_options(names: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Return (name, options) of each execution provider, as an `InferenceSession` takes them.

    The options are those of `PROVIDER_OPTIONS`, {} of others; the order is that of `names`.
    """
    return [(name, PROVIDER_OPTIONS.get(name, {})) for name in names]
