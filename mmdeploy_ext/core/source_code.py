"""The file and lines that define a class or function, and a hash of its code. Needs no torch.

The hash is of the syntax tree without docstrings and comments, written in a form of its own: that of
`ast.dump` and `ast.unparse` differs between versions of Python.
"""

from __future__ import annotations

import ast
import base64
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FunctionType, ModuleType

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
DISTRIBUTIONS = {
    'mmcv': ('mmcv-full', 'mmcv'),
    'mmdet': ('mmdet',),
    'mmdet3d': ('mmdet3d',),
    'mmseg': ('mmsegmentation',),
}
"""Package of OpenMMLab -> distributions that install it."""
DECORATORS = (
    'mmcv.runner.fp16_utils',
    'mmcv.utils.misc',
    'mmcv.utils.parrots_jit',
    'mmdet3d.core.utils.array_converter',
    'torch.utils._contextlib',
    'fairscale.nn.checkpoint.checkpoint_activations',
    f'{__name__.partition(".")[0]}.compat.patches_vendored',
)
"""Modules whose decorators leave what a function computes as it is: choice of precision, older names of
arguments, arrays as tensors, no gradients, activations that are computed again for the gradients, and
today's arguments for functions of an older mmdet."""
CACHES = (type(functools.lru_cache(print)), classmethod, staticmethod)
"""Types of objects that call the function they wrap as it is."""
PACKAGE_FOLDERS = ('site-packages', 'dist-packages')
"""Names of the folders of installed packages, also those of a user or of another environment."""
OURS = Path(__file__).resolve().parents[1]
"""Folder of this project's package."""
PYTHON = Path(os.__file__).parent
"""Folder of Python's own modules; without a virtual environment, installed packages are below it."""
TYPED = ('<string>', '<stdin>', '<console>', '<python-input-', '<ipython-input-')
"""Beginnings of the file names of code without a file: of `exec` and `python -c`, a pipe, consoles."""
LEFT_OUT = ('kind', 'type_comment', 'type_params', 'type_ignores')
"""Fields of syntax trees that change nothing, or that only newer versions of Python have."""


@dataclasses.dataclass(frozen=True)
class SourceLines:
    """The lines of a file that define a class or a function.

    Attributes:
        file: path relative to the folder that it was imported from, such as `projects/plugin/head.py`.
        first: number of the line with `class` or `def`, behind its decorators; 0 if no source can be read.
        last: number of the last line, or 0.
        sha256: of the normalised syntax tree with its decorators, 64 hexadecimal digits, or ''.
    """

    file: str
    first: int
    last: int
    sha256: str


def is_in_package(path: Path) -> bool:
    """Return whether a path is in a folder of installed packages; links are not followed."""
    return any(folder in path.parts for folder in PACKAGE_FOLDERS)


def is_typed(file: str) -> bool:
    """Return whether code of this file name is a user's without a file, see `TYPED`, not that of a tool."""
    return file.startswith(TYPED)


def is_users_file(path: Path) -> bool:
    """Return whether a path is in no folder of installed packages, of Python's modules, or of this package.

    Links are not followed.
    """
    return not is_in_package(path) and not is_ours(path) and not path.is_relative_to(PYTHON)


def is_ours(path: Path) -> bool:
    """Return whether a path is in this package, as it was imported or with links followed."""
    return path.is_relative_to(OURS) or path.is_relative_to(Path(__file__).parents[1])


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and those of the functions, classes, lambdas and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            yield from codes_in(constant)


@functools.lru_cache(maxsize=4096)
def code_sha256(definition: ast.AST) -> str:
    """Return the hash of a syntax tree, 64 hexadecimal digits.

    Comments, statements that are only a text, such as docstrings, and fields in `LEFT_OUT` do not count.
    """
    return hashlib.sha256(_canonical(definition).encode()).hexdigest()


def _canonical(value: Any) -> str:
    if isinstance(value, ast.AST):
        fields = [
            f'{name}={_canonical(entry)}'
            for name, entry in ast.iter_fields(value)
            if name not in LEFT_OUT and entry is not None and entry != []
        ]
        return f'{type(value).__name__}({",".join(fields)})'
    if isinstance(value, list):
        return f'[{",".join(_canonical(entry) for entry in value if not is_docstring(entry))}]'
    return repr(value)


