"""The kit of a folder of parts: inputs that the user's test path gave each part, and PyTorch's outputs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.arrays import to_array
from mmdeploy_ext.bench.kit.contents import ArrayFolder, KitCase, KitGraph
from mmdeploy_ext.bench.kit.model_files import copy_model
from mmdeploy_ext.bench.kit.writer import write_kit
from mmdeploy_ext.graphs.io.files import load
from mmdeploy_ext.proving.parts.export import record_parts
from mmdeploy_ext.spec.slices import DRAWS
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL, ColumnGroup, GraphSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from mmdeploy_ext.proving.parts.export import RecordedPart
    from mmdeploy_ext.proving.parts.folder import CutFolder
    from mmdeploy_ext.proving.parts.model import ModelFactory


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

    make = functools.cache(factory.make)

    def write_contents(target: Path) -> dict[str, Any]:
        arrays = ArrayFolder(target)
        graphs: list[dict[str, Any]] = []
        cases: list[dict[str, Any]] = []
        for part, entry in zip(parts, folder.entries, strict=True):
            graph = _graph(folder, entry)
            graphs.append(graph.to_json() | copy_model(folder.file(entry), target, graph))
            cases += [case.write(arrays, case.tensors) for case in _cases(part, entry, graph, make)]
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
    part: RecordedPart, entry: dict[str, Any], graph: KitGraph, make: Callable[[], torch.nn.Module]
) -> list[KitCase]:
    names = {tensor['path']: tensor['name'] for tensor in (*entry['inputs'], *entry['outputs'])}
    cases = []
    for index, call in enumerate(part.calls):
        inputs = {names[path]: to_array(tensor) for path, tensor in part.form.inputs_of(call).items()}
        inputs = {name: inputs[name] for name in graph.spec.input_names}
        outputs = {names[path]: array for path, array in part.form.outputs_of(call).items()}
        name = f'{graph.name}_{index:03}'
        rounding = {names[path]: array for path, array in part.rounding(make, call)(DRAWS).items()}
        sides = inputs, {}, outputs, []
        cases.append(KitCase(name, graph.name, call.title, (), *sides, rounding=rounding))
    return cases
