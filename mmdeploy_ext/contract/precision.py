"""What `--precision` of an export means: who checks it, what it does to a contract, and to a finished graph.

A float16 file holds casts: the network computes in float16, but for what has to stay float32. Its inputs and
outputs stay float32 unless they are asked to be float16. There is no bfloat16 file: it is an engine's choice.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx

    from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec

PRECISIONS = ('fp32', 'fp16', 'bf16')
FACTS = 'fp16.'
"""What was done is kept under this prefix in `metadata_props`."""
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


def in_precision(
    model: onnx.ModelProto, spec: GraphSpec, options: Any, defaults: Iterable[str] = ()
) -> onnx.ModelProto:
    """Return a finished graph in the precision of its options; what was done is kept in its metadata.

    A graph that is in it already comes back the same.

    Args:
        model: float32; its inputs and outputs are the spec's.
        spec: which ends are float16, and which are computed in float32 all the same.
        options: `precision` and `keep_fp32` are read.
        defaults: patterns of the family's nodes that stay float32. Patterns that fit nothing are no mistake
            here, since several graphs share them; see `check_patterns`.

    Raises:
        ExportError: a constant exceeds float16.
    """
    if options.precision == 'fp32':
        return model
    from mmdeploy_ext.graph.passes.for_tensorrt import stays_single
    from mmdeploy_ext.graph.passes.fp16 import fitting, matching_nodes, to_fp16

    kept = stays_single(model) + fitting(model.graph.node, (*defaults, *options.keep_fp32))
    result = to_fp16(model, spec, kept)
    facts = dict(
        keep_fp32=json.dumps(list(options.keep_fp32)),
        kept_nodes=len(matching_nodes(model.graph.node, kept)),
        nodes=len(model.graph.node),
    )
    known = {entry.key for entry in result.metadata_props}
    for name, value in facts.items():
        if FACTS + name not in known:
            result.metadata_props.add(key=FACTS + name, value=str(value))
    return result


def recorded(model: onnx.ModelProto, fp16_io: bool, keep_fp32: Sequence[str]) -> onnx.ModelProto:
    """Return a float16 model whose metadata says so, where it has metadata of this project.

    Args:
        model: float16 was written into it after its export.
        fp16_io: its inputs and outputs became float16, too.
        keep_fp32: patterns that stayed float32.
    """
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.core.errors import ModelFileError
    from mmdeploy_ext.graph.equality import with_half_ends

    props = {entry.key: entry.value for entry in model.metadata_props}
    try:
        metadata = Metadata.from_props(props)
    except ModelFileError:
        return model
    options = dict(metadata.options, precision='fp16', fp16_io=fp16_io, keep_fp32=list(keep_fp32))
    spec = with_half_ends(metadata.spec) if fp16_io else metadata.spec
    told = dataclasses.replace(metadata, options=options, spec=spec)
    result = type(model)()
    result.CopyFrom(model)
    result.ClearField('metadata_props')
    for name, value in {**props, **told.to_props()}.items():
        result.metadata_props.add(key=name, value=value)
    return result


def check_patterns(models: Iterable[onnx.ModelProto], patterns: Sequence[str]) -> None:
    """Refuse patterns that fit no node of any graph of an export.

    Raises:
        UsageError: the message has similar names.
    """
    from mmdeploy_ext.graph.passes.fp16 import matching_nodes

    if patterns:
        matching_nodes([node for model in models for node in model.graph.node], patterns)


def written_precision(model: onnx.ModelProto) -> str:
    """Return what a file really holds: 'fp16' when one of its constants or casts is float16, else 'fp32'."""
    from onnx import TensorProto

    if any(value.data_type == TensorProto.FLOAT16 for value in model.graph.initializer):
        return 'fp16'
    entries = (entry for node in model.graph.node if node.op_type == 'Cast' for entry in node.attribute)
    to_half = any(entry.name == 'to' and entry.i == TensorProto.FLOAT16 for entry in entries)
    return 'fp16' if to_half else 'fp32'
