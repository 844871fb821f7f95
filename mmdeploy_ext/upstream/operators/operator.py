"""One description of an operator that PyTorch does not export; see docs/reference/custom-operators.md."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import itertools
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch

from mmdeploy_ext.base.errors import ExportError, UsageError
from mmdeploy_ext.base.source_code import LIBRARIES, is_users_file, package_of
from mmdeploy_ext.graphs.script import Body
from mmdeploy_ext.graphs.script import part as part  # for bodies in packages of others

# Where in the code a node of a trace comes from.


FRAME = re.compile(r'^(.+?)\((\d+)\): (.+)$', re.MULTILINE)
"""A frame of a node's source, the innermost first: file, line, function."""
EXPORTER = '/torch/onnx/'
"""In the files of the frames around a trace."""


def place_of(node: torch._C.Node) -> str:
    """Module and line, such as 'backbone.mixer, model.py:12, in forward'.

    The line is the innermost one of the user's code, or of a library besides PyTorch.
    """
    frames = [match.groups() for match in FRAME.finditer(str(node.sourceRange()))]
    frames = [*itertools.takewhile(lambda frame: EXPORTER not in Path(frame[0]).as_posix(), frames)]
    users = [frame for frame in frames if is_users_file(Path(frame[0]))]
    others = [frame for frame in frames if package_of(Path(frame[0])) not in LIBRARIES]
    lines = [f'{file}:{line}, in {name}' for file, line, name in users or others]
    module = '.'.join(filter(None, (part.rpartition('::')[2] for part in node.scopeName().split('/'))))
    return ', '.join(filter(None, (module, *lines[:1])))


def with_places(run_symbolic: Callable[..., Any]) -> Callable[..., Any]:
    """Give errors of the exporter's translation of a node a note with its place."""

    @functools.wraps(run_symbolic)
    def run(graph: Any, block: Any, node: torch._C.Node, *args: Any, **kwargs: Any) -> Any:
        try:
            return run_symbolic(graph, block, node, *args, **kwargs)
        except Exception as error:
            error.add_note(place_of(node))
            raise

    return run


# Sizes of tensors that stay dynamic in a trace.


def length(size: torch.Tensor | int) -> torch.Tensor:
    """Return `size` as a () int64 tensor that stays dynamic in a trace."""
    if isinstance(size, torch.Tensor):
        return torch.as_tensor(size)  # a trace of TorchScript gets a Cast of no effect
    return torch.scalar_tensor(size, dtype=torch.int64)  # `as_tensor` would freeze a torch.SymInt


def hw(maps: torch.Tensor) -> torch.Tensor:
    """Return the height and width (2,) int64 of (B, C, H, W), dynamic in a trace."""
    return torch.stack([length(size) for size in maps.shape[2:]])


DOMAIN = 'mm2onnx'
FORMS = ('standard', 'function', 'plugin')
OPERATORS: dict[str, Operator] = {}
TYPES = dict(f=(float, 'FLOAT'), i=(int, 'INT'), b=(bool, 'INT'), s=(str, 'STRING'))
"""Letter of an attribute's type in `g.op` -> its type in Python and in ONNX."""
LIBRARY = torch.library.Library(DOMAIN, 'FRAGMENT')

_form: contextvars.ContextVar[str] = contextvars.ContextVar('operator_form', default='standard')


@dataclass(frozen=True)
class Plugin:
    """The node that TensorRT's ONNX parser takes for a plugin.

    Attributes:
        op_type, version, namespace: of the creator.
        attributes: attribute of the operator -> field of the creator.
        constants: fields that no attribute gives.
        domain: ONNX Runtime's TensorRT provider needs `trt.plugins`; the parser ignores it.
    """

    op_type: str
    version: str = '1'
    namespace: str = ''
    attributes: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    domain: str = 'trt.plugins'


