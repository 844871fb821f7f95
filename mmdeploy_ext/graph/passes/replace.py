"""Replace patterns of nodes by other nodes, by rules that users write as text.

`onnxscript`'s rewriter finds and replaces. What it leaves to its rules is done here: attributes are equal
also where one side leaves its default out, a node with an attribute that the pattern does not have is not
touched, a number matches any constant of one value, and a place that cannot be replaced says why.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.io.index import did_you_mean
from mmdeploy_ext.graph.io.operators import defaults_of, opsets_of, schema_of
from mmdeploy_ext.graph.io.types import infer
from mmdeploy_ext.graph.passes.pattern_text import Rule

if TYPE_CHECKING:
    from onnx_ir import Model, Node, Value


import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx_ir import Node, Value

LARGEST_PATTERN = 8
"""Commutative operators in a pattern: each doubles the forms that are looked for."""


@dataclasses.dataclass(frozen=True)
class Replacements:
    """How many places a rule replaced, and which it left as they are although they match, and why."""

    rule: str
    count: int
    kept: tuple[str, ...]


def replace(model: onnx.ModelProto, rule: Rule) -> tuple[onnx.ModelProto, Replacements]:
    """Return a model in which every place that a rule's pattern matches has the rule's replacement.

    - Fires where operators, attributes, numbers and the structure agree; the operands of commutative
      operators may be swapped.
    - Not fired where an inner result is read elsewhere or is an output of the graph (the report says so), and
      where operators of the pattern lie in different graphs (an If's branch and the graph around it).

    Returns:
        The new model, or an equal copy when there was nothing to do; and the report.

    Raises:
        UsageError: an operator that the model's opset does not have, or a replacement that holds its own
            pattern, so that no end would be reached.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    opsets = opsets_of(model)
    _check_operators(rule, opsets)
    types = {name: kind.tensor_type.elem_type for name, kind in infer(model).items()}
    _check_ends(rule, opsets)
    graph = ir.serde.deserialize_model(model)
    rewriter = _Rewriter(rule, opsets, types)
    count = rewriter.apply(graph)
    kept = tuple(_why_kept(match.nodes, match.outputs, node) for node, match in rewriter.matches(graph))
    if not count:
        return copy.deepcopy(model), Replacements(str(rule), 0, kept)
    RemoveUnusedNodesPass()(graph)
    return ir.serde.serialize_model(graph), Replacements(str(rule), count, kept)


class _Rewriter:
    """A rule in the form of onnxscript's rewriter, for models of some opsets.

    Numbers of a replacement get their type from `types`, those of a model's tensors.
    """

    def __init__(self, rule: Rule, opsets: dict[str, int], types: dict[str, int]) -> None:
        self.rule, self.opsets, self.types, self.left = rule, opsets, types, 0
        free = [(node, item) for node in rule.pattern.nodes for item in node.attribute if item.ref_attr_name]
        self.defaults = {item.ref_attr_name: defaults_of(node, opsets).get(item.name) for node, item in free}

    def apply(self, model: Model) -> int:
        """Replace in place until nothing matches; a replaced place can complete the next one's pattern."""
        total, self.left = 0, 2 * sum(1 for _ in model.graph.all_nodes())
        while count := self.rules().apply_to_model(model):
            total += count
        return total

    def matches(self, model: Model) -> Iterator[tuple[Node, Any]]:
        """Yield (last node, match) of every place that has the pattern's structure, replaceable or not."""
        forms = list(self.rules())
        for scope in [model.graph, *model.graph.subgraphs()]:
            for node in scope:
                found = (form.match(model, scope, node, check_nodes_are_removable=False) for form in forms)
                if match := next(filter(None, found), None):
                    yield node, match

    def rules(self) -> Any:
        """Return the rewriter's rules, with all orders of commutative operands."""
        from onnxscript.rewriter import pattern

        target = functools.partial(self.target)  # a method takes no signature; the parameters are variables
        names, kind = ('__builder__', *self.rule.pattern.variables), inspect.Parameter.POSITIONAL_OR_KEYWORD
        target.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])
        return pattern.RewriteRuleSet([pattern.RewriteRule(target, self.replacement)], commute=True)

    def target(self, op: Any, *variables: Any) -> Any:
        """Make the rewriter's pattern."""
        from onnxscript.rewriter import pattern

        side = self.rule.pattern
        values: dict[str, Any] = {'': None, **dict(zip(side.variables, variables, strict=True))}
        values.update((name, number_check(number)) for name, number in side.numbers.items())
        for node in side.nodes:
            free = [item for item in node.attribute if item.ref_attr_name]
            made = getattr(op, node.op_type)(
                *(values[name] for name in node.input),
                _domain=node.domain,
                _outputs=[name or None for name in node.output],
                _check=attribute_check(node, self.opsets),
                **{item.name: pattern.AttrVar(item.ref_attr_name, can_match_none=True) for item in free},
            )
            values.update(zip(node.output, [made] if len(node.output) == 1 else made, strict=True))
        return values[side.output]

    def replacement(self, op: Any, /, **bound: Any) -> Any:
        """Make the new nodes of a place."""
        import onnx_ir as ir

        self.left -= 1
        if self.left < 0:  # a rule that matches its own results
            never = 'each replacement makes a new place; replacing would never end'
            raise UsageError(f'rule {self.rule}: {never}')
        side, result = self.rule.replacement, bound[self.rule.pattern.output].name
        kind = self.types.get(result, onnx.TensorProto.FLOAT)
        values: dict[str, Any] = {'': None, **{name: bound[name] for name in side.variables}}
        for name, number in side.numbers.items():
            array = np.asarray(number).astype(helper.tensor_dtype_to_np_dtype(kind))
            values[name] = op.Constant(value=ir.tensor(array))
            _name(values[name], f'{result}/{name}', f'{result}/Constant_{len(values)}')
        for node in side.nodes:
            made = getattr(op, node.op_type)(
                *(values[name] for name in node.input),
                _domain=node.domain,
                _outputs=len(node.output),
                **_attributes(node, bound, self.defaults),
            )
            for name, value in zip(node.output, [made] if len(node.output) == 1 else made, strict=True):
                values[name] = value
                _name(value, f'{result}/{name}', f'{result}/{node.op_type}_{len(values)}')
        return values[side.output]


