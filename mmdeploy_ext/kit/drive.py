"""Judges the frames of a model with a memory, as level 4 of a proof does. Needs numpy alone.

Teacher-forced, the last file ran on PyTorch's tensors and memory, and every frame counts by itself;
free-running, all files ran one after the other and kept the memory. See `proving/levels/drive_run.py`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.contract.memory import MemorySpec
from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.proving.levels.drive_run import MODES, Moment, PairRun, default_bars
from mmdeploy_ext.proving.levels.run_twice import FAILURES
from mmdeploy_ext.proving.results import MODE_TITLES
from mmdeploy_ext.proving.tasks import task_module
from mmdeploy_ext.runtime.family_runtime import runtime_of
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.kit.contents import ChainedFrame, KitCase, KitGraph
    from mmdeploy_ext.proving.results import SequenceRow

NOTHING = np.zeros(0, np.float32)


class DriveJudge:
    """Collects the frames of both modes and judges them together.

    Attributes:
        runs: 'teacher' and 'free' -> its judgement so far.
    """

    def __init__(self, manifest: Mapping[str, Any], graph: KitGraph, precision: str) -> None:
        """Begin without frames.

        Args:
            manifest: manifest of the kit.
            graph: the last file, which gives results and memory.
            precision: by whose bars the frames are judged.
        """
        self.graph, self.memory = graph, MemorySpec.from_json(manifest['memory'])
        of_outputs = {name: self.memory.tensors[name] for name in self.memory.outputs}
        self.memory = dataclasses.replace(self.memory, tensors=of_outputs)  # the rest follows from the frame
        if precision != 'fp32':
            self.memory = self.memory.judged_by(graph.spec)
        bars, match = default_bars(precision), task_module(manifest['task']).match_detections
        self.runs = {mode: PairRun(mode, graph.spec, bars, self.memory, match) for mode in MODES}

    def add(self, mode: str, frame: ChainedFrame, case: KitCase, arrays: Mapping[str, np.ndarray]) -> None:
        """Judge the outputs of one frame in a mode; frames are added in order.

        Args:
            mode: 'teacher' or 'free'.
            frame: the frame, as the kit's manifest describes it.
            case: case of the frame's last file, with PyTorch's tensors and results.
            arrays: name -> output of the engine.
        """
        run, metadata = self.runs[mode], self.graph.metadata
        pose = np.asarray(frame.ego_pose, np.float64)
        moment_frame = Frame(
            NOTHING,
            NOTHING,
            NOTHING,
            pose,
            frame.timestamp_s,
            frame.scene,
            f'frame {frame.name} ({frame.title})',
        )
        try:
            boxes = runtime_of(metadata.family).boxes_of_outputs(metadata, arrays)
        except FAILURES as error:
            run.faults[f'no results: {one_line(error)[:200]}'].append(moment_frame.name)
            return
        of_memory, outputs, states = {source for source, _ in self.graph.spec.state}, [], []
        for tensors, detections in ((case.tensors, case.results[0]), (arrays, boxes)):
            results = {name: array for name, array in tensors.items() if name not in of_memory}
            memory = {name: tensors[output] for name, output in self.memory.outputs.items()}
            outputs.append(StepResult(results, detections, frame.reset))
            states.append(StreamState(memory, pose, frame.timestamp_s, frame.scene))
        run.add(Moment(moment_frame, *outputs, *states))

    def finish(self) -> list[SequenceRow]:
        """Return the judgement of each mode of which there were frames."""
        return [run.finish() for run in self.runs.values() if run.series['name'] or run.faults]

    @property
    def first_difference(self) -> str:
        """Sentence about the first frame that differs, and what differs there; '' if none does."""
        for mode, run in self.runs.items():
            names, tensors = run.series['name'], run.tensors.failed
            first = {tensor: names.index(frames[0]) for tensor, frames in tensors.items()}
            counts = zip(run.series['reference'], run.series['matched'], run.series['extra'], strict=True)
            wrong = {index: row for index, row in enumerate(counts) if row[0] != row[1] or row[2]}
            if not first and not wrong:
                continue
            index = min([*first.values(), *wrong])
            parts = [
                f'{tensor} ({run.tensors.text_of(tensor, index)})'
                for tensor, place in first.items()
                if place == index
            ][:1]
            if index in wrong:
                reference, matched, extra = wrong[index]
                parts.append(f'{matched} of {reference} results matched, {extra} extra')
            return f'{MODE_TITLES[mode]}: {names[index]}: {"; ".join(parts)}'
        return ''
