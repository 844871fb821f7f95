"""Options of ONNX Runtime's sessions by the names that users type."""

GRAPH_OPTIMIZATION = {
    'none': 'ORT_DISABLE_ALL',
    'basic': 'ORT_ENABLE_BASIC',
    'extended': 'ORT_ENABLE_EXTENDED',
    'all': 'ORT_ENABLE_ALL',
}
"""Name that users type -> name of the member of `onnxruntime.GraphOptimizationLevel`."""
