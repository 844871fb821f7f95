"""What every proof has: level 1 of its files, inputs for both engines, and the judgement of the whole."""

from __future__ import annotations

import abc
import dataclasses
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.core.model_classes import changed_classes
from mmdeploy_ext.core.versions import other_copies, versions, versions_with_places
from mmdeploy_ext.graph.io.files import external_files, read
from mmdeploy_ext.graph.signature import count_nodes
from mmdeploy_ext.proving import half
from mmdeploy_ext.proving.enough import IMAGES, whole_reasons
from mmdeploy_ext.proving.provenance import asked_checks, hash_checks
from mmdeploy_ext.proving.results import EDITED, GraphResult
from mmdeploy_ext.proving.verdict import Verdict

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.proving.results import Case, Check, PreprocessingResult


class Proof(abc.ABC):
    """One proof of the files of one model.

    Attributes:
        unit: what an input is called.
        found_in: what results are found in.
        advice: what to do where too little was found.
        by_rate: results of files in less than float32 are judged by the share that matched.
        most_pictures: for the report.
        files: what `read` gave for each path.
        verdict: what was found so far.
        pictures: for the report.
    """

    unit: ClassVar[str] = 'input'
    found_in: ClassVar[str] = 'image'
    advice: ClassVar[str] = IMAGES
    by_rate: ClassVar[bool] = True
    most_pictures: ClassVar[int] = 4

    def __init__(
        self,
        deployment: Deployment,
        paths: Sequence[str],
        samples: Collection[Any],
        engine: Mapping[str, Any],
    ) -> None:
        """Read the files; see `ladder.prove` for the arguments.

        Raises:
            ModelFileError: a file is not there, not ours, or of another model family.
        """
        self.deployment, self.paths, self.samples, self.engine = deployment, paths, samples, dict(engine)
        self.files = [self.read(path) for path in paths]
        self.verdict = Verdict(self._subject())
        self.pictures: list[Any] = []

    @abc.abstractmethod
    def read(self, path: str) -> Any:
        """Read one file: an object with what it holds and says about itself.

        These are `path`, `model`, `name` (of its graph, '' where the model is one file), `options` (that it
        was exported with), `hashes` ('checkpoint' and 'config' -> hash that it was made from) and
        `model_classes` (of its metadata).
        """

    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what the subject of the verdict says of this kind of files: their options and hashes."""

    @abc.abstractmethod
    def graph(self, file: Any) -> GraphResult:
        """Compare the graph of a file with a fresh export."""

    @abc.abstractmethod
    def checks(self, file: Any) -> list[Check]:
        """Return whether a file is valid, and its metadata agree with contract, config and options."""

    @abc.abstractmethod
    def preprocessing(self) -> PreprocessingResult:
        """Compare samples prepared by the rule in the files with those of the config's own test pipeline.

        The reference side calls no code of `preprocess/`. Of a model that takes voxels it is the
        voxelisation.
        """

    def _subject(self) -> dict[str, Any]:
        deployment, paths = self.deployment, self.paths
        return dict(
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
        )

    def check(self, edited: bool = False, asked: Mapping[str, Any] | None = None) -> Verdict:
        """Judge level 1 of every file; see `ladder.prove` for the arguments."""
        verdict = self.verdict
        for file in self.files:
            if edited:
                graph = GraphResult(file.name, count_nodes(file.model), False, by_inputs=EDITED)
            else:
                graph = self.graph(file)
            hashes, notes = hash_checks(self.deployment, file.hashes, graph.equal)
            prefix = f'{file.name}: ' if file.name else ''
            verdict.graphs.append(graph)
            verdict.structure += [
                dataclasses.replace(one, name=f'{prefix}{one.name}') for one in (*self.checks(file), *hashes)
            ]
            notes += changed_classes(file.model_classes, self.deployment.model_classes)
            verdict.notes += [note for note in notes if note not in verdict.notes]
        verdict.model_classes = list(self.deployment.model_classes)
        verdict.differing_methods = list(self.deployment.differing_methods)
        verdict.structure += asked_checks(self.files[-1].options, asked or {})
        verdict.notes += [
            f'{package} {versions()[package]} was imported from {folder}, not from the installed distribution'
            for package, folder in other_copies().items()
        ]
        verdict.notes += self.deployment.replaced_kernels
        verdict.preprocessing = self.preprocessing()
        return verdict

    @abc.abstractmethod
    def start(self, stack: contextlib.ExitStack) -> None:
        """Open both engines; what has to be closed goes on the stack."""

    def inputs(self) -> Collection[Any]:
        """Return what both engines are given: the samples, where nothing is made of them."""
        return self.samples

    def more_inputs(self) -> Collection[Any]:
        """Return further inputs, where those of `inputs` are too few to judge by; asked once, after them."""
        return ()

    def run(self, one: Any) -> None:
        """Give one input to both engines and keep what was found."""
        cases, pictures = self.cases(one)
        self.verdict.cases += cases
        self.pictures += pictures

    def cases(self, one: Any) -> tuple[list[Case], list[Any]]:
        """Give one input to both engines: one case, or two where a second run gave other bits; pictures."""
        raise NotImplementedError

    def conclude(self) -> None:
        """Judge what single inputs cannot show: that nothing was compared, or too little was found."""
        verdict = self.verdict
        if self.by_rate and verdict.precision != 'fp32':
            half.judge_whole(verdict, bool(self.engine.get('round_fp16')))
        verdict.timing_ms = self.timing()
        verdict.reasons += self.reasons()
        verdict.notes += self.notes()
        self.pictures = self.pictures[: self.most_pictures]

    def timing(self) -> dict[str, float]:
        """Return title of an engine -> median milliseconds."""
        return {}

    def reasons(self) -> list[str]:
        """Return why the proof as a whole fails, where nothing said so yet."""
        verdict, words = self.verdict, (self.unit, self.found_in, self.advice)
        return [] if verdict.reasons else whole_reasons(verdict.cases, verdict.precision, *words)

    def notes(self) -> list[str]:
        """Return what the reader should know that is no failure."""
        return []


def data_hashes(paths: Iterable[str | Path]) -> dict[str, dict[str, str]]:
    """Return `data_sha256`: name -> hash of every file that ONNX files keep weights in, if there are any."""
    files = {file for path in paths for file in external_files(read(path), Path(path).parent).values()}
    found = {file.name: sha256_file(file) for file in sorted(files)}
    return {'data_sha256': found} if found else {}
