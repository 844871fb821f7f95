"""Replacements by name, and several rules one after the other."""

from collections.abc import Sequence

import onnx

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.io.index import all_nodes, did_you_mean
from mmdeploy_ext.graph.passes.deform_conv import replace_deform_conv
from mmdeploy_ext.graph.passes.grid_sample import replace_grid_sample
from mmdeploy_ext.graph.passes.norms import replace_group_norm
from mmdeploy_ext.graph.passes.pattern_text import Rule, parse_rule
from mmdeploy_ext.graph.passes.replace import Replacements, replace
from mmdeploy_ext.graph.passes.roi_align import replace_roi_align

NAMED = {
    'hard-swish': 'h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(a); y = Mul(a, h) -> y = HardSwish(a)',
    'expand-hard-swish': 'y = HardSwish(a) -> '
    'h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(a); y = Mul(a, h)',
    'expand-mish': 'y = Mish(a) -> s = Softplus(a); t = Tanh(s); y = Mul(a, t)',
    'expand-gelu': 'y = Gelu(a) -> '
    's = Mul(a, 0.7071067811865476); e = Erf(s); p = Add(e, 1.0); h = Mul(a, 0.5); y = Mul(h, p)',
    'log-softmax': 's = Softmax<axis = @axis>(a); y = Log(s) -> y = LogSoftmax<axis = @axis>(a)',
    'reduce-l2': 's = Mul(a, a); r = ReduceSum<keepdims = @keepdims>(s, axes); y = Sqrt(r) -> '
    'y = ReduceL2<keepdims = @keepdims>(a, axes)',
    'double-cast': 'c = Cast<to = 1>(a); y = Cast<to = @to>(c) -> y = Cast<to = @to>(a)',
}
"""Name of a replacement -> its rule as text, see `parse_rule`."""
APPROXIMATE = {
    'log-softmax': 'the logarithm of a probability that rounds to 0 is -infinity, LogSoftmax is finite there',
    'double-cast': 'a rounding to float32 between two casts is dropped',
}
"""Name of a replacement that changes numbers by more than rounding, for some inputs -> why.

The others are equal by construction: 'hard-swish', 'expand-hard-swish', 'expand-mish' and 'reduce-l2' are the
function that ONNX defines the operator by, 'expand-gelu' is its formula, and the passes are the same sums in
another order, of finite numbers; for limits in float16 see their functions.
"""
PASSES = {
    'deform-conv': (replace_deform_conv, 'DeformConv', 'float64, a weight of unknown shape, or a sub-graph'),
    'grid-sample': (
        replace_grid_sample,
        'GridSample',
        'another mode, padding or alignment, a volume, or not float32',
    ),
    'group-norm': (replace_group_norm, 'InstanceNormalization', 'a scale or bias of its own, or no groups'),
    'roi-align': (replace_roi_align, 'RoiAlign', "mode 'max', an opset before 16, or a sub-graph"),
}
"""Name of a replacement that is code, not a rule -> its function, the operator that it replaces, and the
usual cases in which a node of that operator stays; the function tells all of them."""


def named_rule(name: str) -> Rule:
    """Return the rule that `NAMED` has under `name`.

    UsageError: it has none; the message lists the keys of `NAMED` and `PASSES`.
    """
    if name in NAMED:
        return parse_rule(NAMED[name], name)
    names = [*NAMED, *PASSES]
    raise UsageError(
        f'no replacement is called {name!r}{did_you_mean(name, names)}; there are {", ".join(names)}'
    )


def replace_all(
    model: onnx.ModelProto, rules: Sequence[str], named: Sequence[str]
) -> tuple[onnx.ModelProto, list[Replacements]]:
    """Return a model after several replacements, one after the other, and a report of each, in that order.

    Args:
        model: the graph, which stays as it is; it may be returned itself if nothing is replaced.
        rules: rules as text, see `parse_rule`; they come first.
        named: keys of `NAMED` and `PASSES`; those of `PASSES` come last.

    Raises:
        UsageError: see `parse_rule`, `named_rule` and `replace`.
    """
    parsed = [parse_rule(text) for text in rules] + [named_rule(name) for name in named if name not in PASSES]
    reports = []
    for rule in parsed:
        model, report = replace(model, rule)
        reports.append(report)
    for name in (name for name in named if name in PASSES):
        run, operator, reason = PASSES[name]
        before = sum(node.op_type == operator for node in all_nodes(model))
        model, _ = run(model)
        remaining = [node.name or node.output[0] for node in all_nodes(model) if node.op_type == operator]
        reasons = tuple(f'{operator} {node!r} is kept: {reason}' for node in remaining)
        reports.append(Replacements(name, before - len(remaining), reasons))
    return model, reports
