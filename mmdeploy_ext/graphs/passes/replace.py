"""Replace patterns of nodes by other nodes by onnxscript's rewriter."""

from collections.abc import Callable
from typing import Any

import onnx

from mmdeploy_ext.base.errors import UsageError, one_line


def replace(
    model: onnx.ModelProto,
    pattern: Callable[..., Any],
    replacement: Callable[..., Any],
    check: Callable[..., Any] | None = None,
) -> tuple[onnx.ModelProto, int]:
    """Return a model with every match of a pattern replaced, and the number of matches.

    - `pattern`: `pattern(op, x, ...)` returns the result of the nodes to match; attributes that it does not
      name may have any value.
    - `replacement`: same arguments; returns the result of the new nodes.
    - `check`: accepts or rejects a match, see `onnxscript.rewriter.RewriteRule`.
    """
    import onnx_ir
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.pattern import RewriteRule

    result = onnx_ir.from_proto(model)
    try:
        rules = RewriteRuleSet([RewriteRule(pattern, replacement, check)], commute=True)
        count = rules.apply_to_model(result)
    except Exception as error:
        raise UsageError(f'onnxscript cannot apply the rule: {one_line(error)}') from error
    return (onnx_ir.to_proto(result), count) if count else (model, 0)