@dataclass(frozen=True, eq=False)
class Operator:
    """An operator in all the forms that it needs on its way to an engine.

    Attributes:
        name: op_type of its node, in CamelCase.
        eager: PyTorch's form: tensors first, then attributes (float, int, bool, str), all annotated.
        inputs: name -> axes, letters for axes that vary, numbers for fixed axes ('N 5').
        outputs: names.
        example: returns input tensors for a trace.
        traceable: the same in operators of both exporters; None with a `body`.
        body: the operator in ONNX, see `graphs.script.Body`; it returns variables named as `outputs`.
        shapes: takes the arguments of `eager`, returns empty outputs; needed with `body`, and where sizes
            depend on values.
        plugin: the TensorRT node, if a plugin exists.

    Source: `torch.library.custom_op`, PyTorch 2.13.
    """

    name: str
    eager: Callable[..., Any]
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    example: Callable[[], tuple[torch.Tensor, ...]]
    traceable: Callable[..., Any] | None = None
    body: Body | None = None
    shapes: Callable[..., Any] | None = None
    plugin: Plugin | None = None

    def __post_init__(self) -> None:
        if (self.traceable is None) == (self.body is None):
            raise ExportError(f'operator {self.name}: expected either a traceable form or an ONNX body')
        if self.body is not None and self.shapes is None:
            raise ExportError(f'operator {self.name}: a body in ONNX needs `shapes` for torch.export')

    @property
    def qualified(self) -> str:
        return f'{DOMAIN}::' + re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', self.name).lower()

    @property
    def overload(self) -> torch._ops.OpOverload:
        return getattr(getattr(torch.ops, DOMAIN), self.qualified.split('::')[1]).default

    def __call__(self, *args: Any) -> Any:
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
            return self.eager(*args)
        if self.traceable is not None and _form.get() == 'standard':
            return self.traceable(*args)
        return self.overload(*args)


@contextlib.contextmanager
def operators_as(form: str) -> Iterator[None]:
    """Write operators as `form` in exports of this thread; blocks nest.

    - 'standard' (default): operators of standard ONNX; an engine may lack some.
    - 'function': one node, and a local function in the same file.
    - 'plugin': TensorRT's plugin where one exists, else standard.
    """
    if form not in FORMS:
        raise UsageError(f'operator form {form!r}: expected one of {", ".join(FORMS)}')
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)


current_form = _form.get


def operator_of(node: str, name: str) -> Operator:
    if name not in OPERATORS:
        raise ExportError(
            f'node {node!r}: operator {DOMAIN}.{name} is not registered; import the module that describes it '
            f'(known: {", ".join(sorted(OPERATORS)) or "none"})'
        )
    return OPERATORS[name]


def attribute_letters(operator: Operator) -> dict[str, str]:
    """Return attribute -> key of `TYPES`, in order."""
    return {argument.name: str(argument.type)[0] for argument in _attributes(operator)}