def is_docstring(statement: Any) -> bool:
    """Return whether a statement is only a text: a docstring, or the text below an attribute."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


@functools.lru_cache(maxsize=256)
def _definitions(path: str, _modified_ns: int) -> dict[str | int | tuple[str, int], Definition]:
    """Return the classes and functions of a file by qualified name, by the line they begin at, and by both.

    By the name alone it is the last one: a property's getter and setter have one name.
    """
    definitions: dict[str | int | tuple[str, int], Definition] = {}

    def collect(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Definition):
                name = f'{prefix}{child.name}'
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                definitions[name] = definitions[first] = definitions[name, first] = child
                collect(child, f'{name}.' if isinstance(child, ast.ClassDef) else f'{name}.<locals>.')
            else:
                collect(child, prefix)

    try:
        collect(ast.parse(Path(path).read_bytes()), '')
    except (SyntaxError, ValueError):  # imported from another text than the file has now
        return {}
    return definitions


def _definition(path: Path, key: str | int) -> Definition | None:
    """Return the definition of a qualified name, or the one that begins at a line; None if there is none."""
    try:
        return _definitions(str(path), path.stat().st_mtime_ns).get(key)
    except OSError:
        return None


def _definitions_named(path: Path, name: str) -> dict[int, Definition]:
    """Return the definitions of a qualified name by the line that they begin at; empty if there is none."""
    try:
        definitions = _definitions(str(path), path.stat().st_mtime_ns)
    except OSError:
        return {}
    keys = [key for key in definitions if isinstance(key, tuple) and key[0] == name]
    return {key[1]: definitions[key] for key in keys}


def source_of_class(kind: type) -> SourceLines:
    """Return the lines that define a class, the hash of which includes its methods.

    Of several definitions of its name in the file the last one counts, also in both ways of an `if`. If its
    source cannot be read, both lines are 0 and the hash is ''.
    """
    path = file_of_class(kind)
    definition = None if path is None else _definition(path, kind.__qualname__)
    return _lines(kind.__module__, path, definition)


def source_of_function(function: Callable[..., Any]) -> SourceLines:
    """Return the lines of a Python function, from its `def` on; its decorators are only in the hash.

    Of a decorated one they are those of the decorator's wrapper. Of a lambda, and if its source cannot be
    read, both lines are 0 and the hash is ''.
    """
    return source_of_code(function.__code__, module_of(function))


def source_of_code(code: CodeType, module_name: str) -> SourceLines:
    """Return the lines of the code object of a function of a module, as `source_of_function` does."""
    return _lines(module_name, Path(code.co_filename), _definition_of_code(code))


def _definition_of_code(code: CodeType) -> Definition | None:
    path = Path(code.co_filename)
    definition = _definition(path, code.co_firstlineno)
    if definition is None or definition.name != code.co_name:  # the file has changed since it was imported
        definition = _definition(path, code.co_qualname)
    return definition


def changed_defaults(function: FunctionType) -> dict[str, Any]:
    """Return argument -> default value of a function, of those that are not what its definition states.

    A plugin may assign `function.__defaults__`, or write into a dict that is a default. An argument whose
    default has been taken away is not among them, nor is one whose default is stated as anything but a
    literal or a `dict(...)` of literals. Without a source that can be read there are none.
    """
    definition = _definition_of_code(function.__code__)
    if not isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        return {}
    arguments = definition.args
    positional = [*arguments.posonlyargs, *arguments.args]
    with_default = positional[len(positional) - len(arguments.defaults) :]
    stated = [*zip(with_default, arguments.defaults, strict=True)]
    stated += [*zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    expressions = {argument.arg: expression for argument, expression in stated if expression is not None}
    defaults, code = function.__defaults__ or (), function.__code__
    names = code.co_varnames[: code.co_argcount][code.co_argcount - len(defaults) :]
    live = {**dict(zip(names, defaults, strict=True)), **(function.__kwdefaults__ or {})}
    return {
        name: value
        for name, value in live.items()
        if name not in expressions or _is_other_literal(value, expressions[name])
    }


def _is_other_literal(value: Any, expression: ast.expr) -> bool:
    """Return whether an expression is a literal, or a `dict(...)` of such, of another value."""
    try:
        if isinstance(expression, ast.Call) and getattr(expression.func, 'id', '') == 'dict':
            literal = {str(entry.arg): ast.literal_eval(entry.value) for entry in expression.keywords}
        else:
            literal = ast.literal_eval(expression)
    except ValueError:
        return False
    return repr(literal) != repr(value)


def is_as_installed(code: CodeType, package: str) -> bool:
    """Return whether a copy of a package of OpenMMLab has a function as the installed package has it.

    `code` is that of the function in the copy, whose file lies below a folder of the name `package`, such as
    'mmdet'. The function of the same file and qualified name in the installed package has to have the same
    syntax tree. Lambdas and comprehensions are not as installed.
    """
    root, _ = _installed_files(package)
    path = Path(code.co_filename)
    if root is None or package not in path.parts:
        return False
    inside = path.parts[len(path.parts) - path.parts[::-1].index(package) :]
    copied = _definitions_named(path, code.co_qualname)
    at_line = [node for line, node in copied.items() if line == code.co_firstlineno] or [*copied.values()]
    in_library = _definitions_named(root.joinpath(*inside), code.co_qualname)
    installed = {code_sha256(node) for node in in_library.values()}
    return bool(at_line) and all(code_sha256(node) in installed for node in at_line)


def module_of(function: Callable[..., Any]) -> str:
    """Return the name of the module that has a function's code: of a decorator's wrapper, the decorator's."""
    return str(function.__globals__.get('__name__', function.__module__))


