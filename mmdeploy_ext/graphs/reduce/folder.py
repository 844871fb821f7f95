"""A reduced graph as a folder that runs on its own."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.base.files import (
    atomic_path,
    check_replaceable,
    check_writable,
    replaced_folder,
    write_json,
)
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.io.files import save_npz
from mmdeploy_ext.graphs.reduce import run
from mmdeploy_ext.graphs.reduce.search import Reduction

README = """# A reduced graph

{meaning}

This is the smallest part of `{source}` that still shows the fault: {after} of {before} nodes, found with
{checks} checks{stopped}.

| node | operator | reads | writes |
|---|---|---|---|
{nodes}

- `model.onnx`: the part. Its inputs are tensors of the whole graph.
- `inputs.npz`: the values that these tensors had there.
- `expected.npz`: {expected}
- `run.py`: shows the fault: `python run.py`, with numpy and onnxruntime installed; exit status 0 if
  is shown.
"""
"""Text of the folder's README.md, with fields that `save_folder` fills by `str.format`."""
EXPECTED = {
    'nan': 'the outputs of ONNX Runtime when this folder was written.',
    'engines': 'the outputs of ONNX Runtime without optimisations.',
    'reference': 'the outputs of the reference implementation of ONNX.',
    'differs': 'the values of the same tensors in the other model.',
    'crash': 'empty if nothing could be computed.',
    'command': 'the outputs of ONNX Runtime for the whole graph, without optimisations.',
}
"""Kind of a check -> contents of its expected.npz."""


def check_folder(target: str | os.PathLike[str]) -> None:
    """Raise UsageError if `target` is a file or a folder that is not empty, or cannot be made or written."""
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f'--out {target}: already exists; give the name of a new folder')
    check_replaceable(target)
    check_writable(target / 'model.onnx')


def save_folder(
    reduction: Reduction,
    target: str | os.PathLike[str],
    facts: Mapping[str, Any],
    expected: Mapping[str, np.ndarray],
    *,
    meaning: str,
    source: str,
) -> Path:
    """Write the model, its inputs and expected outputs, run.py and README.md into a new folder, atomically.

    - `target`: returned; a new or empty folder.
    - `facts`: of `Check.facts`, for case.json.
    - `expected`: output -> array, see `EXPECTED`.
    - `meaning`: the fault in words.
    - `source`: name of the reduced file.
    """
    target, candidate = Path(target), reduction.candidate
    check_folder(target)
    rows = []
    for position, node in zip(candidate.positions, candidate.model.graph.node, strict=True):
        inputs, outputs = (
            ', '.join(f'`{name}`' for name in names if name) for names in (node.input, node.output)
        )
        rows.append(f'| {node.name or f"#{position}"} | {node.op_type} | {inputs} | {outputs} |')
    text = README.format(
        meaning=f'{meaning[:1].upper()}{meaning[1:]}.',
        source=source,
        after=len(candidate.positions),
        before=reduction.nodes_before,
        checks=reduction.checks,
        stopped=f', stopped early: {reduction.stopped}' if reduction.stopped else '',
        nodes='\n'.join(rows),
        expected=EXPECTED[facts['check']],
    )
    with replaced_folder(target) as folder:
        files.write(candidate.model, folder / 'model.onnx')
        save_npz(folder / 'inputs.npz', candidate.feeds)
        save_npz(folder / 'expected.npz', expected)
        write_json(folder / 'case.json', dict(facts, outputs=list(candidate.outputs)))
        shutil.copyfile(run.__file__, folder / 'run.py')
        with atomic_path(folder / 'README.md') as temporary:
            temporary.write_text(text, encoding='utf-8')
    return target
