"""What proofs of exported models have: level 1 of files, inputs of both engines, judgement of all results.

`ladder.prove` calls the methods of `Proof`. What its files are is in `exported_file.py`, for files with
`Metadata`, and in `sparse_file.py`, for those of sparse backbones.
"""

from __future__ import annotations

import abc
import dataclasses
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.core.source_code import changed_files, other_copies, versions, versions_with_places
from mmdeploy_ext.core.user_modules import libraries_not_run
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.graph.io.index import count_nodes
from mmdeploy_ext.proving import half_bars
from mmdeploy_ext.proving.file_checks import not_compared
from mmdeploy_ext.proving.open_points import export_switches, untraced_methods, warning_lines
from mmdeploy_ext.proving.provenance import asked_checks, hash_checks, weights_checks
from mmdeploy_ext.proving.results import GraphResult
from mmdeploy_ext.proving.tasks.matching import (
    ADVICE_FOR_IMAGES,
    MAX_ALONE_SHARE,
    accept_few_alone,
    total_reasons,
)
from mmdeploy_ext.proving.verdict import Finding, Results, Verdict, library_findings

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from mmdeploy_ext.core.source_code import ModelClass
    from mmdeploy_ext.exporting.model import Model
    from mmdeploy_ext.proving.results import Case, Check, PreprocessingResult

AGAIN = 'the model gives other results when the first input is run again at the end'
"""Reason why a proof fails whose first input does not give the same at the end."""


