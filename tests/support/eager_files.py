"""The files of a contract without an export: PyTorch runs their graphs under the program's own loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from mmdeploy_ext.engines.base import Backend
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.detector_files import make_metadata
from mmdeploy_ext.proving.drive_run import SHORT_DRIVE
from mmdeploy_ext.proving.frames import output_spec
from mmdeploy_ext.runtime.detect import runtime_of
from mmdeploy_ext.spec.registry import program_loop
from proofs import run_pair

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mmdeploy_ext.runtime.frames import Frame
    from mmdeploy_ext.spec.results import SequenceRow


class EagerFile(Backend):
    engine = 'PyTorch'

    def __init__(self, path: str, graph: Any, metadata: Any) -> None:
        self.path, self.graph, self.metadata, self.spec = path, graph, metadata, metadata.spec

    def activate(self) -> None:
        pass

    @torch.no_grad()
    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        (stage,) = self.graph.stages
        tensors = [torch.from_numpy(feeds[name]) for name in self.spec.input_names]
        outputs = zip(self.spec.output_names, stage.module(*tensors), strict=True)
        return {name: tensor.numpy() for name, tensor in outputs}


def eager_row(
    detector: Any, folder: Path, frames: Iterable[Frame], **options: Any
) -> tuple[SequenceRow, dict[str, Any]]:
    """Run a contract's loop beside the PyTorch model over frames; return its row, and the graphs' specs.

    `folder` gets the companions.
    """
    family, model = detector.family, detector.model
    chosen = detectors.resolve_opset(family.choose(opset=0, **options), model)
    contract = contract_of(family, chosen)
    graphs = {graph.name: graph for graph in contract.graphs(model, chosen)}
    all_metadata = {name: make_metadata(detector, chosen, graph) for name, graph in graphs.items()}
    for name, text in contract.companions(model).items():
        (folder / name).write_text(text)

    def build(engine: str, path: str, **_: Any) -> EagerFile:
        return EagerFile(path, graphs[Path(path).stem], all_metadata[Path(path).stem])

    opens = program_loop(family.name, contract.name) or runtime_of(family.name).OPENS
    with mock.patch.object(getattr(opens, 'func', opens), 'build', staticmethod(build)):
        runner = contract.runner([str(folder / f'{name}.onnx') for name in graphs], {})
    spec = output_spec(list(all_metadata.values()), contract.runner_outputs(model, chosen))
    memory = family.memory_spec(runner.metadata.postprocess)
    settings = dict(memory=memory, length=SHORT_DRIVE, task=family.task)
    row = run_pair(contract.reference(model), runner, frames, spec, 'teacher', **settings)
    return row, {name: graph.spec for name, graph in graphs.items()}


def names_of(spec: Any) -> list[list[tuple[str, int]]]:
    """Return name and rank of each input, and of each output."""
    return [[(one.name, len(one.axes)) for one in side] for side in (spec.inputs, spec.outputs)]
