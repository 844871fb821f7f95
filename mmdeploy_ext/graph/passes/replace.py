"""Replace patterns of nodes by other nodes, by rules that users write as text.

`onnxscript`'s rewriter finds and replaces. What it leaves to its rules is done here: attributes are equal
also where one side leaves its default out, a node with an attribute that the pattern does not have is not
touched, a number matches any constant of one value, and the report has the reason for each place that cannot
be replaced.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.io.index import defaults_of, did_you_mean, opsets_of, schema_of
from mmdeploy_ext.graph.io.types import infer
from mmdeploy_ext.graph.passes.pattern_text import Rule

if TYPE_CHECKING:
    from onnx_ir import Model, Node, Value

LARGEST_PATTERN = 8
"""Operators of two operands in a pattern: each doubles the forms that are looked for if it is commutative."""
VARIADIC = ('Max', 'Mean', 'Min', 'Sum')
"""Commutative operators of any number of operands. A pattern in which one of them has other than two is found
in the order of its operands alone."""
TOLERANCE = 1e-6
"""Relative tolerance at which numbers are equal: the text of a rule has fewer digits than float32."""


@dataclasses.dataclass(frozen=True)
class Replacements:
    """The report of a rule, or of one of `named_rules.PASSES`.

    Attributes:
        rule: its name or text.
        count: number of places that were replaced.
        reasons: why places were not replaced: a sentence for each place that matches a rule, or for each node
            that is left of the operator that a pass replaces.
    """

    rule: str
    count: int
    reasons: tuple[str, ...]


def replace(model: onnx.ModelProto, rule: Rule) -> tuple[onnx.ModelProto, Replacements]:
    """Return a model in which every place that a rule's pattern matches has the rule's replacement.

    Places in bodies and in local functions count, too; the report says nothing of those in functions that
    were not replaced.

    - Fires where operators, attributes, numbers and the structure agree; the operands of commutative
      operators may be swapped, unless one of `VARIADIC` has other than two. Numbers agree to 1e-6; one of the
      pattern fits a constant of one element, whatever its shape.
    - Not fired where an inner result is read elsewhere or is an output of the graph (which the report
      states), and where operators of the pattern lie in different graphs (an If's branch and the graph around
      it).

    Returns:
        The new model, without the nodes and initializers that no output needs, or an equal copy when there
        was nothing to do; and the report.

    Raises:
        UsageError: an operator that the model's opset does not have, or has with fewer inputs; a domain that
            the model does not import; more than `LARGEST_PATTERN` operators of two operands; or a replacement
            that holds its own pattern or makes new places of it, so that no end would be reached.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    opsets = opsets_of(model)
    _check_operators(rule, opsets)
    elements = {name: value_type.tensor_type.elem_type for name, value_type in infer(model).items()}
    _check_ends(rule, opsets)
    graph = ir.serde.deserialize_model(model)
    rewriter = _Rewriter(rule, opsets, elements)
    count = rewriter.apply(graph)
    reasons = tuple(_kept_because(node, match) for node, match in rewriter.matches(graph))
    if not count:
        return copy.deepcopy(model), Replacements(str(rule), 0, reasons)
    RemoveUnusedNodesPass()(graph)
    return ir.serde.serialize_model(graph), Replacements(str(rule), count, reasons)