class Proof(abc.ABC):
    """One proof of the files of one model.

    Attributes:
        unit: name of one input in messages.
        found_in: word for what has results, 'image' or 'sweep', in the message that nothing was found.
        advice: what the user can do if too few results were matched.
        samples_option: option of the command line that gives other samples.
        by_rate: whether `conclude` judges results of files in less than float32 by the share that matched; a
            drive has a share of its own.
        max_drawn: largest number of `pictures` in the report.
        files: what `read` returned for each path.
        changed_files: files of the user's classes that are others than when the files were exported.
        results: what was compared so far.
        verdict: what is claimed; it has the results once the proof is over.
        pictures: samples with the results of both engines, to be drawn in the report, each a `Pair`.
        timed: whether `conclude` puts the times of both engines into the verdict, see `timing`.
    """

    unit: ClassVar[str] = 'input'
    found_in: ClassVar[str] = 'image'
    advice: ClassVar[str] = ADVICE_FOR_IMAGES
    samples_option: ClassVar[str] = '--images'
    by_rate: ClassVar[bool] = True
    max_drawn: ClassVar[int] = 4
    timed: bool = True

    def __init__(
        self,
        deployment: Model,
        paths: Sequence[str],
        samples: Collection[Any],
        engine: Mapping[str, Any],
    ) -> None:
        """Read the files.

        Args:
            deployment: the config and checkpoint that the files claim to be of.
            paths: paths of the files, in the order in which a sample goes through them.
            samples: samples of the model's kind: titled pictures, frames or sweeps, or sets of voxels, see
                `ladder.prove`.
            engine: `engine`, the registered name of the engine's class, and its options, such as `threads`.

        Raises:
            ModelFileError: a file is not there, not ours, or of another model family.
        """
        self.deployment, self.paths, self.samples, self.engine = deployment, paths, samples, dict(engine)
        self.files = [self.read(path) for path in paths]
        self.verdict = Verdict(
            dict(
                file=paths[0] if len(paths) == 1 else str(Path(paths[-1]).parent),
                **data_hashes(paths),
                family=deployment.family.name,
                task=deployment.family.task,
                **self.facts(),
                config=deployment.config,
                checkpoint=deployment.checkpoint,
                config_sha256=deployment.config_sha256,
                checkpoint_sha256=deployment.checkpoint_sha256,
                proven_with=versions_with_places(),
                python=platform.python_version(),
                libraries_not_run=libraries_not_run(deployment.cfg),
            ),
        )
        self.results = Results()
        self.pictures: list[Any] = []
        self.changed_files: list[str] = []

    @property
    def kind(self) -> str:
        """Registered name of the engine's class; 'OnnxRuntimeBackend' if the options name none."""
        return str(self.engine.get('engine', 'OnnxRuntimeBackend'))

    @abc.abstractmethod
    def read(self, path: str) -> Any:
        """Read one file; return an object with its graph and its metadata.

        Its attributes are `path`, `model`, `name` (of its graph, for a model of frames or sweeps; else ''),
        `options` (of its export, option -> value), `hashes` ('checkpoint' and 'config' -> hash that it was
        made from) and `model_classes` (the entry of its metadata).
        """

    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return the entries of the verdict's subject that depend on the kind of files."""

    @abc.abstractmethod
    def graph(self, file: Any) -> GraphResult:
        """Compare the graph of a file with a fresh export."""

    @abc.abstractmethod
    def checks(self, file: Any) -> list[Check]:
        """Check that a file is valid, and that its metadata agree with contract, config and options."""

    @abc.abstractmethod
    def preprocessing(self) -> PreprocessingResult:
        """Compare samples prepared by the rule in the files with those of the config's own test pipeline.

        The reference side calls no code of `preprocess/`. The reference of voxels is the voxelisation of the
        model; for a backbone they alone are compared.
        """

    def check(
        self, edited: bool = False, asked: Mapping[str, Any] | None = None, written: bool = False
    ) -> None:
        """Compare every file's graph, metadata and preprocessing.

        Args:
            edited: whether the files were edited on purpose: then their graphs are not compared.
            asked: option -> value that the last file must have been exported with; with None nothing is
                demanded.
            written: whether the export has just written the files: then their graphs are not compared.
        """
        verdict, results = self.verdict, self.results
        for file in self.files:
            nodes = count_nodes(file.model)
            graph = not_compared(file.name, nodes, file.edits, edited=edited, written=written)
            graph = graph or self.graph(file)
            hashes, notes = hash_checks(self.deployment, file.hashes, graph.equal)
            prefix = f'{file.name}: ' if file.name else ''
            results.graphs.append(graph)
            results.checks += [
                dataclasses.replace(check, name=f'{prefix}{check.name}')
                for check in (*self.checks(file), *hashes)
            ]
            self.changed_files += changed_files(file.model_classes, self.deployment.model_classes)
            self.add_notes(notes)
        verdict.model_classes = class_lines(self.deployment.model_classes)
        family, model, cfg = self.deployment.family, self.deployment.model, self.deployment.cfg
        untraced = untraced_methods(family, model, cfg)
        untraced += warning_lines(self.deployment.code_warnings) + export_switches(model)
        verdict.untraced += [entry.text for entry in untraced]
        results.checks += weights_checks(self.deployment)
        results.checks += asked_checks(self.files[-1].options, asked or {})
        verdict.notes += [
            f'{package} {versions()[package]} was imported from {folder}, not from the installed distribution'
            for package, folder in other_copies().items()
        ]
        verdict.notes += self.deployment.replaced_kernels
        results.preprocessing = self.preprocessing()

    def add_notes(self, notes: Iterable[str]) -> None:
        """Add the notes that the verdict does not have: of several files each note is there once."""
        self.verdict.notes += [note for note in notes if note not in self.verdict.notes]

    @abc.abstractmethod
    def start(self, stack: contextlib.ExitStack) -> None:
        """Open both engines; whatever has to be closed is entered into the stack."""

    def inputs(self) -> Collection[Any]:
        """Return the inputs of both engines: the samples, unless a subclass makes others of them."""
        return self.samples

    def run(self, sample: Any) -> None:
        """Run both engines on one input and keep the results."""
        cases, pictures = self.cases(sample)
        self.results.cases += cases
        self.pictures += pictures

    def cases(self, sample: Any) -> tuple[list[Case], list[Any]]:
        """Run both engines on one input; a subclass with a `run` of its own may do without this.

        Returns:
            Cases, and what the report draws of them, each a `Pair`.
        """
        raise NotImplementedError

    def run_again(self, sample: Any) -> None:
        """Run both sides on the first input once more, after all others.

        If they agreed the first time and no longer do, a run changes what later runs compute.
        """
        if not all(case.passed for case in self.results.cases[:1]):
            return
        failures = [failure for case in self.cases(sample)[0] for failure in case.failures]
        if failures:
            self.results.reasons.append(f'{AGAIN} (state that runs change): {failures[0]}')

    def conclude(self) -> None:
        """Judge what single inputs cannot show: that nothing was compared, or too little was matched.

        Times and notes are added to the verdict, and `pictures` are cut to `max_drawn`.
        """
        verdict, results = self.verdict, self.results
        if self.by_rate and verdict.precision != 'fp32':
            half_bars.judge_match_rate(results, verdict, bool(self.engine.get('round_fp16')))
        elif self.by_rate:
            share = getattr(self.deployment.family, 'max_alone_share', MAX_ALONE_SHARE)
            results.cases, alone = accept_few_alone(results.cases, share)
            verdict.notes += [f'without a partner end to end: {line}' for line in alone]
        verdict.timing_ms = self.timing() if self.timed else {}
        results.reasons += self.reasons()
        verdict.notes += self.notes()
        self.pictures = self.pictures[: self.max_drawn]

    def limits(self) -> dict[str, Any]:
        """Return name -> limit of the contract, among other facts; {} if no case counts what is limited."""
        return {}

    def finish(self, library: str | None, strict: bool) -> Verdict:
        """Make findings of the results, and return the verdict.

        Args:
            library: 'installed': the claim may be one against installed libraries that ran in place of the
                repository's own; None: it may not.
            strict: whether what a graph cannot show of the user's code is a failure.
        """
        verdict = self.verdict
        verdict.findings += library_findings(verdict.subject['libraries_not_run'], library == 'installed')
        self.results.add_to(verdict)
        if strict:
            findings = (Finding('surroundings', 'untraced', False, text) for text in verdict.untraced)
            verdict.findings += findings
        if self.changed_files and not verdict.passed:
            changed = ', '.join(dict.fromkeys(self.changed_files))
            verdict.notes.append(f'changed since the export: {changed}')
        return verdict

    def timing(self) -> dict[str, float]:
        """Return title of PyTorch's side, and of the engine's -> milliseconds of a run; {} if not measured.

        They are the median of several runs, if there are several.
        """
        return {}

    def reasons(self) -> list[str]:
        """Return why the proof fails beyond single cases; [] if there is a reason already."""
        results, words = self.results, (self.unit, self.found_in, self.advice)
        return [] if results.reasons else total_reasons(results.cases, self.verdict.precision, *words)

    def notes(self) -> list[str]:
        """Return notes for the reader of the verdict, none of which is a failure."""
        return []


def class_lines(classes: Iterable[ModelClass]) -> list[str]:
    """Return a line for each class of a model that no installed library has, the user's first."""
    lines = {False: [], True: []}
    for entry in classes:
        lines[entry.ours].append(f'{entry.name} ({entry.place})')
    return [*lines[False], *(f'{line}, our implementation' for line in lines[True])]


def data_hashes(paths: Iterable[str | Path]) -> dict[str, dict[str, str]]:
    """Return the entry `data_sha256`: name -> hash of every file that ONNX files keep weights in.

    Names are paths from the folder of the ONNX file. The result is {} if there are no such files.
    """
    data_files = {
        Path(os.path.relpath(file, Path(path).parent)).as_posix(): file
        for path in paths
        for file in files.external_files(files.read(path), Path(path).parent).values()
    }
    hashes = {name: sha256_file(file) for name, file in sorted(data_files.items())}
    return {'data_sha256': hashes} if hashes else {}
