"""A finished graph in the precision of its export's options; what was done is kept in its metadata."""

import copy
import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import onnx

from mmdeploy_ext.contract.metadata import Metadata
from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.graph.output_comparison import with_half_ends
from mmdeploy_ext.graph.passes.for_tensorrt import fp32_patterns
from mmdeploy_ext.graph.passes.fp16 import to_fp16
from mmdeploy_ext.graph.passes.select import matches, matching_nodes

FACTS = 'fp16.'
"""What was done is kept under this prefix in `metadata_props`."""


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
    asked = matches(model.graph.node, (*defaults, *options.keep_fp32))
    kept = [*fp32_patterns(model), *(pattern for pattern, places in asked.items() if places)]
    result = to_fp16(model, spec, kept)
    told = {
        f'{FACTS}keep_fp32': json.dumps(list(options.keep_fp32)),
        f'{FACTS}kept_nodes': str(len(matching_nodes(model.graph.node, kept))),
        f'{FACTS}nodes': str(len(model.graph.node)),
    }
    known = {entry.key: entry.value for entry in result.metadata_props}
    onnx.helper.set_model_props(result, {**known, **told, **known})
    return result


def recorded(model: onnx.ModelProto, fp16_io: bool, keep_fp32: Sequence[str]) -> onnx.ModelProto:
    """Return a model that became float16 after its export with metadata of this project, if any, that say so.

    `fp16_io`: its inputs and outputs became float16, too; `keep_fp32` are patterns that stayed float32.
    """
    props = {entry.key: entry.value for entry in model.metadata_props}
    try:
        metadata = Metadata.from_props(props)
    except ModelFileError:
        return model
    options = dict(metadata.options, precision='fp16', fp16_io=fp16_io, keep_fp32=list(keep_fp32))
    spec = with_half_ends(metadata.spec) if fp16_io else metadata.spec
    told = dataclasses.replace(metadata, options=options, spec=spec)
    result = copy.deepcopy(model)
    onnx.helper.set_model_props(result, {**props, **told.to_props()})
    return result


def check_patterns(models: Iterable[onnx.ModelProto], patterns: Sequence[str]) -> None:
    """Raise UsageError, with similar names, for patterns that fit no node of any graph of an export."""
    if patterns:
        matching_nodes([node for model in models for node in model.graph.node], patterns)
