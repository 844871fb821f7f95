"""The parts that `lint.py` observes: stages of an image model, or graphs of a sequence family."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.detector import Detector, resolve
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.spec.options import Options

Feeds = dict[str, torch.Tensor]
"""Tensors by name: inputs of a graph, and outputs of stages that have run."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A stage or a graph that is observed alone; it takes its inputs by position.

    Attributes:
        name: for the report.
        module: is run on the inputs.
        input_names: names of the inputs.
        inputs: tensors of one run.
        other_inputs: tensors of a second run, larger if sizes are dynamic; None: only the example.
        exporters: the only exporters that fit this part; () means the user's choice.
    """

    name: str
    module: torch.nn.Module
    input_names: tuple[str, ...]
    inputs: list[Any]
    other_inputs: list[Any] | None = None
    exporters: tuple[str, ...] = ()


def parts_of(detector: Detector, options: Options, picture: str | None = None) -> Iterator[Part]:
    """Yield the parts in the order of a frame.

    `picture` is the file of an image model's input, by default the demo's.
    """
    options = resolve(options, detector.model, detector.rule)
    device, runs = next(detector.model.parameters()).device, []
    for arrays in kind_of(detector.family).observed(detector, options, picture or DEFAULT_PICTURE):
        runs.append({name: torch.from_numpy(array).to(device) for name, array in arrays.items()})
    yield from _stages(detector, options, runs)


def _stages(detector: Detector, options: Options, runs: Sequence[Feeds]) -> Iterator[Part]:
    family, model = detector.family, detector.model
    family.check(detector.cfg, options)
    contract_of(family, options).check(detector.cfg)
    for graph in contract_of(family, options).graphs(prepared(model), options):
        graph_runs = runs or [dict(graph.example)]
        for stage in graph.stages:
            stage.module.eval().to(next(model.parameters()).device)
            inputs = [[tensors[name] for name in stage.inputs] for tensors in graph_runs]
            exporters = (stage.exporter,) if stage.exporter else ()
            name = f'{family.name}: {stage.name or graph.name}'
            yield Part(name, stage.module, stage.inputs, *inputs, exporters=exporters)
            for tensors, stage_inputs in zip(graph_runs, inputs, strict=True):
                with torch.no_grad():
                    outputs = stage.module(*stage_inputs)
                outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
                tensors.update(zip(stage.outputs, outputs, strict=True))
