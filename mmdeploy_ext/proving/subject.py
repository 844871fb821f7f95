"""What a proof compares: a `Subject`, its samples, and the steps of both sides. Needs numpy only."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.arrays import is_same, other_values
from mmdeploy_ext.base.cli import option
from mmdeploy_ext.engines.base import attempt
from mmdeploy_ext.spec.results import FLOAT32
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from mmdeploy_ext.spec.results import Case, TensorRow
    from mmdeploy_ext.spec.tensors import GraphSpec

    Arrays = Mapping[str, np.ndarray]


PLAIN = -1
"""Stands for the seed of a draw in a plain run."""


@dataclasses.dataclass(frozen=True)
class Claims:
    """Claims of a verdict.

    Attributes:
        edited: files edited on purpose: only outputs decide.
        written: files just exported: graphs are not compared.
        asked: option -> required value of the file's export.
        library: 'installed': compare with the installed library if a repository's copy did not run; None:
            such a file is not proven.
        timed: whether the verdict has times.
        strict: whether code outside the graph is a failure.
        settings: per kind of samples: `picture_files` of images, `length` of a drive,
            `ranges`, `max_voxels` and `node_list` of a backbone.
    """

    edited: bool = False
    written: bool = False
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    library: str | None = None
    timed: bool = True
    strict: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class ModuleRequest:
    """A proof of a file against a module."""

    module: Callable[..., Any] = option(
        'module FILE.py:make', 'function without arguments that returns the module in evaluation mode'
    )
    path: str | Path = option('--onnx m.onnx', 'the ONNX file', kw_only=False, required=True)
    inputs: Iterable[Any] = option(
        '--inputs SAMPLE.npz...',
        "one file per sample, with arrays named as the module's arguments or the file's inputs",
        kw_only=False,
    )
    rtol: float = option(
        '--tolerance RTOL',
        'allowed difference, relative to the largest value of a column or channel; above 1e-3, of the '
        'whole output',
        DEFAULT_RTOL,
    )
    state: Mapping[str, str] | None = option(
        '--state INPUT=OUTPUT...',
        'samples are frames of a sequence: feed OUTPUT to INPUT in the next frame',
        None,
    )
    rows: Sequence[str] = option(
        '--rows OUTPUT...', 'outputs that list the same rows in any order, e.g. boxes scores labels', ()
    )
    seed: int = option('--seed SEED', 'seed of the generated inputs', 0)
    generate: bool = option('--no-generated', 'compare on the samples only, not on generated inputs', True)
    fresh: bool = option('--no-fresh-export', 'do not export the module again to compare the graphs', True)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One input: a picture or batch, a sweep, a set of voxels, a call of a module.

    Attributes:
        data: what its subject runs.
        titles: one per list of results, such as the pictures of a batch.
        alone: it starts from an empty memory, whatever ran before.
        mode: one of `Subject.modes`, set by the loop.
    """

    name: str
    data: Any = None
    shape: str = ''
    traced: bool = False
    titles: Sequence[str] = ('',)
    alone: bool = False
    mode: str = ''


@dataclasses.dataclass(frozen=True)
class Step:
    """What one side computes from a sample and a memory.

    Attributes:
        tensors: compared, by the file's names.
        results: per title; an error; None: it has none.
        state: the memory after it.
        inner: tensors between the stages of a file, for `Subject.on`.
        beside: the same step on another engine, which alone gives `inner`; or its error.
        rows: promises that it breaks.
        counts: name of a limit -> largest count.
        rounding: stored distances of `tensors` from float64.
        probe: values that two runs of PyTorch share.
        facts: what its subject needs of it.
    """

    tensors: Arrays = dataclasses.field(default_factory=dict)
    results: Sequence[Any] | Exception | None = None
    state: Any = None
    inner: Arrays = dataclasses.field(default_factory=dict)
    beside: Step | Exception | None = None
    rows: Sequence[TensorRow] = ()
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rounding: Arrays = dataclasses.field(default_factory=dict)
    probe: Arrays = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Started:
    """What PyTorch computes from the file's own tensors: a proof of the parts behind them.

    Attributes:
        results: returns the results of PyTorch's post-processing, per title; None: it has none.
        tensors: PyTorch's tensors and the file's.
        again: computes the former again.
        between: returns task, title, PyTorch's and the file's results between or beside the stages.
        whole: all that it started from was compared itself.
        notes: what it could not do.
    """

    results: Callable[[], Sequence[Any]] | None = None
    tensors: tuple[Arrays, Arrays] = ({}, {})
    again: Callable[[], Arrays] = dict
    between: Callable[[], Sequence[tuple[str, str, Any, Any]]] = list
    whole: bool = True
    notes: Sequence[str] = ()


