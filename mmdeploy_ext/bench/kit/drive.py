"""Judges the frames of a model with a memory, as level 4 of a proof does. Needs numpy only."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.errors import one_line
from mmdeploy_ext.engines.base import FAILURES
from mmdeploy_ext.proving.drive_run import MODES, Moment, PairRun, bars_of_task, default_bars
from mmdeploy_ext.runtime.detect import runtime_of
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
from mmdeploy_ext.runtime.tasks import task_module
from mmdeploy_ext.spec.memory import MemorySpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.bench.kit.contents import ChainedFrame, KitCase, KitGraph, Manifest
    from mmdeploy_ext.spec.results import SequenceRow

NOTHING = np.zeros(0, np.float32)
LARGEST_DRIFT = 100.0
"""Tolerances by which a free-running float32 memory may be off after a reset: rounding adds up."""


class DriveJudge:
    """Judges the frames of each mode, 'teacher' and 'free', as a drive."""

    def __init__(self, manifest: Manifest, graph: KitGraph, precision: str) -> None:
        self.graph, self.memory = graph, MemorySpec.from_json(manifest.memory)
        tensors = self.memory.tensors.items()
        of_outputs = {name: group for name, group in tensors if name in self.memory.outputs}
        self.memory = dataclasses.replace(self.memory, tensors=of_outputs)  # the rest follows from the frame
        if precision != 'fp32':
            self.memory = self.memory.judged_by(graph.spec)
        bars = bars_of_task(manifest.task, default_bars(precision))
        match = task_module(manifest.task).match_detections
        self.runs = {mode: PairRun(mode, graph.spec, bars, self.memory, match) for mode in MODES}

    def add(self, mode: str, frame: ChainedFrame, case: KitCase, arrays: Mapping[str, np.ndarray]) -> None:
        """Judge one frame of a mode; frames come in order.

        `case` is the case of the last file; `arrays` are all of the engine's outputs of it.
        """
        run, metadata = self.runs[mode], self.graph.metadata
        pose, moment = np.asarray(frame.ego_pose, np.float64), (frame.timestamp_s, frame.scene)
        name = f'frame {frame.name} ({frame.title})'
        try:
            boxes = runtime_of(metadata.family).boxes_of_outputs(metadata, arrays)
        except FAILURES as error:
            run.faults[f'no results: {one_line(error)[:200]}'].append(name)
            return
        of_memory, outputs, states = {source for source, _ in self.graph.spec.state}, [], []
        for tensors, detections in ((case.tensors, case.results[0]), (arrays, boxes)):
            results = {name: array for name, array in tensors.items() if name not in of_memory}
            memory = {name: tensors[output] for name, output in self.memory.outputs.items()}
            outputs.append(StepResult(results, detections, frame.reset))
            states.append(StreamState(memory, pose, *moment))
        run.add(Moment(Frame(NOTHING, NOTHING, NOTHING, pose, *moment, name), *outputs, *states))

    def finish(self) -> list[SequenceRow]:
        """Judgements of the modes that ran, 'teacher' first."""
        if self.runs['free'].bars.cosine is None:
            self._add_drift(self.runs['free'])
        return [run.finish() for run in self.runs.values() if run.series['name'] or run.faults]

    def _add_drift(self, run: PairRun) -> None:
        names, ties, limit = run.series['name'], run.series['ties'], 1.0
        for index, was_reset in enumerate(run.series['reset']):
            limit = 1.0 if was_reset else max(limit, LARGEST_DRIFT)
            limit = np.inf if ties[index] else limit
            for tensor, ratios in run.series['ratios'].items():
                ratio = ratios[index] if index < len(ratios) else None
                if tensor.startswith('memory ') and ratio is not None and ratio > limit:
                    fault = f'the {tensor} differs from the one that PyTorch passes to the next frame'
                    run.faults[fault].append(f'{names[index]} ({ratio:.3g} times its tolerance)')
