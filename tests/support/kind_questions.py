"""Questions about the kind of a family or file: what a name is bound to decides, not how it is spelled.

A question is a condition, comparison, `match`, key or `.get` with an attribute of `ASKED`, or with a name or
parameter that holds its value.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping

ASKED = {'Family': {'product', 'samples', 'memory'}, 'Metadata': {'samples'}}
"""Class -> attributes that tell its kinds apart; derived classes have them too."""
FUNCTION = ast.FunctionDef, ast.AsyncFunctionDef
LEAF = ast.Name, ast.Constant, ast.expr_context, ast.operator, ast.arg, ast.alias
PASSING_ON = {'sorted', 'list', 'tuple', 'filter', 'next', 'max', 'min', 'get', 'values', 'pop'}
"""Functions and methods that return an object that they are given, or that is in it."""


parsed = functools.cache(ast.parse)


class Questions:
    """The questions of modules (name -> source); modules that name neither class nor attribute have none."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = sources
        bases = dict(re.findall(r'^ *class (\w+)\b(.*)', '\n'.join(sources.values()), re.MULTILINE))
        self.classes = {name: self._roots(name, bases) for name in bases}
        self.named = functools.cache(self._named)
        kinds = '|'.join(name for name, roots in self.classes.items() if roots)
        self.trees = self._parsed(rf'\b({kinds})\b')
        self.attributes: dict[str, set[str]] = {}
        self.returned: dict[str, set[str]] = {}
        self.globals: dict[str, set[str]] = {}
        for tree in self.trees.values():
            for node in ast.walk(tree):
                if isinstance(node, FUNCTION):
                    self.returned.setdefault(node.name, set()).update(self.of(node.returns))
                elif isinstance(node, ast.ClassDef):
                    self._read_attributes(node)
            for target, value in (pair for node in tree.body for pair in assigned(node)):
                if isinstance(target, ast.Name) and isinstance(value, ast.Call):
                    self.globals[target.id] = self.of(value.func)
        self.told: dict[str, dict[str, str]] = {}
        """Function -> parameter -> attribute whose value it is given."""

    def found(self) -> dict[str, set[str]]:
        """Return module -> questions outside of the classes' own methods, as 'Class.attribute'."""
        found: dict[str, set[str]] = {}
        names = '|'.join(sorted(set().union(*ASKED.values())))
        pattern = rf'\.({names})\b'
        while True:
            for module, tree in self._parsed(pattern).items():
                scope = _Scope(self)
                for node in tree.body:
                    scope.visit(node)
                found[module] = scope.found
            functions = '|'.join(sorted(self.told))
            if pattern == (pattern := rf'\.({names})\b|def ({functions})\('):
                return {module: facts for module, facts in found.items() if facts}

    def of(self, annotation: ast.AST | None) -> frozenset[str]:
        """Return the classes of `ASKED` in an annotation."""
        return self.named(ast.unparse(annotation)) if annotation is not None else frozenset()

    def _named(self, text: str) -> frozenset[str]:
        return frozenset(root for word in re.findall(r'\w+', text) for root in self.classes.get(word, ()))

    def _parsed(self, pattern: str) -> dict[str, ast.Module]:
        return {name: parsed(text) for name, text in self.sources.items() if re.search(pattern, text)}

    def _roots(self, name: str, bases: Mapping[str, str]) -> set[str]:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            if (one := waiting.pop()) not in seen:
                seen.add(one)
                waiting += re.findall(r'\w+', bases.get(one, ''))
        return seen & ASKED.keys()

    def _read_attributes(self, owner: ast.ClassDef) -> None:
        for member in owner.body:
            if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                self.attributes.setdefault(member.target.id, set()).update(self.of(member.annotation))
            if not isinstance(member, FUNCTION):
                continue
            if any('property' in ast.unparse(decorator) for decorator in member.decorator_list):
                self.attributes.setdefault(member.name, set()).update(self.of(member.returns))
            given = {arg.arg: self.of(arg.annotation) for arg in arguments(member)}
            for target, value in (pair for node in ast.walk(member) for pair in assigned(node)):
                if isinstance(target, ast.Attribute) and isinstance(value, ast.Name):
                    self.attributes.setdefault(target.attr, set()).update(given.get(value.id, ()))


