"""Graphs that are exported once in a run of the tests, by whichever process needs one first.

For tests that are about what is done with a file. A graph is known by all that is traced: its modules with
their weights and settings, the example, spec and options. The files live with the run's temporary ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import types
from typing import TYPE_CHECKING, Any

import onnx
import torch

from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.families import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest


class _Content(pickle.Pickler):
    """Writes what decides about an export: tensors and functions by their content."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return _tensor, (value.detach().cpu().numpy(), str(value.dtype), value.requires_grad)
        if isinstance(value, types.FunctionType) and '<' in value.__qualname__:
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            code = value.__code__
            return _function, (value.__qualname__, code.co_code, code.co_names, cells, value.__defaults__)
        return NotImplemented


def _tensor(*parts: Any) -> None:
    """Stand for a tensor."""


def _function(*parts: Any) -> None:
    """Stand for a function that no module has by its name."""


def digest(*what: Any) -> str:
    """Return the hash of what decides about an export."""
    stream = io.BytesIO()
    _Content(stream).dump(what)
    return hashlib.blake2b(stream.getvalue(), digest_size=16).hexdigest()


def _key(graph: Any, options: Any, keep_fp32: Any, example: Any) -> str:
    """Return the hash of an export, of each part by itself: what equal parts share is pickled only once."""
    traced = example or graph.example
    parts = [graph.name, graph.spec, graph.model, *graph.stages, *traced.values()]
    asked = [*traced, *options.items(), keep_fp32]
    return digest([*map(digest, parts), repr(asked)])


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Return a temporary folder that all processes of this run of the tests have."""
    base = factory.getbasetemp()
    folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'exported'
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def exported_once(folder: Path) -> Iterator[None]:
    """Inside the block a graph whose file is in the folder is read instead of exported again."""
    export = files.export_graph

    def once(graph, options, keep_fp32=(), example=None):
        path = folder / f'{_key(graph, options, keep_fp32, example)}.onnx'
        if not path.is_file():
            model = export(graph, options, keep_fp32, example)
            with atomic_path(path) as temporary:
                onnx.save(model, temporary)
        return onnx.load(path)

    files.export_graph = once
    try:
        yield
    finally:
        files.export_graph = export
