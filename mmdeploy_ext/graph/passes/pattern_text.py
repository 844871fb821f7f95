"""Patterns of nodes as text: `x = Sigmoid(a); y = Mul(a, x) -> y = Swish(a)`.

The statements are ONNX's own text syntax (`onnx.parser`), separated by `;` or line breaks (in a file of
rules, which has one per line, by `;` alone), with two additions: a number may stand where an operand stands,
and an attribute may be a variable (`axis = @axis`).
"""

import dataclasses
import re

import onnx
import onnx.parser

from mmdeploy_ext.core.errors import UsageError

SYNTAX = (
    'expected e.g. "s = Sigmoid(a); y = Mul(a, s) -> y = Swish(a)"; attributes come before the inputs: '
    'LeakyRelu <alpha: float = 0.1> (a)'
)
"""End of messages about the syntax of a rule."""
NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?')
"""A number that stands where an operand stands."""
VARIABLE = re.compile(r'(\w+)\s*=\s*@')
"""An attribute whose value is a variable, up to the variable's name."""
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|->|[;\n]|.', re.DOTALL)
"""A quoted text, an arrow, a separator of statements, or any other character."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a rule.

    Attributes:
        nodes: the statements in order; attributes with a `ref_attr_name` are attribute variables.
        numbers: name that stands for a number among the operands -> the number.
        text: text that the user wrote.
    """

    nodes: tuple[onnx.NodeProto, ...]
    numbers: dict[str, float]
    text: str

    @property
    def output(self) -> str:
        """Name of the result: the first output of the last statement."""
        return self.nodes[-1].output[0]

    @property
    def produced(self) -> set[str]:
        """Names that the statements give."""
        return {name for node in self.nodes for name in node.output if name}

    @property
    def variables(self) -> list[str]:
        """Names that the statements read and do not give, in order, without those of numbers."""
        inputs = dict.fromkeys(name for node in self.nodes for name in node.input if name)
        return [name for name in inputs if name not in self.produced and name not in self.numbers]

    @property
    def attribute_variables(self) -> list[str]:
        """Names of the attribute variables."""
        names = [item.ref_attr_name for node in self.nodes for item in node.attribute if item.ref_attr_name]
        return list(dict.fromkeys(names))


@dataclasses.dataclass(frozen=True)
class Rule:
    """A replacement of nodes, whose two sides give a result of the same name.

    Attributes:
        pattern: the nodes that are looked for.
        replacement: the nodes that take their place.
        name: that of a named rule, '' for a rule that a user wrote.
    """

    pattern: Side
    replacement: Side
    name: str = ''

    def __str__(self) -> str:
        return self.name or f'{self.pattern.text} -> {self.replacement.text}'


def parse_rule(text: str, name: str = '') -> Rule:
    """Read `pattern -> replacement`; `name` is that of a named rule, for messages.

    Raises:
        UsageError: bad syntax, no arrow or several, an empty side, a sub-graph, one result twice, one name
            for a tensor and an attribute, a replacement that reads what the pattern does not bind or has
            another result, or a statement of the pattern that its result does not depend on.
    """
    parts = _split(text, ('->',))
    if len(parts) != 2:
        raise UsageError(f'rule {text!r}: got {len(parts) - 1} arrows "->", {SYNTAX}')
    pattern, replacement = map(_parse_side, parts)
    rule = Rule(pattern, replacement, name)
    if pattern.output != replacement.output:
        raise UsageError(
            f'rule {rule}: the pattern ends in {pattern.output!r} and the replacement in '
            f'{replacement.output!r}; give the results one name'
        )
    bound, needed = (
        [*side.variables, *(f'@{name}' for name in side.attribute_variables)]
        for side in (pattern, replacement)
    )
    if unknown := [name for name in needed if name not in bound]:
        raise UsageError(
            f'rule {rule}: the replacement reads {unknown}, which the pattern does not bind; it binds {bound}'
        )
    if both := sorted({*pattern.variables, *pattern.produced}.intersection(pattern.attribute_variables)):
        raise UsageError(f'rule {rule}: {both} name a tensor and an attribute; give them different names')
    used = {pattern.output}
    for node in reversed(pattern.nodes):
        if used.intersection(node.output):
            used.update(node.input)
    if unused := [node.output[0] for node in pattern.nodes if used.isdisjoint(node.output)]:
        raise UsageError(
            f'rule {rule}: the result {pattern.output!r} does not depend on {unused}; a pattern has one '
            f'result, the first output of its last statement'
        )
    return rule


def rule_lines(text: str) -> list[str]:
    """Return the rules in the text of a file, one per line, without empty lines and lines that begin with #.

    Raises:
        UsageError: the file has no rule.
    """
    lines = [line.strip() for line in text.splitlines()]
    rules = [line for line in lines if line and not line.startswith('#')]
    if not rules:
        raise UsageError(f'no rule in the file; {SYNTAX}, one per line')
    return rules


def _split(text: str, separators: tuple[str, ...]) -> list[str]:
    """Split outside of quoted strings; Einsum's equations have arrows, too."""
    parts = ['']
    for token in TOKEN.findall(text):
        if token in separators:
            parts.append('')
        else:
            parts[-1] += token
    return [part.strip() for part in parts]


def _parse_side(text: str) -> Side:
    numbers: dict[str, float] = {}
    statements = [_name_numbers(part, numbers) for part in _split(text, (';', '\n')) if part]
    # attribute variables get a type, which the parser wants and nobody uses
    body = '\n'.join(VARIABLE.sub(r'\1 : int = @', statement) for statement in statements)
    function = f'<opset_import: ["" : 1], domain: "p"> f () => () {{\n{body}\n}}'
    try:
        nodes = tuple(onnx.parser.parse_function(function).node)
    except onnx.parser.ParseError as error:
        message = error.args[0] if error.args else error
        message = message.decode() if isinstance(message, bytes) else str(message)
        line = message.strip().splitlines()[-1]
        raise UsageError(f'rule: {text!r} is not ONNX text ({line}); {SYNTAX}') from error
    if not nodes:
        raise UsageError(f'rule: an empty side; {SYNTAX}')
    for node in nodes:
        if any(item.HasField('g') or item.graphs for item in node.attribute):
            raise UsageError(f'rule: {node.op_type} has a sub-graph, which a pattern cannot have')
    produced = [name for node in nodes for name in node.output if name]
    repeated = sorted({name for name in produced if produced.count(name) > 1})
    if repeated:
        raise UsageError(f'rule: {text!r} gives {repeated} twice; give each result a name of its own')
    return Side(nodes, numbers, text)


def _name_numbers(statement: str, numbers: dict[str, float]) -> str:
    """Put names in place of numbers among the operands, which are the last parentheses."""
    start = statement.rfind('(')
    if start < 0 or not statement.endswith(')'):
        return statement
    operands = [operand.strip() for operand in statement[start + 1 : -1].split(',')]
    for place, operand in enumerate(operands):
        if NUMBER.fullmatch(operand):
            operands[place] = f'number_{len(numbers)}_'
            numbers[operands[place]] = float(operand)
    return f'{statement[: start + 1]}{", ".join(operands)})'