class _Scope:
    """Names in a function: the classes of their objects, and the attributes whose values they hold."""

    def __init__(self, questions: Questions, classes: dict | None = None, facts: dict | None = None) -> None:
        self.all, self.classes, self.facts = questions, dict(classes or {}), dict(facts or {})
        self.found: set[str] = set()

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.ClassDef) and self.all.classes[node.name]:
            return  # its own methods
        scope = self
        if isinstance(node, (*FUNCTION, ast.Lambda)):
            scope = _Scope(self.all, self.classes, self.facts)
            scope.found = self.found
            told = self.all.told.get(getattr(node, 'name', ''), {})
            for arg in arguments(node):
                scope.classes[arg.arg] = self.all.of(arg.annotation)
                scope.facts[arg.arg] = told.get(arg.arg, '')
        if isinstance(node, ast.Call):
            scope.tell(node)
        loops = (node, *getattr(node, 'generators', ()))
        pairs = [(loop.target, loop.iter) for loop in loops if isinstance(loop, ast.For | ast.comprehension)]
        for target, value in (*assigned(node), *pairs):
            if isinstance(target, ast.Name):
                scope.classes[target.id], scope.facts[target.id] = scope.object_of(value), scope.fact(value)
        self.found |= {*filter(None, map(scope.fact, asked(node)))}
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, LEAF):
                scope.visit(child)

    def object_of(self, value: ast.AST) -> set[str]:
        """Return the classes of `ASKED` that an expression, or what is in it, may be of."""
        if isinstance(value, ast.Name):
            known = self.classes.get(value.id) or self.all.globals.get(value.id)
            return known or self.all.classes.get(value.id, set())
        if isinstance(value, ast.Attribute):
            return self.all.attributes.get(value.attr, set())
        if isinstance(value, ast.Subscript):
            return self.object_of(value.value)
        if not isinstance(value, ast.Call):
            return set()
        name = getattr(value.func, 'attr', getattr(value.func, 'id', ''))
        owner = self.object_of(getattr(value.func, 'value', value.func))
        if name in PASSING_ON:
            return owner.union(*map(self.object_of, value.args))
        return (
            self.all.returned.get(name, set())
            | self.all.classes.get(name, set())
            | (owner if name.startswith(('from_', 'read_')) else set())
        )

    def fact(self, value: ast.AST) -> str:
        """Return 'Class.attribute' whose value an expression is, or ''."""
        if isinstance(value, ast.Name):
            return self.facts.get(value.id, '')
        owners = self.object_of(value.value) if isinstance(value, ast.Attribute) else ()
        return next((f'{one}.{value.attr}' for one in sorted(owners) if value.attr in ASKED[one]), '')

    def tell(self, call: ast.Call) -> None:
        """Note the parameters of a function of one name that a call gives such values."""
        name = getattr(call.func, 'attr', getattr(call.func, 'id', ''))
        given = [*enumerate(call.args), *((word.arg, word.value) for word in call.keywords)]
        facts = {place: fact for place, value in given if (fact := self.fact(value))}
        texts = [text for text in self.all.sources.values() if f'def {name}(' in text] if facts else ()
        if len(texts) == 1:
            (function,) = (node for node in ast.walk(parsed(texts[0])) if getattr(node, 'name', '') == name)
            names = [arg.arg for arg in arguments(function)]
            parameters = {names[at] if isinstance(at, int) else at: fact for at, fact in facts.items()}
            self.all.told.setdefault(name, {}).update(parameters)


def arguments(node: ast.AST) -> list[ast.arg]:
    """Return the parameters of a function besides `self` and `cls`."""
    return [arg for arg in (*node.args.args, *node.args.kwonlyargs) if arg.arg not in ('self', 'cls')]


def assigned(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield targets and values of an assignment; nothing for another node."""
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) or node.value is None:
        return
    for target in getattr(node, 'targets', None) or [node.target]:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value


def asked(node: ast.AST) -> list[ast.AST]:
    """Return the expressions whose value decides in a node."""
    if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
        return [node.test]
    if isinstance(node, ast.comprehension):
        return node.ifs
    if isinstance(node, ast.BoolOp):
        return node.values
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return [node.operand]
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.Subscript):
        return [node.slice]
    if isinstance(node, ast.Match):
        return [node.subject]
    is_lookup = isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'get'
    return node.args[:1] if is_lookup else []