class _Rewriter:
    """A rule in the form of onnxscript's rewriter, for models of some opsets.

    Numbers of a replacement get their type from `elements`, the data types of a model's tensors.
    """

    def __init__(self, rule: Rule, opsets: dict[str, int], elements: dict[str, int]) -> None:
        self.rule, self.opsets, self.elements, self.remaining = rule, opsets, elements, 0
        self.defaults = {
            item.ref_attr_name: defaults_of(node, opsets).get(item.name)
            for node in rule.pattern.nodes
            for item in node.attribute
            if item.ref_attr_name
        }

    def apply(self, model: Model) -> int:
        """Replace in place until nothing matches; a replaced place can complete the next one's pattern."""
        total, self.remaining = 0, 2 * sum(1 for _ in model.graph.all_nodes())
        while count := self.rules().apply_to_model(model):
            total += count
        return total

    def matches(self, model: Model) -> Iterator[tuple[Node, Any]]:
        """Yield (last node, match) of every place that has the pattern's structure, replaceable or not."""
        forms = list(self.rules())
        for scope in [model.graph, *model.graph.subgraphs()]:
            for node in scope:
                matches = (form.match(model, scope, node, check_nodes_are_removable=False) for form in forms)
                if match := next(filter(None, matches), None):
                    yield node, match

    def rules(self) -> Any:
        """Return the rewriter's rules, with all orders of commutative operands."""
        from onnxscript.rewriter import pattern

        # the rewriter reads the pattern's variables from the signature, which a method cannot be given
        target = functools.partial(self.target)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = ('__builder__', *self.rule.pattern.variables)
        target.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])
        # the rewriter swaps two operands, and asserts that there are no more
        swaps = all(len(node.input) == 2 for node in self.rule.pattern.nodes if node.op_type in VARIADIC)
        return pattern.RewriteRuleSet([pattern.RewriteRule(target, self.replacement)], commute=swaps)

    def target(self, op: Any, *variables: Any) -> Any:
        """Make the rewriter's pattern."""
        from onnxscript.rewriter import pattern

        side = self.rule.pattern
        values: dict[str, Any] = {'': None, **dict(zip(side.variables, variables, strict=True))}
        values.update((name, _number_check(number)) for name, number in side.numbers.items())
        for node in side.nodes:
            free = [item for item in node.attribute if item.ref_attr_name]
            outputs = getattr(op, node.op_type)(
                *(values[name] for name in node.input),
                _domain=node.domain,
                _outputs=[name or None for name in node.output],
                _check=_attribute_check(node, self.opsets),
                **{item.name: pattern.AttrVar(item.ref_attr_name, can_match_none=True) for item in free},
            )
            outputs = [outputs] if len(node.output) == 1 else outputs
            values.update(zip(node.output, outputs, strict=True))
        return values[side.output]

    def replacement(self, op: Any, /, **bound: Any) -> Any:
        """Make the new nodes of a place."""
        import onnx_ir as ir

        self.remaining -= 1
        if self.remaining < 0:  # a rule that matches its own results
            raise UsageError(
                f'rule {self.rule}: each replacement makes a new place; replacing would never end'
            )
        side, result = self.rule.replacement, bound[self.rule.pattern.output].name
        dtype = helper.tensor_dtype_to_np_dtype(self.elements.get(result, onnx.TensorProto.FLOAT))
        values: dict[str, Any] = {'': None, **{name: bound[name] for name in side.variables}}

        def add(name: str, value: Value, op_type: str) -> None:
            values[name] = value
            value.name = f'{result}/{name}'
            value.producer().name = f'{result}/{op_type}_{len(values)}'

        for name, number in side.numbers.items():
            add(name, op.Constant(value=ir.tensor(np.asarray(number).astype(dtype))), 'Constant')
        for node in side.nodes:
            outputs = getattr(op, node.op_type)(
                *(values[name] for name in node.input),
                _domain=node.domain,
                _outputs=len(node.output),
                **self._attributes(node, bound),
            )
            outputs = [outputs] if len(node.output) == 1 else outputs
            for name, value in zip(node.output, outputs, strict=True):
                add(name, value, node.op_type)
        return values[side.output]

    def _attributes(self, node: onnx.NodeProto, bound: dict[str, Any]) -> dict[str, Any]:
        """Return the attributes of a new node; variables have what the pattern matched, or its default."""
        import onnx_ir as ir

        attributes = {}
        for item in node.attribute:
            if not item.ref_attr_name:
                attributes[item.name] = ir.serde.deserialize_attribute(item)
            elif (matched := bound[item.ref_attr_name]) is not None:
                attributes[item.name] = ir.Attr(item.name, matched.type, matched.value)
            elif self.defaults[item.ref_attr_name] is not None:
                attributes[item.name] = self.defaults[item.ref_attr_name]
        return attributes


