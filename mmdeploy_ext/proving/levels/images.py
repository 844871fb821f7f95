"""Levels 1 to 3 (graph, tensors, results) of a model of pictures, on the traced input and on others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.exporting.files import make_metadata
from mmdeploy_ext.exporting.model import check_options, rule_of
from mmdeploy_ext.proving import file_checks, half_bars
from mmdeploy_ext.proving.inputs.inputs import proof_inputs
from mmdeploy_ext.proving.levels.cases import run_case, timing
from mmdeploy_ext.proving.levels.exported_file import (
    ExportedFile,
    check_file,
    engine_options,
    notes_on_export,
    open_file,
)
from mmdeploy_ext.proving.levels.proof import AGAIN, Proof
from mmdeploy_ext.proving.preprocessing.pictures import compare_pictures
from mmdeploy_ext.proving.provenance import normalisation_notes
from mmdeploy_ext.proving.references import (
    ImageReference,
    changed_children,
    empty_reference,
    reference_with_empty_image,
    zoomed_on_object,
)
from mmdeploy_ext.proving.substitution import border_names

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from mmdeploy_ext.preprocess.pictures import PreparedImage
    from mmdeploy_ext.proving.inputs.inputs import ProofInput
    from mmdeploy_ext.proving.results import Case, Check, GraphResult, Pair, PreprocessingResult


class ImageProof(Proof):
    """A proof of one file. Its samples are (title, BGR picture); the first counts as the one that was traced.

    `Proof` describes the methods.

    Attributes:
        picture_files: paths of the samples, if they were read from files.
        export_options: options of the file's export, from its metadata.
        backend: the engine with the file, active.
        first: PyTorch's side of the first input.
        prepared: PyTorch's sides of inputs that were computed before their turn.
    """

    max_drawn = 8

    def __init__(self, *arguments: Any, picture_files: Sequence[str | Path] = ()) -> None:
        """Read the file as `Proof` does, which has the other arguments.

        For a float16 file the engine gets the options of `half_bars.proof_engine`.
        """
        super().__init__(*arguments)
        self.engine = engine_options(self.files, self.kind, self.engine)
        self.picture_files = picture_files

    def read(self, path: str) -> ExportedFile:
        """Read the file; a ModelFileError refuses one whose form or options the model does not have."""
        file, deployment = open_file(path), self.deployment
        metadata, family = file.metadata, deployment.family
        metadata.require(path, family.name, family.forms)
        self.export_options = family.exported_options(metadata.options, path)
        if self.export_options.form != metadata.form:
            raise ModelFileError(
                f'{path}: says that its form is {metadata.form!r} and that it was exported as '
                f'{self.export_options.form!r}; export it again'
            )
        with file_checks.option_errors(path):
            self.export_options.check()
            check_options(self.export_options, deployment.cfg, family, deployment.model)
        return file

    def facts(self) -> dict[str, Any]:
        """Return hash, form and shape ('fixed', 'dynamic' ...) of the file, and engine, for the verdict."""
        (file,) = self.files
        shape = 'fixed'
        if file.options['dynamic']:
            shape = 'dynamic'
        elif file.options.get('dynamic_batch'):
            shape = 'dynamic batch, fixed size'
        return dict(
            file_sha256=sha256_file(file.path),
            form=file.metadata.form,
            shape=shape,
            engine=self.kind,
            **file.facts,
        )

    def graph(self, file: ExportedFile) -> GraphResult:
        export = file_checks.of_images(self.deployment, self.export_options, self.samples[0][1])
        return file_checks.compare_with_fresh_export(file.model, export)

    def checks(self, file: ExportedFile) -> list[Check]:
        contract = make_metadata(self.deployment, self.export_options).spec
        rule = rule_of(self.deployment, self.export_options)
        checks, notes = check_file(self.deployment, file, rule, contract)
        self.add_notes(notes)
        return checks

    def preprocessing(self) -> PreprocessingResult:
        """Compare pictures prepared by the rule in the file with those of the config's test pipeline.

        They are `picture_files`, or the first sample without any, and two generated ones. If all are equal,
        what the pipeline collects of the first one is kept in `deployment.collected`.
        """
        (file,), deployment = self.files, self.deployment

        def feeds(image: PreparedImage, batch: int) -> Mapping[str, np.ndarray]:
            return deployment.family.feeds([image] * batch, rescale=True)

        result, by_pipeline = compare_pictures(
            deployment.cfg,
            file.metadata,
            self.picture_files,
            self.samples[0][1],
            deployment.normalisation,
            feeds,
        )
        if by_pipeline:
            self.deployment.collected = dict(by_pipeline[0].collected)
        return result

    def start(self, stack: contextlib.ExitStack) -> None:
        """Open the file on the engine; it is closed with the stack."""
        (file,), self.first = self.files, None
        self.prepared: list[ImageReference] = []
        options = {key: value for key, value in self.engine.items() if key != 'engine'}
        if self.takes_inner_tensors():
            options['inner_tensors'] = border_names(file.model)
        self.backend = stack.enter_context(build_backend(self.kind, file.path, **options))
        self.verdict.subject['precision'] = self.backend.computes_in or file.metadata.precision

    def takes_inner_tensors(self) -> bool:
        """Return whether the engine gives the file's own tensors: ONNX Runtime on the CPU, in float32."""
        if self.kind != 'OnnxRuntimeBackend' or self.files[0].metadata.precision != 'fp32':
            return False
        return self.engine.get('providers') in (None, half_bars.CPU, [half_bars.CPU], (half_bars.CPU,))

    def inputs(self) -> list[ProofInput]:
        """Return inputs made of the pictures, a plain one, and one that an object fills.

        The last is there if the sizes of regions choose levels of a pyramid. A plain picture in which PyTorch
        finds nothing is an input, and takes a place in a batch of three, if there is one.
        """
        deployment, options = self.deployment, self.export_options
        inputs = list(proof_inputs(deployment, options, self.samples))
        traced = ImageReference(deployment, inputs[0])
        inputs[0] = traced.input
        self.prepared.append(traced)
        if deployment.family.results_left_out(self.files[0].options):
            return inputs
        if zoomed := zoomed_on_object(deployment, options, traced):
            inputs.append(zoomed)
        empty, note = empty_reference(deployment, options)
        if empty is None:
            self.verdict.notes.append(note)
            return inputs
        self.prepared.append(empty)
        if batch := reference_with_empty_image(deployment, inputs, empty.input):
            index, reference = batch
            inputs[index] = reference.input
            self.prepared.append(reference)
        return [*inputs, empty.input]

    def cases(self, sample: ProofInput) -> tuple[list[Case], list[Pair]]:
        """Run both engines on one input; return its case, and pairs of results to draw."""
        prepared = (reference for reference in self.prepared if reference.input is sample)
        reference = next(prepared, None) or ImageReference(self.deployment, sample)
        self.first = self.first or reference
        case, pairs = run_case(reference, self.backend)
        reference.forget()
        return [case], pairs

    def run_again(self, sample: ProofInput) -> None:
        again = ImageReference(self.deployment, sample)
        self.prepared = [again]
        super().run_again(sample)
        if names := changed_children(self.first.sums, again.sums):
            self.results.reasons.append(f'{AGAIN} (state that runs change): outputs of {", ".join(names)}')

    def timing(self) -> dict[str, float]:
        """Return median milliseconds on the first input by title; {} if a case failed.

        The title of PyTorch's says that its post-processing is timed, too, the engine's that its graph is.
        """
        passed = all(case.passed for case in self.results.cases)
        return timing(self.first, self.backend) if passed else {}

    def limits(self) -> dict[str, Any]:
        (file,) = self.files
        return {**file.metadata.postprocess, **file.options}

    def notes(self) -> list[str]:
        notes = [
            *normalisation_notes(self.deployment),
            *notes_on_export(self.deployment, self.files[0].metadata),
        ]
        notes += self.substitution_notes()
        if left_out := self.deployment.family.results_left_out(self.files[0].options):
            notes.append(left_out)
        return notes

    def substitution_notes(self) -> list[str]:
        """Return that the file's own tensors were not put in, and results that are a choice among equals."""
        cases = self.results.cases
        if self.verdict.precision != 'fp32':
            return []
        notes = list(dict.fromkeys(note for case in cases for note in case.notes))
        if unjudged := self.deployment.family.unjudged(self.deployment.model):
            notes.append(unjudged)
        if not any(case.substituted for case in cases):
            notes.insert(
                0, "the file's own tensors were not put into the user's code: results end to end decide"
            )
        return notes
