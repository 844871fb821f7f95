"""Levels 1 to 3 of a model of single pictures, on inputs that its export never saw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.exporting import deployment as deploy
from mmdeploy_ext.exporting.files import make_metadata
from mmdeploy_ext.proving import fresh
from mmdeploy_ext.proving.enough import excused_ties, ties_of, too_many_ties
from mmdeploy_ext.proving.inputs.inputs import more_inputs, proof_inputs
from mmdeploy_ext.proving.levels.cases import run_case, timing
from mmdeploy_ext.proving.levels.exported import ExportedFile, ExportedProof
from mmdeploy_ext.proving.levels.other_limits import NothingPasses, Trial, Trials
from mmdeploy_ext.proving.levels.preprocessing import compare_pictures
from mmdeploy_ext.proving.provenance import normalisation_notes
from mmdeploy_ext.proving.references import (
    Reference,
    empty_reference,
    reference_with_empty_image,
    zoomed_reference,
)

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.preprocess.pictures import PreparedImage
    from mmdeploy_ext.proving.inputs.inputs import ProofInput
    from mmdeploy_ext.proving.results import Case, Pair, PreprocessingResult


class ImageProof(ExportedProof):
    """A proof of one file. Its samples are (title, BGR picture); the first is taken as the traced one.

    Attributes:
        picture_files: of the samples, where these are of files.
    """

    most_pictures = 8

    def __init__(self, *given: Any, picture_files: Sequence[str | Path] = ()) -> None:
        """Read the file; see `Proof`."""
        super().__init__(*given)
        self.picture_files = picture_files

    def read(self, path: str) -> ExportedFile:
        file, deployment = super().read(path), self.deployment
        metadata, family = file.metadata, deployment.family
        metadata.require(path, family.name, family.forms)
        self.asked_for = family.written(metadata.options, path)
        if self.asked_for.form != metadata.form:
            raise ModelFileError(
                f'{path}: says that its form is {metadata.form!r} and that it was exported as '
                f'{self.asked_for.form!r}; export it again'
            )
        with fresh.options_of(path):
            self.asked_for.check()
            deploy.check_options(self.asked_for, deployment.cfg, family, deployment.model)
        return file

    def facts(self) -> dict[str, Any]:
        (file,) = self.files
        return dict(
            file_sha256=sha256_file(file.path),
            form=file.metadata.form,
            shape=_shape_title(file.options),
            engine=self.kind,
            **super().facts(),
        )

    def expected(self, file: ExportedFile) -> tuple[fresh.Reference, Any, GraphSpec]:
        deployment, options = self.deployment, self.asked_for
        reference = fresh.of_images(deployment, options, file.metadata, self.samples[0][1])
        exported = make_metadata(deployment, fresh.exported_with(options, file.metadata))
        contract = fresh.contract_after(exported.spec, file.metadata)
        return reference, deploy.rule_of(deployment, options), contract

    def preprocessing(self) -> PreprocessingResult:
        """Compare the rule of the file with the config's pipeline on pictures; see `compare_pictures`."""
        (file,), deployment = self.files, self.deployment

        def feeds(image: PreparedImage, batch: int) -> Mapping[str, np.ndarray]:
            return deployment.family.feeds([image] * batch, True)

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
        (file,), self.first, self.empty, self.prepared = self.files, None, None, []
        options = {key: value for key, value in self.engine.items() if key != 'engine'}
        self.backend = stack.enter_context(build_backend(self.kind, file.path, **options))
        self.verdict.subject['precision'] = self.backend.computes_in or file.metadata.precision

    def inputs(self) -> Sequence[ProofInput]:
        """See `Proof.inputs`: what is made of the pictures, and a plain one."""
        inputs, note = proof_inputs(self.deployment, self.asked_for, self.samples), ''
        if not self.deployment.family.results_left_out(self.files[0].options):
            inputs = self._with_zoomed_picture(inputs)
            self.empty, note = empty_reference(self.deployment, self.asked_for)
        if self.empty:
            self.prepared.append(self.empty)
            inputs = [*self._with_empty_image(inputs), self.empty.input]
        trials = self._trials()
        if note and not any(isinstance(one, NothingPasses) for one in trials):
            self.verdict.notes.append(note)
        return [*inputs, *trials]

    def _with_zoomed_picture(self, inputs: Sequence[ProofInput]) -> list[ProofInput]:
        """Return the inputs, with a picture that an object fills if sizes choose the levels of a pyramid."""
        inputs, deployment = list(inputs), self.deployment
        if deployment.family.sizes_choose_levels(deployment.model):
            traced = Reference(deployment, inputs[0])
            zoomed = zoomed_reference(deployment, self.asked_for, traced)
            self.prepared += [traced, *([zoomed] if zoomed else [])]
            inputs += [zoomed.input] if zoomed else []
        return inputs

    def _with_empty_image(self, inputs: Sequence[ProofInput]) -> list[ProofInput]:
        """Return the inputs with a plain picture in a batch of three, where there is one."""
        inputs = list(inputs)
        beside = reference_with_empty_image(self.deployment, inputs, self.empty.input)
        if beside:
            index, reference = beside
            inputs[index] = reference.input
            self.prepared.append(reference)
        return inputs

    def _trials(self) -> list[Trial]:
        """Return the cases of exports with other limits: of a file that is what the exporter makes."""
        if not all(graph.equal for graph in self.verdict.graphs):
            return []
        file = self.files[0].model if self.verdict.precision == 'fp32' else None
        trials = Trials(self.deployment, self.asked_for, self.samples[0], file)
        return trials.cases(finds_nothing=self.empty is not None)

    def more_inputs(self) -> Sequence[ProofInput]:
        """See `Proof.more_inputs`: of ten more pictures, where ties are a larger share than the bar allows.

        One decision of a suppression is 0.4 % of the 500 results that five pictures have: a share of so few
        says little. The bar stays what it is, of the results of all.
        """
        cases = self.verdict.cases
        if not (self.verdict.passed and too_many_ties(cases)):
            return []
        ties, total = ties_of(cases)
        self.verdict.notes.append(f'{ties} of {total} results were ties: more pictures were taken')
        return more_inputs(self.deployment, self.asked_for, self.samples[0])

    def run(self, one: ProofInput | Trial) -> None:
        if isinstance(one, Trial):
            self.verdict.trials.append(one.case())
        else:
            super().run(one)

    def cases(self, one: ProofInput) -> tuple[list[Case], list[Pair]]:
        prepared = [reference for reference in self.prepared if reference.input is one]
        reference = prepared[0] if prepared else Reference(self.deployment, one)
        self.first = self.first or reference
        found = run_case(reference, self.backend)
        reference.forget()
        return found

    def timing(self) -> dict[str, float]:
        """See `Proof.timing`: of the first input, where all passed."""
        passed = all(case.passed for case in self.verdict.cases)
        return timing(self.first, self.backend) if passed else {}

    def reasons(self) -> list[str]:
        """See `Proof.reasons`: ties are judged by themselves where limits are others."""
        return super().reasons() or excused_ties(self.verdict.trials)

    def notes(self) -> list[str]:
        left_out = self.deployment.family.results_left_out(self.files[0].options)
        return [*normalisation_notes(self.deployment), *super().notes(), *[left_out] * bool(left_out)]


def _shape_title(options: Mapping[str, Any]) -> str:
    if options['dynamic']:
        return 'dynamic'
    return 'dynamic batch, fixed size' if options.get('dynamic_batch') else 'fixed'
