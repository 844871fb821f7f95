"""Cases of any module and file: the inputs of `prove_module`, with the module's results."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.bench.kit.contents import MODEL, ArrayFolder, ChainedFrame, KitCase, KitGraph, Step
from mmdeploy_ext.bench.kit.model_files import copy_model
from mmdeploy_ext.bench.kit.page import write_page
from mmdeploy_ext.bench.kit.writer import write_kit
from mmdeploy_ext.proving.modules.calls import FileTensor
from mmdeploy_ext.proving.modules.proof import ModuleProof
from mmdeploy_ext.spec.matching import tied_choices
from mmdeploy_ext.spec.slices import DRAWS
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def _graph_spec(proof: ModuleProof) -> GraphSpec:
    first, graph = proof.comparisons[0], proof.model.graph

    def tensor(value: Any, array: Any) -> TensorSpec:
        of_file = FileTensor.of(value, proof.path)
        axes = of_file.axes if of_file.axes is not None else ('',) * array.ndim
        named = tuple(size or f'{value.name}[{axis}]' for axis, size in enumerate(axes))
        rtol = proof.rtol if array.dtype.kind in 'fc' else 0.0
        return TensorSpec(value.name, of_file.dtype, named, groups=(ColumnGroup(rtol=rtol),))

    inputs = [tensor(value, first.feeds[value.name]) for value in graph.input if value.name in proof.inputs]
    outputs = [tensor(value, first.reference[value.name]) for value in graph.output]
    state = tuple((output, name) for name, output in proof.state.items())
    return GraphSpec('module', tuple(inputs), tuple(outputs), state)


def write_module_kit(
    proof: ModuleProof, out: str | Path, pictures: Sequence[dict[str, str]] = (), generate: bool = True
) -> dict[str, Any]:
    """Write the kit of a PyTorch module and an ONNX file; return its manifest.

    `generate`: also on generated inputs.
    """
    proof.compare_samples()
    if generate and not proof.state:
        proof.compare_generated()
    verdict = proof.conclude()
    if wrong := [finding.line for finding in verdict.of('outputs') if not finding.passed]:
        failures = '; '.join(wrong[:3])
        raise UsageError(f'{proof.path}: does not equal the module on this machine: {failures}')
    return write_kit(out, proof.path, functools.partial(_write_contents, proof, pictures))


def _write_contents(proof: ModuleProof, pictures: Sequence[dict[str, str]], folder: Path) -> dict[str, Any]:
    graph = KitGraph('model', MODEL, None, _graph_spec(proof))
    entry = graph.to_json() | copy_model(proof.path, folder, graph)
    arrays, subject = ArrayFolder(folder), proof.verdict.subject
    teacher_forced = proof.comparisons[: len(proof.calls)] if proof.state else proof.comparisons
    cases = []
    for index, comparison in enumerate(teacher_forced):
        if index >= len(proof.calls) and tied_choices(comparison.reference, proof.varied):
            continue  # another engine may take others of equal values
        title = comparison.call.title.removesuffix(', teacher-forced')
        sides = comparison.feeds, {}, comparison.reference, []
        rounding = proof.rounding(comparison)(DRAWS)
        case = KitCase(f'{index:03}', 'model', title, (), *sides, rounding=rounding)
        cases.append(case.write(arrays, comparison.outputs))
    frames = []
    for index, case in enumerate(cases if proof.state else ()):
        computed = dict(proof.state) if index else {}
        frame = ChainedFrame(case['name'], case['title'], (Step(case['name'], computed),), not index)
        frames.append(frame.to_json())
    is_ordered = not proof.rows and not frames  # the page does neither rows in any order nor memories
    return dict(
        file=MODEL,
        graphs=[entry],
        cases=cases,
        frames=frames,
        bars=write_page(folder, graph, None) if is_ordered else {},
        task=None,
        tolerance=proof.rtol,
        rows=list(proof.rows),
        title=f'{subject["module"]}, {subject["file"]}',
        origin=f'The source of the module has the SHA-256 `{subject["source_sha256"]}`.',
        pictures=list(pictures),
    )
