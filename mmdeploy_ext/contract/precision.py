"""What `--precision` of an export means: the choices, and what it does to a contract.

A float16 file holds casts: the network computes in float16, but for what has to stay float32. Its inputs and
outputs stay float32 unless they are asked to be float16. There is no bfloat16 file: it is an engine's choice.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec

PRECISIONS = ('fp32', 'fp16', 'bf16')
NO_BF16_FILE = (
    'a file has no bfloat16 form: ONNX has bfloat16 convolutions from opset 22 on, the exporters write up to '
    '20. Export fp32 and let OpenVINO compute it in bfloat16: --inference-precision bf16, or '
    "inference_precision='bf16' in backend_config"
)


def check_precision(precision: Any, fp16_io: bool, keep_fp32: Sequence[str], where: str = '--') -> None:
    """Refuse precisions that there are not, and options that do nothing without fp16.

    Args:
        precision: one of `PRECISIONS`.
        fp16_io: features are float16 outside, too.
        keep_fp32: patterns of nodes.
        where: what stands before a name in the message; '--' spells it as on the command line.

    Raises:
        UsageError: the message says what goes with what.
    """
    if precision not in PRECISIONS:
        raise UsageError(f'{spelt("precision", where)} {precision!r}: expected {" or ".join(PRECISIONS[:2])}')
    if precision == 'bf16':
        raise UsageError(f'{spelt("precision", where)} bf16: {NO_BF16_FILE}')
    if any(not isinstance(pattern, str) or not pattern for pattern in keep_fp32):
        raise UsageError(f'{spelt("keep_fp32", where)} {list(keep_fp32)!r}: expected patterns of names')
    for name, given in (('fp16_io', fp16_io), ('keep_fp32', keep_fp32)):
        if given and precision != 'fp16':
            raise UsageError(f'{spelt(name, where)} goes with precision fp16, got {precision}')


def spelt(name: str, where: str = '--') -> str:
    """Return an option as the user wrote it: `--fp16-io`, or a key of a config behind `where`."""
    return where + (name.replace('_', '-') if where == '--' else name)


def keep_list(patterns: Any) -> tuple[str, ...]:
    """Return one pattern or several as a tuple; `check_precision` refuses what is neither."""
    if patterns is None:
        return ()
    return tuple(patterns) if isinstance(patterns, list | tuple) else (patterns,)


def with_half_features(spec: GraphSpec) -> GraphSpec:
    """Return the contract of an image model whose images and compared outputs are float16 outside.

    Sizes and ratios stay float32, and so do pixels, in which float16 is half a pixel wide from 512 on, and
    outputs that are detections: what made them computed in float32.
    """
    inputs = tuple(_half(tensor) if len(tensor.axes) == 4 else tensor for tensor in spec.inputs)
    outputs = tuple(_half(tensor) if _is_feature(tensor) else tensor for tensor in spec.outputs)
    return dataclasses.replace(spec, inputs=inputs, outputs=outputs)


def _is_feature(tensor: TensorSpec) -> bool:
    units = {group.unit for group in tensor.column_groups} | {tensor.unit}
    return tensor.compare == 'values' and 'pixel' not in units


def _half(tensor: TensorSpec) -> TensorSpec:
    return dataclasses.replace(tensor, dtype='float16') if tensor.dtype == 'float32' else tensor


def written_precision(model: onnx.ModelProto) -> str:
    """Return what a file really holds: 'fp16' when one of its constants or casts is float16, else 'fp32'."""
    from onnx import TensorProto

    if any(value.data_type == TensorProto.FLOAT16 for value in model.graph.initializer):
        return 'fp16'
    entries = (entry for node in model.graph.node if node.op_type == 'Cast' for entry in node.attribute)
    to_half = any(entry.name == 'to' and entry.i == TensorProto.FLOAT16 for entry in entries)
    return 'fp16' if to_half else 'fp32'