def _number_check(expected: float) -> Callable:
    """Return a check that a tensor is a constant of one value, and not an input with a default."""

    def check(context: Any, value: Value) -> bool:
        del context
        if value is None or value.const_value is None or value.is_graph_input():
            return False
        array = value.const_value.numpy()
        is_number = array.size == 1 and array.dtype.kind not in 'OSU'
        return is_number and math.isclose(
            float(array.reshape(())), expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE * TOLERANCE
        )

    return check


def _attribute_check(node: onnx.NodeProto, opsets: dict[str, int]) -> Callable:
    """Return a check that a node has the pattern's attributes and no other, but for defaults."""
    free = {item.name for item in node.attribute if item.ref_attr_name}
    expected = {
        item.name: helper.get_attribute_value(item) for item in node.attribute if item.name not in free
    }
    defaults = defaults_of(node, opsets)

    def check(context: Any, candidate: Node) -> bool:
        del context
        values = {name: item.value for name, item in candidate.attributes.items()}
        actual = {name: value.numpy() if hasattr(value, 'numpy') else value for name, value in values.items()}
        return all(
            _equal_attributes(*(side.get(name, defaults.get(name)) for side in (actual, expected)))
            for name in (expected.keys() | actual.keys()) - free
        )

    return check


def _equal_attributes(value: Any, expected: Any) -> bool:
    if value is None or expected is None:
        return value is expected
    if isinstance(value, bytes | str) or isinstance(expected, bytes | str):
        return _text(value) == _text(expected)
    array, expected = (
        numpy_helper.to_array(side) if isinstance(side, onnx.TensorProto) else np.asarray(side)
        for side in (value, expected)
    )
    if array.dtype.kind in 'OSU' or expected.dtype.kind in 'OSU':
        return [_text(item) for item in array.ravel()] == [_text(item) for item in expected.ravel()]
    return array.shape == expected.shape and np.allclose(
        array, expected, rtol=TOLERANCE, atol=0, equal_nan=True
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


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
        operators = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
        hint = '; convert the model with onnx.version_converter'
        if node.op_type not in operators:
            hint = did_you_mean(node.op_type, operators)
        raise UsageError(f'rule {rule}: opset {version} of the model has no operator {node.op_type!r}{hint}')
    for node in rule.replacement.nodes:
        schema = schema_of(node, opsets)
        if schema and not node.domain and len(node.input) > schema.max_input:
            raise UsageError(
                f'rule {rule}: {node.op_type} of opset {opsets.get("", 1)} of the model takes '
                f'{schema.max_input} inputs, the replacement gives it {len(node.input)}; convert the model '
                f'with onnx.version_converter'
            )
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
    numbers = [numpy_helper.from_array(np.float32(value), name) for name, value in side.numbers.items()]
    inputs = [onnx.ValueInfoProto(name=name) for name in side.variables]
    graph = helper.make_graph(nodes, 'r', inputs, [onnx.ValueInfoProto(name=side.output)], numbers)
    imports = [helper.make_opsetid(*entry) for entry in opsets.items()]
    model = ir.serde.deserialize_model(helper.make_model(graph, opset_imports=imports))
    if any(_Rewriter(rule, opsets, elements={}).matches(model)):
        raise UsageError(
            f'rule {rule}: the pattern is found in its own replacement, so replacing would never end'
        )


def _kept_because(last: Node, match: Any) -> str:
    """Return why a place that has the pattern is left as it is: who else needs an inner result."""
    results = list(match.outputs)
    reasons = []
    for value in (value for node in match.nodes for value in node.outputs if value not in results):
        if value.is_graph_output():
            reasons.append(f'{value.name!r} is an output of the graph')
        readers = [user.name or user.op_type for user, _ in value.uses() if user not in match.nodes]
        if readers:
            reasons.append(f'{value.name!r} is read by {", ".join(map(repr, readers))}')
    place = f'the place that ends in {last.name or last.op_type!r} is kept'
    return f'{place}: its inner result {"; ".join(reasons)}'
