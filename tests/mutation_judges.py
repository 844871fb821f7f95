"""Two judges of a mutated file: level 1 alone, and levels 2 and 3 alone with references computed once."""

from __future__ import annotations

import contextlib
import functools
import shutil
import unittest.mock
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.errors import Mm2OnnxError
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.proof import ladder
from mmdeploy_ext.proof.enough import whole_reasons
from mmdeploy_ext.proof.levels.run_twice import attempt
from mmdeploy_ext.proof.levels.sequence import NearOrigin
from mmdeploy_ext.proof.references import references
from mutation_toys import IMAGES, Frames, Pictures, Toy
from proofs import check_files, run_cases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx

    from mmdeploy_ext.proof.levels.base import Proof
    from mmdeploy_ext.proof.results import Case
    from mmdeploy_ext.proof.verdict import Verdict
    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult, StreamState

    Judge = Callable[[list[str]], list[str]]


class Judges:
    """The two judges of one toy's files; each returns why it refuses them, nothing where it does not."""

    def __init__(self, toy: Toy, folder: Path) -> None:
        """Export the right files into a folder."""
        self.toy, self.folder = toy, folder
        self.paths = toy.export(folder / 'right')
        self.metadata = [read_metadata(path) for path in self.paths] if toy.has_metadata else []

    def files_with(self, graph: int, model: onnx.ModelProto) -> list[str]:
        """Write files of which one is another model; return their paths."""
        target = self.folder / 'mutated'
        target.mkdir(exist_ok=True)
        found = [str(shutil.copy(path, target / Path(path).name)) for path in self.paths]
        Path(found[graph]).write_bytes(model.SerializeToString())
        return found

    def level_1(self, paths: list[str]) -> list[str]:
        """Judge by graph, metadata and structure."""
        return refused(self._graphs, paths)

    def inputs(self, paths: list[str]) -> list[str]:
        """Judge by what comes out."""
        return refused(self._by_inputs, paths)

    def _graphs(self, paths: list[str]) -> list[str]:
        family, once = self.toy.deployment.family, contextlib.nullcontext()
        if isinstance(self.toy, Frames):
            once = unittest.mock.patch.object(family, 'graphs', self.graphs_once)
        with once:
            return level_1_reasons(check_files(self.toy.deployment, paths, self.toy.samples()))

    @functools.cached_property
    def graphs_once(self) -> Callable[..., list[Any]]:
        """What gives the graphs of a model of frames, which its files are compared with; made once."""
        return functools.cache(self.toy.deployment.family.graphs)

    def _by_inputs(self, paths: list[str]) -> list[str]:
        if isinstance(self.toy, Pictures):
            with build_backend('OnnxRuntimeBackend', *paths, threads=1) as backend:
                return whole(run_cases(self.known, backend))
        if not isinstance(self.toy, Frames):
            verdict = self.toy.prove(paths)
            return [*verdict.reasons, *whole(iter(verdict.cases))]
        family, drive = self.toy.deployment.family, self.drive
        proof = ladder.open_proof(self.toy.deployment, paths, (), dict(threads=1))
        recorded = unittest.mock.patch.object(family, 'reference', lambda model: drive)
        with contextlib.ExitStack() as stack, recorded:
            proof.start(stack)
            return self._drive(proof) if family.memory else whole(self._sweeps(proof))

    @functools.cached_property
    def known(self) -> list[Any]:
        """References of all inputs of a picture's proof."""
        options = self.toy.deployment.family.written(self.metadata[0].options)
        return references(self.toy.deployment, options, IMAGES)

    @functools.cached_property
    def drive(self) -> Recorded:
        """What the reference gives for the frames."""
        return Recorded(self.toy.deployment.family.reference(self.toy.deployment.model), self.toy.samples())

    def _sweeps(self, proof: Proof) -> Iterator[Case]:
        for frame, expected in zip(self.drive.frames, self.drive.results, strict=True):
            yield proof.judge(frame, expected, attempt(lambda frame=frame: proof.runner.step(frame)))[0]

    def _drive(self, proof: Proof) -> list[str]:
        for frame in self.drive.frames:
            proof.modes.add(frame)
        return [row.title for row in proof.modes.finish().values() if not row.passed]


class Recorded:
    """A stepper that has run: it gives its results again. `frames` are those that it ran."""

    def __init__(self, stepper: Stepper, frames: Any) -> None:
        """Run all frames."""
        self.frames: list[Frame] = list(NearOrigin(frames)) if hasattr(stepper, 'head') else list(frames)
        self.results: list[StepResult] = []
        self.states: list[StreamState | None] = []
        for frame in self.frames:
            self.results.append(stepper.step(frame))
            self.states.append(getattr(stepper, 'state', None))
        self.place = -1

    @property
    def state(self) -> StreamState | None:
        """See `Stepper.state`."""
        return self.states[self.place] if self.place >= 0 else None

    def reset(self) -> None:
        """Begin again."""
        self.place = -1

    def step(self, frame: Frame) -> StepResult:
        """Return the next result; frames come in their order."""
        self.place += 1
        return self.results[self.place]


def refused(judge: Judge, paths: list[str]) -> list[str]:
    """Return the reasons of a judge; an error of ours is one, another exception is a crash."""
    try:
        return judge(paths)
    except (Mm2OnnxError, ValueError) as error:
        return [f'refused: {error}']
    except Exception as error:  # a traceback is not a verdict: the test says so
        return [f'{CRASH}{type(error).__name__}: {error}']


CRASH = 'crash: '


def level_1_reasons(verdict: Verdict) -> list[str]:
    """Return what level 1 has against a file; a graph that inputs alone decide about is not equal."""
    graphs = [graph.text for graph in verdict.graphs if not graph.equal]
    return [*graphs, *(check.name for check in verdict.structure if not check.passed)]


def whole(cases: Iterator[Case]) -> list[str]:
    """Return the first case that fails, or what all of them together lack."""
    seen = []
    for case in cases:
        if not case.passed:
            return [case.name]
        seen.append(case)
    return whole_reasons(seen)
