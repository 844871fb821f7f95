"""Cases of any module and file: the inputs of `prove_module`, with the module's results."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmdeploy_ext.base.arrays import to_array
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.bench.kit.contents import MODEL, ArrayFolder, ChainedFrame, KitCase, KitGraph, Step
from mmdeploy_ext.bench.kit.page import write_page
from mmdeploy_ext.bench.kit.writer import copy_model, write_kit
from mmdeploy_ext.graphs.io.files import load
from mmdeploy_ext.proving.explain import rounding_of
from mmdeploy_ext.proving.modules import FileTensor, ModuleProof
from mmdeploy_ext.proving.parts.export import ModelFactory, RecordedPart, record_parts
from mmdeploy_ext.proving.parts.folder import CutFolder
from mmdeploy_ext.proving.parts.graph import run_part
from mmdeploy_ext.spec.comparison import DRAWS
from mmdeploy_ext.spec.matching import tied_choices
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL, ColumnGroup, GraphSpec, TensorSpec

# The kit of a folder of parts: inputs that the user's test path gave each part, and PyTorch's outputs.


def write_parts_kit(
    factory: ModelFactory,
    folder: CutFolder,
    samples: Sequence[Any],
    out: str | Path,
    pictures: Sequence[dict[str, str]],
) -> dict[str, Any]:
    """Write a kit with a case per call of a part; return its manifest.

    Args:
        factory: config and checkpoint.
        folder: the exported folder.
        samples: keyword arguments of the test path, in their order.
        out: the folder, see `write_kit`.
        pictures: `name` and `licence` of the source of the samples.
    """
    parts, _ = record_parts(
        factory, [entry['part'] for entry in folder.entries], samples, folder.is_seeded, folder.fixed
    )

    model = factory.make()

    def write_contents(target: Path) -> dict[str, Any]:
        arrays = ArrayFolder(target)
        graphs: list[dict[str, Any]] = []
        cases: list[dict[str, Any]] = []
        for part, entry in zip(parts, folder.entries, strict=True):
            graph = _graph(folder, entry)
            graphs.append(graph.to_json() | copy_model(folder.file(entry), target, graph))
            cases += [case.write(arrays, case.tensors) for case in _cases(part, entry, graph, model)]
        return dict(
            graphs=graphs,
            cases=cases,
            frames=[],
            bars={},
            task=None,
            precision=folder.options['precision'],
            title=', '.join(part.text for part in folder.parts),
            origin=f'They are parts of the model of `{factory.config}`.',
            pictures=list(pictures),
        )

    return write_kit(out, str(folder.path), write_contents)


def _graph(folder: CutFolder, entry: dict[str, Any]) -> KitGraph:
    taken = {value.name for value in load(str(folder.file(entry))).graph.input}
    sides = [
        tuple(
            TensorSpec(
                tensor['name'],
                tensor['dtype'],
                tuple(tensor['shape']),
                groups=(ColumnGroup(rtol=DEFAULT_RTOL),),
            )
            for tensor in entry[side]
            if side == 'outputs' or tensor['name'] in taken
        )
        for side in ('inputs', 'outputs')
    ]
    return KitGraph(Path(entry['file']).stem, entry['file'], None, GraphSpec('part', *sides, ()))


def _cases(
    part: RecordedPart, entry: dict[str, Any], graph: KitGraph, model: torch.nn.Module
) -> list[KitCase]:
    names = {tensor['path']: tensor['name'] for tensor in (*entry['inputs'], *entry['outputs'])}
    cases = []
    for index, call in enumerate(part.calls):
        given, expected = part.form.inputs_of(call), part.form.outputs_of(call)
        inputs = {names[path]: to_array(tensor) for path, tensor in given.items()}
        inputs = {name: inputs[name] for name in graph.spec.input_names}
        outputs = {names[path]: array for path, array in expected.items()}
        name = f'{graph.name}_{index:03}'
        run = functools.partial(run_part, model, part.form, call, given, part.paths)
        distances = {} if part.form.seeded else rounding_of(model, expected, run)(DRAWS)
        rounding = {names[path]: array for path, array in distances.items()}
        sides = inputs, {}, outputs, []
        cases.append(KitCase(name, graph.name, call.title, (), *sides, rounding=rounding))
    return cases


def _graph_spec(proof: ModuleProof) -> GraphSpec:
    (_, want, got), graph = proof.ran[0], proof.model.graph
    feeds = got.facts['feeds']

    def tensor(value: Any, array: Any) -> TensorSpec:
        of_file = FileTensor.of(value, proof.path)
        axes = of_file.axes if of_file.axes is not None else ('',) * array.ndim
        named = tuple(size or f'{value.name}[{axis}]' for axis, size in enumerate(axes))
        rtol = proof.rtol if array.dtype.kind in 'fc' else 0.0
        return TensorSpec(value.name, of_file.dtype, named, groups=(ColumnGroup(rtol=rtol),))

    inputs = [tensor(value, feeds[value.name]) for value in graph.input if value.name in proof.inputs]
    outputs = [tensor(value, want.tensors[value.name]) for value in graph.output]
    state = tuple((output, name) for name, output in proof.state.items())
    return GraphSpec('module', tuple(inputs), tuple(outputs), state)


def write_module_kit(
    proof: ModuleProof, out: str | Path, pictures: Sequence[dict[str, str]] = (), generate: bool = True
) -> dict[str, Any]:
    """Write the kit of a PyTorch module and an ONNX file; return its manifest.

    `generate`: also on generated inputs.
    """
    verdict = proof.conclude(generate and not proof.state)
    if wrong := [finding.line for finding in verdict.of('outputs') if not finding.passed]:
        failures = '; '.join(wrong[:3])
        raise UsageError(f'{proof.path}: does not equal the module on this machine: {failures}')
    return write_kit(out, proof.path, functools.partial(_write_contents, proof, pictures))


def _write_contents(proof: ModuleProof, pictures: Sequence[dict[str, str]], folder: Path) -> dict[str, Any]:
    graph = KitGraph('model', MODEL, None, _graph_spec(proof))
    entry = graph.to_json() | copy_model(proof.path, folder, graph)
    arrays, subject = ArrayFolder(folder), proof.verdict.subject
    cases, state = [], None
    for index, (sample, want, got) in enumerate(proof.ran[: len(proof.calls)] if proof.state else proof.ran):
        if index >= len(proof.calls) and tied_choices(want.tensors, proof.varied):
            continue  # another engine may take others of equal values
        run = functools.partial(proof.tensors, sample, state, got)
        rounding = rounding_of(proof.module, want.tensors, run)(DRAWS)
        title, sides = (
            sample.name.removesuffix(', teacher-forced'),
            (got.facts['feeds'], {}, want.tensors, []),
        )
        case = KitCase(f'{index:03}', 'model', title, (), *sides, rounding=rounding)
        cases.append(case.write(arrays, got.tensors))
        state = want.state
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