class Subject(abc.ABC):
    """A model and its file, or stored results of them: what differs between proofs.

    Attributes:
        spec: outputs and their tolerances; None: all tensors of the reference, within `rtol`.
        task: module that matches results, or ''.
        settings: thresholds and limits of the post-processing.
        module: PyTorch's, for runs in float64 and without limits; None: it cannot run again.
        modes: of each pass over the samples; in 'free...' the file has its own memory, else PyTorch's.
        given: what `sample` makes samples of, in order.
        again: index of the one that runs again at the end; -1: none, as of stored results.
        all_outputs: name of the row of a failed step without results.
        is_foreign: the file ran on an engine that may round, such as TF32.
    """

    spec: GraphSpec | None = None
    rtol = DEFAULT_RTOL
    bars = FLOAT32
    task = ''
    settings: Mapping[str, Any] = {}
    module: Any = None
    modes: Sequence[Sequence[str]] = (('',),)
    given: Collection[Any] = ()
    again = 0
    all_outputs = 'all outputs'
    is_foreign = False

    def entries(self, mode: str) -> Collection[Any]:
        """Return what a pass runs, of which PyTorch's results may choose some."""
        return self.given

    @abc.abstractmethod
    def sample(self, entry: Any, index: int, mode: str) -> Sample:
        """Return a sample without results."""

    @abc.abstractmethod
    def want(self, sample: Sample, state: Any) -> Step:
        """Run PyTorch from a memory; None: empty, or there is none."""

    @abc.abstractmethod
    def got(self, sample: Sample, state: Any) -> Step:
        """Run the file from a memory."""

    def on(self, sample: Sample, got: Step) -> Started | None:
        """Start PyTorch from the file's tensors; None: it cannot."""
        return None

    def align(self, sample: Sample, want: Step, got: Step) -> tuple[Step, Step, Sequence[TensorRow]]:
        """Return both steps as they are compared, rows in one order, and judgements of what has no pair."""
        return want, got, ()

    def tensors(self, sample: Sample, state: Any, got: Step) -> Arrays:
        """Compute PyTorch's tensors of `align` again."""
        return self.want(sample, state).tensors

    def results(self, sample: Sample, state: Any, seed: int | None = PLAIN) -> Sequence[Any]:
        """Compute PyTorch's results again; `seed`: of the draw that it runs in, or None for float64."""
        return self.want(sample, state).results

    def judged(self, sample: Sample, want: Step, got: Step | Exception, case: Case) -> Case | None:
        """Take what the verdict needs of a step; return its case, or None to leave it out."""
        return case

    def after(self, sample: Sample, want: Step, got: Step | Exception) -> Any:
        """Return the file's own memory for its next step."""
        return None if isinstance(got, Exception) else got.state


class Unread:
    """Outputs that the spec leaves to the comparison of results, until something compared depends on them.

    A `runner` of frames needs `boxes_of`, which makes results of the outputs.
    """

    def __init__(self, spec: GraphSpec, runner: Any = None) -> None:
        is_read = runner is None or hasattr(runner, 'boxes_of')
        self.names = [one.name for one in spec.outputs if one.compare != 'values'] if is_read else []

    def look(
        self, outputs: Mapping[str, np.ndarray] | Exception, compared: Callable[[dict[str, np.ndarray]], Any]
    ) -> None:
        """Remove the outputs that change what is compared; `compared` returns it for outputs."""
        if isinstance(outputs, Exception) or not self.names:
            return
        expected = attempt(lambda: compared(dict(outputs)))
        for name in self.names.copy() if not isinstance(expected, Exception) else ():
            changed = {**outputs, name: other_values(outputs[name])} if name in outputs else {}
            result = attempt(functools.partial(compared, changed))
            if not changed or isinstance(result, Exception) or not is_same(expected, result):
                self.names.remove(name)

    @property
    def reasons(self) -> list[str]:
        return [
            f'output {name}: its spec leaves it to the comparison of results, but no result depends on it; '
            "compare its values (compare='values'), or read it where the results are made"
            for name in self.names
        ]
