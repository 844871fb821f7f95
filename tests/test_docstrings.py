"""Public methods have docstrings, but for those that override one of this package, which says it already."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / 'mmdeploy_ext'
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def classes():
    """Return class name -> every definition of it at the top of a file of the package, with that file."""
    named = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.ClassDef):
                named.setdefault(node.name, []).append((path, node))
    return named


def names_of_bases(node):
    texts = [ast.unparse(base) for base in node.bases]
    return [text.partition('[')[0].rpartition('.')[2] for text in texts]


def documented(name, named, seen=()):
    """Return methods with docstrings, and attributes, of classes of a name and of their bases."""
    methods = set()
    for _, node in named.get(name, ()):
        functions = [entry for entry in node.body if isinstance(entry, FUNCTIONS)]
        methods |= {function.name for function in functions if ast.get_docstring(function)}
        attributes = [entry.target for entry in node.body if isinstance(entry, ast.AnnAssign)]
        attributes += [
            target for entry in node.body if isinstance(entry, ast.Assign) for target in entry.targets
        ]
        methods |= {target.id for target in attributes if isinstance(target, ast.Name)}
        for base in names_of_bases(node):
            if base not in (*seen, name):
                methods |= documented(base, named, (*seen, name))
    return methods


def test_a_public_method_without_a_docstring_overrides_one_that_has_one():
    named, lacking = classes(), []
    for definitions in list(named.values()):
        for path, node in definitions:
            inherited = set().union(*(documented(base, named) for base in names_of_bases(node)), set())
            lacking += [
                f'{path.relative_to(PACKAGE)}:{function.lineno}: {node.name}.{function.name}'
                for function in node.body
                if isinstance(function, FUNCTIONS)
                and not function.name.startswith('_')
                and not node.name.startswith('_')
                and not ast.get_docstring(function)
                and function.name not in inherited
                and not any(
                    'overload' in ast.unparse(mark) or '.setter' in ast.unparse(mark)
                    for mark in function.decorator_list
                )
            ]
    assert lacking == []