def _name(value: Value, name: str, node: str) -> None:
    value.name = name
    value.producer().name = node


def _attributes(node: onnx.NodeProto, bound: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    import onnx_ir as ir

    made = {}
    for item in node.attribute:
        if not item.ref_attr_name:
            made[item.name] = ir.serde.deserialize_attribute(item)
            continue
        found = bound[item.ref_attr_name]
        if found is not None:
            made[item.name] = ir.Attr(item.name, found.type, found.value)
        elif defaults[item.ref_attr_name] is not None:
            made[item.name] = defaults[item.ref_attr_name]
    return made


def _check_operators(rule: Rule, opsets: dict[str, int]) -> None:
    """Refuse operators of ONNX that the model's opset does not have; those of other domains are unknown."""
    for node in rule.replacement.nodes:
        if node.domain not in opsets and node.domain:
            raise UsageError(
                f'rule {rule}: the replacement has {node.domain}.{node.op_type}, and the model imports no '
                f'opset of {node.domain!r}, only {sorted(opsets)}'
            )
    for node in (*rule.pattern.nodes, *rule.replacement.nodes):
        if node.domain or schema_of(node, opsets) is not None:
            continue
        version = opsets.get('', 1)
        known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
        later = '; convert the model with convert-opset'
        hint = later if node.op_type in known else did_you_mean(node.op_type, known)
        raise UsageError(f'rule {rule}: opset {version} of the model has no operator {node.op_type!r}{hint}')
    commutative = sum(len(node.input) == 2 for node in rule.pattern.nodes)
    if commutative > LARGEST_PATTERN:
        raise UsageError(
            f'rule {rule}: {commutative} operators of two operands; a pattern has at most {LARGEST_PATTERN}'
        )


def _check_ends(rule: Rule, opsets: dict[str, int]) -> None:
    """Refuse a replacement in which the pattern is found again."""
    import onnx_ir as ir

    side, nodes = rule.replacement, copy.deepcopy(rule.replacement.nodes)
    for item in (item for node in nodes for item in node.attribute if item.ref_attr_name):
        item.ref_attr_name = ''
    numbers = [onnx.numpy_helper.from_array(np.float32(value), name) for name, value in side.numbers.items()]
    ends = [[onnx.ValueInfoProto(name=name) for name in names] for names in (side.variables, [side.output])]
    imports = [helper.make_opsetid(*entry) for entry in opsets.items()]
    model = helper.make_model(helper.make_graph(nodes, 'r', *ends, numbers), opset_imports=imports)
    if any(_Rewriter(rule, opsets, {}).matches(ir.serde.deserialize_model(model))):
        raise UsageError(
            f'rule {rule}: the pattern is found in its own replacement, so replacing would never end'
        )


def _why_kept(nodes: Sequence[Node], results: Iterable[Value], last: Node) -> str:
    outside, results = [], list(results)
    for value in (value for node in nodes for value in node.outputs if value not in results):
        if value.is_graph_output():
            outside.append(f'{value.name!r} is an output of the graph')
        if readers := [user.name or user.op_type for user, _ in value.uses() if user not in nodes]:
            outside.append(f'{value.name!r} is read by {", ".join(map(repr, readers))}')
    place = f'the place that ends in {last.name or last.op_type!r} is kept'
    return f'{place}: its inner result {"; ".join(outside)}'


TOLERANCE = 1e-6
"""Of numbers, as a part of them: text has fewer digits than float32."""


def number_check(expected: float) -> Callable:
    """Return a check that a tensor is a constant of one value; inputs with a default are none."""

    def check(context: Any, value: Value) -> bool:
        del context
        if value is None or value.const_value is None or value.is_graph_input():
            return False
        array = value.const_value.numpy()
        return array.size == 1 and math.isclose(
            float(array.reshape(())), expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE * TOLERANCE
        )

    return check


def attribute_check(node: onnx.NodeProto, opsets: dict[str, int]) -> Callable:
    """Return a check that a node has the pattern's attributes and no other, but for defaults."""
    free = {item.name for item in node.attribute if item.ref_attr_name}
    given = [item for item in node.attribute if item.name not in free]
    wanted = {item.name: helper.get_attribute_value(item) for item in given}
    defaults = defaults_of(node, opsets)

    def check(context: Any, found: Node) -> bool:
        del context
        values = {name: item.value for name, item in found.attributes.items()}
        got = {name: value.numpy() if hasattr(value, 'numpy') else value for name, value in values.items()}
        names = (wanted.keys() | got.keys()) - free
        sides = [[side.get(name, defaults.get(name)) for side in (got, wanted)] for name in names]
        return all(_same(*pair) for pair in sides)

    return check


def _same(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right
    if isinstance(left, bytes | str) or isinstance(right, bytes | str):
        return _text(left) == _text(right)
    left, right = (
        onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
        for value in (left, right)
    )
    if left.dtype.kind in 'OSU' or right.dtype.kind in 'OSU':
        return [_text(item) for item in left.ravel()] == [_text(item) for item in right.ravel()]
    return left.shape == right.shape and np.allclose(left, right, rtol=TOLERANCE, atol=0, equal_nan=True)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