def attribute_values(operator: Operator, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node's attributes as the eager form takes them: bools and texts in place of ints and bytes."""
    values = {**_default_values(operator), **attributes}
    plain = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
    return {name: TYPES[letter][0](plain[name]) for name, letter in attribute_letters(operator).items()}


def _attributes(operator: Operator) -> Sequence[torch.Argument]:
    return operator.overload._schema.arguments[len(operator.inputs) :]


def _default_values(operator: Operator) -> dict[str, Any]:
    arguments = _attributes(operator)
    return {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}


def register(operator: Operator) -> Operator:
    if operator.name in OPERATORS:
        raise ExportError(f'operator {operator.name} is registered twice')
    name = operator.qualified.split('::')[1]
    schema = torch.library.infer_schema(operator.eager, mutates_args=())
    LIBRARY.define(f'{name}{schema}', tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, operator.eager, 'CompositeExplicitAutograd')
    torch.library.register_fake(operator.qualified, operator.shapes or operator.traceable, lib=LIBRARY)
    OPERATORS[operator.name] = operator
    _register_torchscript(operator)
    return operator


def _register_torchscript(operator: Operator) -> None:
    from torch.onnx import symbolic_helper

    letters = attribute_letters(operator)
    count = len(operator.inputs)

    def symbolic(g: Any, *args: Any) -> Any:
        attributes = {
            f'{name}_{"i" if letter == "b" else letter}': value
            for (name, letter), value in zip(letters.items(), args[count:], strict=True)
        }
        node = f'{DOMAIN}::{operator.name}'
        outputs = g.op(node, *args[:count], outputs=len(operator.outputs), **attributes)
        values = (outputs,) if len(operator.outputs) == 1 else outputs
        for value, traced in zip(values, g.original_node.outputs(), strict=True):
            tensor_type = traced.type()
            value.setType(tensor_type.with_sizes([None] * len(tensor_type.sizes())))
        return outputs

    # `parse_args` counts parameters by their names
    symbolic.__signature__ = _signature('g', *operator.inputs, *letters)
    parsed = symbolic_helper.parse_args(*'v' * count, *letters.values())(symbolic)
    torch.onnx.register_custom_op_symbolic(operator.qualified, parsed, 9)


def translations() -> dict[Any, Callable[..., Any]]:
    """Return the dynamo exporter's `custom_translation_table`."""
    return {operator.overload: _translation(operator) for operator in OPERATORS.values()}


def node_of(operator: Operator) -> Any:
    """Return an onnxscript function that writes a node of the operator."""
    from onnxscript import values

    return values.Op(values.Opset(DOMAIN, 1), operator.name, _schema(operator))


def _translation(operator: Operator) -> Callable[..., Any]:
    node = node_of(operator)
    attribute_types = {name: TYPES[letter][0] for name, letter in attribute_letters(operator).items()}
    defaults = _default_values(operator)  # torch.export leaves out what equals them
    count = len(operator.inputs)

    def translate(*args: Any, **kwargs: Any) -> Any:
        positional = dict(zip(attribute_types, args[count:], strict=False))
        return node(*args[:count], **{**defaults, **positional, **kwargs})

    # the exporter tells inputs from attributes by these two
    translate.__signature__ = _signature(*operator.inputs, *attribute_types)
    translate.__annotations__ = attribute_types
    return translate


def _signature(*names: str) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter(name, kind) for name in names])


def _schema(operator: Operator) -> onnx.defs.OpSchema:
    make = onnx.defs.OpSchema
    anything = list(onnx.defs.get_schema('Identity', 16).type_constraints[0].allowed_type_strs)
    inputs = [(name, f'T{index}') for index, name in enumerate(operator.inputs)]
    outputs = [(name, f'U{index}') for index, name in enumerate(operator.outputs)]
    return make(
        operator.name,
        DOMAIN,
        1,
        inputs=[make.FormalParameter(*pair) for pair in inputs],
        outputs=[make.FormalParameter(*pair) for pair in outputs],
        type_constraints=[(type_name, anything, '') for _, type_name in (*inputs, *outputs)],
        attributes=[
            make.Attribute(name, getattr(make.AttrType, TYPES[letter][1]))
            for name, letter in attribute_letters(operator).items()
        ],
    )


@dataclass(frozen=True)
class LibraryOperator:
    """A library's operator that needs a certain opset, and may need a patch.

    Attributes:
        title: the library's operator and ONNX's, for messages.
        opset: first opset with the ONNX operator.
        types: names of module classes that use the operator, or of functions that the `forward` of one calls;
            subclasses count.
        patch: context that is open during every export.
        translations: operator -> function, for the dynamo exporter's `custom_translation_table`.
    """

    title: tuple[str, str]
    opset: int
    types: Collection[str]
    patch: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    translations: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)


LIBRARY_OPERATORS: list[LibraryOperator] = []
"""Operators with patches for every export; modules of `ops` and families add theirs."""


def operators_of(module: torch.nn.Module, without: Collection[str] = ()) -> list[LibraryOperator]:
    """Return the `LIBRARY_OPERATORS` that a module uses; `without` names module classes that do not count."""
    classes = {base for part in module.modules() for base in type(part).__mro__}
    names = {base.__name__ for base in classes} - {*without}
    for base in classes:
        forward = vars(base).get('forward')
        if base.__name__ in names and isinstance(forward, types.FunctionType):
            names.update(forward.__code__.co_names)
    return [operator for operator in LIBRARY_OPERATORS if names.intersection(operator.types)]