def _lines(module_name: str, path: Path | None, definition: Definition | None) -> SourceLines:
    file = _relative(module_name, path)
    if definition is None:
        return SourceLines(file, 0, 0, '')
    return SourceLines(file, definition.lineno, int(definition.end_lineno or 0), code_sha256(definition))


def _relative(module_name: str, path: Path | None) -> str:
    """Return the path of a module's file relative to the folder that its top-level package is in."""
    if path is None:
        return f'{module_name.replace(".", "/")}.py'
    depth = module_name.count('.') + (path.stem == '__init__') if module_name != '__main__' else 0
    return Path(*path.parts[-(depth + 1) :]).as_posix()


def file_of_class(kind: type) -> Path | None:
    """Return the file that a class was defined in; None of classes of C extensions and the interpreter.

    It is the file of one of its methods, if it has methods in a file: another module of the same name may
    have been imported since. Those that `dataclasses` makes are in none; of a class with methods and without
    a file at all, such as one of an interactive session, the name is one in angle brackets; without methods,
    it is None, too.
    """
    without_file = None
    for value in vars(kind).values():
        function = inspect.unwrap(getattr(value, '__func__', value)) if callable(value) else None
        code = getattr(function, '__code__', None)
        if code is not None and function.__qualname__ == f'{kind.__qualname__}.{code.co_name}':
            if not code.co_filename.startswith('<'):
                return Path(code.co_filename)
            without_file = Path(code.co_filename)
    file = getattr(sys.modules.get(kind.__module__), '__file__', None)
    return Path(file) if file and file.endswith('.py') else without_file


def is_installed(package: str, path: str | Path) -> bool:
    """Return whether a Python file is one that a distribution of OpenMMLab installed, and nobody has edited.

    Copies of mmdet in a user's repository, editable installs, files that were changed in place, files that
    were put into the installed package, and those of another ending than .py are not. Of a distribution
    without a list of its files all in the package are.

    Args:
        package: name of the package that the file is in; only the keys of `DISTRIBUTIONS` have such files.
        path: the file, which exists.
    """
    root, digests = _installed_files(package)
    if root is None:
        return False
    file = os.path.abspath(path)
    name = _name_in_package(root, file)
    if name is None or not digests:  # installed without a list of its files
        return name is not None
    return name in digests and _sha256_urlsafe(file, os.stat(file).st_mtime_ns) == digests[name]


def is_in_library(kind: type) -> bool:
    """Return whether the installed package of OpenMMLab has a class of the module and name of `kind`.

    That is so of the library's classes in a user's copy of the package, whatever their code is, and not of a
    class that the user added to the copy. If the package is used from its checkout, or is not installed, it
    is so of all.
    """
    package, *modules = kind.__module__.split('.')
    if package not in DISTRIBUTIONS:
        return False
    root, _ = _installed_files(package)
    if root is None:
        return True
    path = root.joinpath(*modules)
    path = path / '__init__.py' if path.is_dir() else path.with_name(f'{path.name}.py')
    return _definition(path, kind.__qualname__) is not None


