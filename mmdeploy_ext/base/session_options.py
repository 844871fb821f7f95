"""Options of ONNX Runtime's sessions and execution providers."""

from __future__ import annotations

from collections.abc import Sequence

GRAPH_OPTIMIZATION = {
    'none': 'ORT_DISABLE_ALL',
    'basic': 'ORT_ENABLE_BASIC',
    'extended': 'ORT_ENABLE_EXTENDED',
    'all': 'ORT_ENABLE_ALL',
}
"""Name that users type -> member of `onnxruntime.GraphOptimizationLevel`."""
PROVIDER_OPTIONS = {'CUDAExecutionProvider': {'use_tf32': '0'}}
"""By default CUDA rounds factors of float32 products to 10 bits (TF32) on Ampere and later."""


def providers_with_options(names: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    return [(name, PROVIDER_OPTIONS.get(name, {})) for name in names]
