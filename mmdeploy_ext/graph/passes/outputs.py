"""Inner tensors as outputs."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

import onnx

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.io.checks import check_ordinary
from mmdeploy_ext.graph.io.index import Index, near
from mmdeploy_ext.graph.run import typed_values

if TYPE_CHECKING:
    from collections.abc import Iterable


def insert_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return a model that also gives inner tensors, after the outputs that it has.

    Does not fire on tensors that are outputs already. The outputs that were there keep their values.

    Args:
        model: stays as it is.
        names: tensors that nodes make, or patterns such as '/head/*'.

    Raises:
        UsageError: an unknown tensor, a pattern that no tensor fits, an input or a constant.
    """
    check_ordinary(model)
    index = Index(model)
    wanted = [name for pattern in names for name in matching(index, pattern)]
    new = [name for name in dict.fromkeys(wanted) if name not in index.outputs]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.output.extend(typed_values(index, new))
    return result


def matching(index: Index, pattern: str) -> list[str]:
    """Return the tensors that a name or pattern means, of those that nodes make.

    Raises:
        UsageError: none does.
    """
    if index.producer(pattern) is not None:
        return [pattern]
    if not any(sign in pattern for sign in '*?['):
        index.check_tensor(pattern)
        raise UsageError(f'{pattern!r} is an input or a constant of the graph; no node makes it')
    made = [name for name in index.tensors if index.producer(name) is not None]
    found = [name for name in made if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise UsageError(f'no tensor fits {pattern!r}{near(pattern.strip("*"), made)}')
    return found