@functools.lru_cache
def _installed_files(package: str) -> tuple[Path | None, dict[str, str]]:
    """Return the folder of an installed package, and path -> hash of its files as they were installed.

    None and nothing of a package that is not OpenMMLab's, or that is used from its checkout.
    """
    for name in DISTRIBUTIONS.get(package, ()):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        digests = {}
        for line in (distribution.read_text('RECORD') or '').splitlines():
            path, _, rest = line.rpartition(',sha256=')
            if path.endswith('.py'):
                digests[path] = rest.split(',')[0]
        folder = Path(str(distribution.locate_file(package))).resolve()
        if not digests and (folder.parent / 'setup.py').is_file():  # an `.egg-link` leads to the checkout
            return None, {}
        return folder, digests
    return None, {}


@functools.lru_cache(maxsize=8192)
def resolved(file: str) -> Path:
    """Return `file`, an absolute path, with its links followed: once in a process, as it is slow."""
    return Path(file).resolve()


@functools.lru_cache(maxsize=8192)
def _name_in_package(root: Path, file: str) -> str | None:
    """Return the path of a file from the folder that a package is in; None if it is not in the package."""
    path = resolved(file)
    return path.relative_to(root.parent).as_posix() if path.is_relative_to(root) else None


@functools.lru_cache(maxsize=1024)
def _sha256_urlsafe(file: str, _modified_ns: int) -> str:
    """Return the hash of a file as the RECORD of a wheel has it."""
    digest = hashlib.sha256(Path(file).read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b'=').decode()


def functions_behind(function: Any) -> Iterator[Callable[..., Any]]:
    """Yield a method's Python function and those that its decorators wrap, the outermost first.

    A Python function that a decorator makes and that has `__wrapped__` is followed, whoever wrote the
    decorator; without it those of `DECORATORS` are, and the partials that they make. `function` may be
    bound, or compiled by numba; nothing is yielded of a built-in one, of other partials, which change
    arguments, and of objects that call a function in a way of their own and have its name and text by
    `update_wrapper`.
    """
    function = getattr(function, '__func__', function)
    function = getattr(function, 'py_func', function)  # what numba has compiled
    if (
        isinstance(function, functools.partial)
        and hasattr(function.func, '__code__')
        and module_of(function.func) in DECORATORS
    ):
        function = next((value for value in function.args if hasattr(value, '__code__')), function)
    while function is not None:
        if hasattr(function, '__code__'):
            yield function
        is_known = hasattr(function, '__code__') or isinstance(function, CACHES)
        wrapped = getattr(function, '__wrapped__', None) if is_known else None
        if wrapped is None and hasattr(function, '__code__') and module_of(function) in DECORATORS:
            # mmcv's `jit` has no `__wrapped__`: its function is in the closure
            cells = [cell.cell_contents for cell in function.__closure__ or ()]
            wrapped = next((content for content in cells if hasattr(content, '__code__')), None)
        function = wrapped


def sources_of_module(module: ModuleType) -> dict[str, SourceLines]:
    """Return the functions, methods and classes of a Python module by qualified name.

    The hash of a function counts those in it, that of a class neither its methods nor classes in it; that of
    a name which several have, such as a property's getter and setter, all of them.
    `<module>`, whose lines are 0, is what is outside of functions and classes; the imports of
    a module or class, but for those inside of a statement such as `if`, count nowhere, and definitions inside
    of one count with it. The module has a file; OSError, SyntaxError: that cannot be read.
    """
    path = Path(str(module.__file__))
    tree = ast.parse(path.read_bytes())
    sources: dict[str, SourceLines] = {}

    def add(name: str, node: Definition) -> None:
        lines = _lines(module.__name__, path, node)
        if name in sources:  # a property's getter and setter, or one of several ways to define it
            both = hashlib.sha256(f'{sources[name].sha256} {lines.sha256}'.encode()).hexdigest()
            lines = dataclasses.replace(lines, first=sources[name].first, sha256=both)
        sources[name] = lines

    def collect(body: list[ast.stmt], prefix: str) -> list[ast.stmt]:
        """Add the definitions of a body; return its other statements."""
        rest = []
        for statement in body:
            if isinstance(statement, ast.ClassDef):
                name = f'{prefix}{statement.name}'
                statement.body = collect(statement.body, f'{name}.')
                add(name, statement)
            elif isinstance(statement, Definition):
                add(f'{prefix}{statement.name}', statement)
            elif not isinstance(statement, ast.Import | ast.ImportFrom):
                rest.append(statement)
        return rest

    tree.body = collect(tree.body, '')
    digest = code_sha256(tree)
    sources['<module>'] = SourceLines(_relative(module.__name__, path), 0, 0, digest)
    return sources
