"""No function of the product is a near-copy of another, and no two model families share a stretch of code."""

import ast
import collections
import copy
import itertools
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHORTEST = 12
FEWEST = 5
SHARE = 0.8
STRETCH = 8
pytestmark = pytest.mark.usefixtures('without_garbage')


def code_lines(node: ast.AST) -> list[str]:
    """Return the statements of a piece of code without docstrings, comments, imports and layout."""
    lines = []
    for statement in getattr(node, 'body', []):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        if hasattr(statement, 'body'):
            lines += header(statement) + code_lines(statement)
            for part in (*getattr(statement, 'handlers', []), *getattr(statement, 'cases', [])):
                lines += header(part) + code_lines(part)
            for name in ('orelse', 'finalbody'):
                lines += code_lines(ast.Module(getattr(statement, name, []), []))
        else:
            lines += ast.unparse(statement).splitlines()
    return lines


def header(node: ast.AST) -> list[str]:
    """Return the first line of a statement that has others inside, which are left out: they take long."""
    bare = copy.copy(node)
    bare.body = [ast.Pass()]
    for name in {'orelse', 'finalbody', 'handlers', 'cases'} & vars(node).keys():
        setattr(bare, name, [])
    return [ast.unparse(bare).splitlines()[0]]


def functions(path: str, source: str) -> dict[str, list[str]]:
    """Return 'path:first-last name' -> statements of each function of at least `SHORTEST` lines."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1:][:1] if ast.get_docstring(node) else node.body[:1]
            lines = code_lines(node)
            if first and node.end_lineno - first[0].lineno + 1 >= SHORTEST and len(lines) >= FEWEST:
                found[f'{path}:{node.lineno}-{node.end_lineno} {node.name}'] = lines
    return found


def is_inside(name: str, other: str) -> bool:
    """Return whether a function, as `functions` names it, is defined inside another one."""
    (path, lines), (other_path, other_lines) = (entry.split(' ')[0].rsplit(':', 1) for entry in (name, other))
    (first, last), (outer_first, outer_last) = (map(int, span.split('-')) for span in (lines, other_lines))
    return path == other_path and outer_first <= first and last <= outer_last


def common_in_order(left: list[str], right: list[str]) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for line in left:
        diagonal = 0
        for index, other in enumerate(right):
            diagonal, row[index + 1] = (
                row[index + 1],
                (diagonal + 1 if line == other else max(row[index + 1], row[index])),
            )
    return row[-1]


def near_copies(found: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Return the pairs that share at least `SHARE` of the lines of the shorter one, in order."""
    places, shared = collections.defaultdict(list), collections.Counter()
    for name, lines in found.items():
        for line, count in collections.Counter(lines).items():
            places[line].append((name, count))
    for functions_with_it in places.values():
        for (left, ours), (right, theirs) in itertools.combinations(functions_with_it, 2):
            shared[left, right] += min(ours, theirs)
    pairs = []
    for (left, right), lines in shared.items():
        ours, theirs = found[left], found[right]
        least = SHARE * min(len(ours), len(theirs))
        if is_inside(left, right) or is_inside(right, left):
            continue
        if lines >= least and common_in_order(ours, theirs) >= least:
            pairs.append((left, right))
    return pairs


def shared_stretches(packages: dict[str, list[list[str]]]) -> list[tuple[str, str, str]]:
    """Return pairs of packages with `STRETCH` consecutive lines in common, and the first of those lines."""
    seen = {
        name: {
            tuple(lines[start : start + STRETCH])
            for lines in files
            for start in range(len(lines) - STRETCH + 1)
        }
        for name, files in packages.items()
    }
    return [
        (left, right, sorted(seen[left] & seen[right])[0][0])
        for left, right in itertools.combinations(seen, 2)
        if seen[left] & seen[right]
    ]


def sources() -> dict[str, str]:
    """Return path -> text of the Python files outside tests/; tests may repeat each other."""
    done = subprocess.run(['git', 'ls-files', '-z', '*.py'], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip('not a git checkout')
    names = [name for name in done.stdout.split('\0') if name and (REPOSITORY / name).is_file()]
    names = [name for name in names if not name.startswith('tests/')]
    return {name: (REPOSITORY / name).read_text(encoding='utf-8') for name in names}


def test_no_function_is_a_near_copy_of_another():
    found = {}
    for name, text in sources().items():
        found.update(functions(name, text))
    assert len(found) > 20
    assert not near_copies(found)


def test_no_two_families_share_a_stretch_of_code():
    packages = collections.defaultdict(list)
    for name, text in sources().items():
        parts = Path(name).parts
        of_family = len(parts) == 4 and parts[1] in ('families', 'models') and parts[0] == 'mmdeploy_ext'
        if of_family and not parts[3].startswith(('options', 'runtime')):
            packages[parts[2]].append(code_lines(ast.parse(text)))
    assert packages
    assert not shared_stretches(packages)


BODY = [f'x{index} = f(x{index - 1}, {index})' for index in range(1, 21)]


def as_function(name: str, lines: list[str]) -> str:
    return f'def {name}(x0):\n    """Say {name}."""\n' + ''.join(f'    {line}\n' for line in lines)


@pytest.mark.parametrize(('changed', 'is_copy'), [(0, True), (4, True), (5, False), (20, False)])
def test_the_finder_finds_copies_whatever_their_names_comments_and_layout(changed, is_copy):
    other = [f'{line}  # same' if index >= changed else f'y{index} = g()' for index, line in enumerate(BODY)]
    found = {**functions('a', as_function('one', BODY)), **functions('b', as_function('two', other))}
    assert bool(near_copies(found)) == is_copy


def test_a_function_is_no_copy_of_the_one_that_it_is_defined_in():
    inner = as_function('inner', BODY).replace('\n', '\n    ')
    assert len(found := functions('a', f'def outer():\n    {inner}')) == 2
    assert not near_copies(found)


def test_the_finder_wants_the_order_too():
    found = {**functions('a', as_function('one', BODY)), **functions('b', as_function('two', BODY[::-1]))}
    assert len(found) == 2 and not near_copies(found)


def test_the_finder_finds_shared_stretches():
    ours, theirs = [*BODY[:7], 'a = 1', *BODY[7:15]], [*BODY[:7], 'b = 1', *BODY[7:15]]
    assert shared_stretches(dict(a=[ours], b=[theirs])) == [('a', 'b', BODY[7])]
    assert not shared_stretches(dict(a=[ours[:15]], b=[theirs[:15]]))
