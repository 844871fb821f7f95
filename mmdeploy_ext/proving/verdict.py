"""The result of a proof as plain data: the table, the JSON file and the report page are three views of it.

The levels of a proof are 1 the graph and the metadata of a file, 2 tensors, 3 results, 4 a drive frame by
frame, 5 metrics of a data set; `results.py` has their rows.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmdeploy_ext.core.model_classes import ModelClass
    from mmdeploy_ext.proving.results import (
        Case,
        Check,
        GraphResult,
        MetricRow,
        PreprocessingResult,
        SequenceRow,
    )
    from mmdeploy_ext.proving.untraced import Untraced


@dataclasses.dataclass
class Verdict:
    """All levels of one proof.

    Attributes:
        subject: file, family, task, form, precision, config, checkpoint, hashes, versions, engine, as far as
            the kind of files has them: printed as they are.
        graphs: level 1: the comparison of every file's graph with a fresh export.
        structure: the other checks of level 1.
        preprocessing: samples prepared by the rule in the file and by the config's test pipeline, or
            voxels by the rule and by the layer of the model; None if nothing was compared.
        cases: levels 2 and 3.
        model_classes: classes of the model that no installed library has: the user's, and ours.
        sequence: level 4; empty for models that are not proven on a drive (PETR is, without a memory).
        metrics: level 5; empty when no data set was evaluated.
        timing_ms: title of PyTorch's side, and of the engine's -> median milliseconds of its runs, of a
            backbone those of one run; {} if none were measured.
        reasons: why the proof as a whole fails beyond single rows, e.g. that nothing at all was matched.
        notes: what the reader should know that is no failure.
        untraced: what a graph cannot show of the user's code; no failure.
        unreached: limits of the contract that no input reached, a line each; no failure.
        libraries_not_run: the repository's own copy of a library, with its version -> the installed one.
        against_installed: whether the claim is one against the installed libraries (`--library installed`).
    """

    subject: dict[str, Any]
    structure: list[Check] = dataclasses.field(default_factory=list)
    cases: list[Case] = dataclasses.field(default_factory=list)
    metrics: list[MetricRow] = dataclasses.field(default_factory=list)
    timing_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    reasons: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    sequence: list[SequenceRow] = dataclasses.field(default_factory=list)
    graphs: list[GraphResult] = dataclasses.field(default_factory=list)
    preprocessing: PreprocessingResult | None = None
    model_classes: list[ModelClass] = dataclasses.field(default_factory=list)
    untraced: list[Untraced] = dataclasses.field(default_factory=list)
    unreached: list[str] = dataclasses.field(default_factory=list)
    libraries_not_run: dict[str, str] = dataclasses.field(default_factory=dict)
    against_installed: bool = False

    @property
    def precision(self) -> str:
        """The precision, 'fp32', 'fp16', 'bf16' or 'int8', by whose bars the figures are judged."""
        return str(self.subject.get('precision') or 'fp32')

    @property
    def proven(self) -> bool:
        """Whether the proof passed by the bars of float32; files of less precision are never proven."""
        return self.passed and self.precision == 'fp32'

    @property
    def title(self) -> str:
        """The claim: 'PROVEN', or 'WITHIN FP16 BARS' of a precision, with 'NOT' if the proof failed."""
        claim = 'PROVEN' if self.precision == 'fp32' else f'WITHIN {self.precision.upper()} BARS'
        if not self.passed:
            return f'NOT {claim}'
        if self.libraries_not_run:
            claim = f'{claim} against the installed {" and ".join(self.libraries_not_run.values())}'
        return claim

    @property
    def graph_text(self) -> str:
        """Level 1 of the graphs, in one line."""
        failed = [graph.text for graph in self.graphs if not graph.passed]
        if failed or len(self.graphs) == 1:
            return '; '.join(failed or [self.graphs[0].text])
        if len(reasons := {graph.left_out for graph in self.graphs}) == 1 and '' not in reasons:
            return reasons.pop()
        nodes = sum(graph.nodes for graph in self.graphs)
        remarks = [graph.text for graph in self.graphs if graph.left_out]
        same = sum(graph.equal for graph in self.graphs)
        summary = f'{same} of {len(self.graphs)} graphs equal to fresh exports ({nodes:,} nodes)'
        return '; '.join([summary, *remarks])

    @property
    def passed(self) -> bool:
        """Whether everything passed, and something was compared at all, on an input that was not traced."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """Every reason why the proof fails; empty if it passes."""
        reasons = []
        if not self.against_installed:
            reasons += [f"the repository's own {own} did not run" for own in self.libraries_not_run]
        reasons += [f'graph: {graph.text}' for graph in self.graphs if not graph.passed]
        if not self.graphs:
            reasons.append('the graph was not compared with a fresh export')
        reasons += self.reasons
        reasons += [f'structure: {check.name}' for check in self.structure if not check.passed]
        if not self.structure:
            reasons.append('structure was not checked')
        if self.preprocessing is None:
            reasons.append("preprocessing was not compared with the config's test pipeline")
        elif not self.preprocessing.passed:
            reasons.append(f'preprocessing: {self.preprocessing.text}')
        if all(case.traced for case in self.cases):
            reasons.append('no input that the exporter did not see was compared')
        cases = self.cases
        if not all(row.passed for row in self.sequence):
            cases = cases[1:]  # the first case was made of the sequence, whose reasons are listed below
        for case in cases:
            reasons += case.failures
        for row in self.sequence:
            reasons += [f'{row.title}: {reason}' for reason in row.reasons]
        return reasons + [f'{row.name}: {row.difference_text}' for row in self.metrics if not row.passed]

    def summary(self) -> dict[str, Any]:
        """Return the figures of all cases together.

        Counts are `inputs`, `sequence_frames`, `unseen_inputs` (that were not traced), `checks`, `tensors`
        and `images` (rows of level 2 and of level 3), and how many of the last three failed
        (`checks_failed` ...); of results `reference`, `matched`, `missing` and `extra`. Of all rows
        `worst_rel` and `worst_score`, which are differences, are the largest, `worst_iou` is the smallest;
        they are None if nothing was compared. `histogram` is the sum of those of all tensors, [] without
        any.
        """
        tensors = [row for case in self.cases for row in case.tensors]
        images = [row for case in self.cases for row in case.detections]
        names = 'reference', 'matched', 'missing', 'extra'
        histograms = (row.histogram for row in tensors if row.histogram)
        return dict(
            inputs=len(self.cases),
            sequence_frames=max((row.frames for row in self.sequence), default=0),
            unseen_inputs=sum(not case.traced for case in self.cases),
            checks=len(self.structure),
            checks_failed=sum(not check.passed for check in self.structure),
            tensors=len(tensors),
            tensors_failed=sum(not row.passed for row in tensors),
            worst_rel=max((row.max_rel for row in tensors if row.max_rel is not None), default=None),
            images=len(images),
            images_failed=sum(not row.passed for row in images),
            **{name: sum(getattr(row, name) for row in images) for name in names},
            worst_iou=min((row.worst_iou for row in images), default=None),
            worst_score=max((row.worst_score for row in images), default=None),
            histogram=[sum(column) for column in zip(*histograms, strict=True)],
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; NaN and infinity, which JSON has not, become null.

        They are `verdict`, which is `title` in small letters, `summary`, and all attributes.
        """
        first = dict(verdict=self.title.lower(), summary=self.summary())
        content = first | dataclasses.asdict(self)
        content['cases'] = [case.to_json() for case in self.cases]
        for row, entry in zip(self.sequence, content['sequence'], strict=True):
            entry.update(passed=row.passed, title=row.title)
        for graph, entry in zip(self.graphs, content['graphs'], strict=True):
            entry.update(text=graph.text, passed=graph.passed)
            for difference, plain in zip(graph.differences, entry['differences'], strict=True):
                plain['text'] = difference.text
        for untraced, entry in zip(self.untraced, content['untraced'], strict=True):
            entry['text'] = untraced.text
        if self.preprocessing is not None:
            content['preprocessing'].update(text=self.preprocessing.text, passed=self.preprocessing.passed)
        for entry in content['metrics']:
            entry['difference'] = abs(entry['candidate'] - entry['reference'])
        return plain_json(content)


def plain_json(value: Any) -> Any:
    """Return a nested value in the types that JSON has; NaN and infinity, which it has not, are None.

    Tuples become lists, numbers of numpy plain ones, keys of dicts and all other objects texts. ValueError:
    an array of numpy without just one value; make a list of it first.
    """
    if isinstance(value, dict):
        return {str(key): plain_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, 'item'):
        return plain_json(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
