"""The verdict of a proof as plain data: the console, the JSON file and the report page are views of it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

LEVELS = 'file', 'surroundings', 'outputs', 'metrics'
"""What a finding is about: graphs; metadata, preprocessing and weights; tensors and results; a data set."""
REQUIRED = dict(
    file='the graph was not compared with a fresh export',
    surroundings='the file was not checked',
    outputs='nothing was compared',
)
"""Level without which nothing is proven -> the failure of a verdict that has no finding of it."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One comparison.

    Attributes:
        level: one of `LEVELS`.
        subject: what was compared, such as 'other size, batch 2 1x3x320x448: cls_score_0'; '' of what is
            said about the proof as a whole.
        passed: whether it was as it has to be.
        text: why it failed, or what was found.
        figures: what was measured. Of a tensor they are `tensor`, `max_abs`, `max_rel`, `cosine` and
            `tolerance`, of results `image`, `reference`, `matched`, `missing`, `extra`, `worst_iou` and so
            on, as in `results.DetectionRow`; of those by the file's own tensors `substituted` in place of
            `image`, of boxes between stages `inner`. All have `case`, the number of the input, its name
            `input`, `input_shape` and `traced`.
    """

    level: str
    subject: str
    passed: bool
    text: str = ''
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def line(self) -> str:
        """Subject and text."""
        return ': '.join(filter(None, (self.subject, self.text)))


@dataclasses.dataclass
class Verdict:
    """The result of one proof.

    Attributes:
        subject: file, family, task, precision, config, checkpoint, hashes, versions, engine, as far as the
            kind of files has them: printed as they are.
        findings: every comparison.
        untraced: what a graph cannot show of the user's code, a line each; no failure.
        unreached: limits of the contract that no input reached, a line each; no failure.
        notes: what the reader should know that is no failure.
        timing_ms: title of PyTorch's side, and of the engine's -> median milliseconds of its runs; {} if none
            were measured.
        model_classes: classes of the model that no installed library has, a line each.
        series: 'teacher-forced' or 'free-running' -> figures of each frame of a drive,
            `results.SequenceRow.series`.
    """

    subject: dict[str, Any]
    findings: list[Finding] = dataclasses.field(default_factory=list)
    untraced: list[str] = dataclasses.field(default_factory=list)
    unreached: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    timing_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    model_classes: list[str] = dataclasses.field(default_factory=list)
    series: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def precision(self) -> str:
        """The precision, 'fp32', 'fp16', 'bf16' or 'int8', by whose bars the figures are judged."""
        return str(self.subject.get('precision') or 'fp32')

    @property
    def failures(self) -> list[str]:
        """Every reason why the proof fails; empty if it passes."""
        absent = [text for level, text in REQUIRED.items() if not self.of(level)]
        return [finding.line for finding in self.findings if not finding.passed] + absent

    @property
    def passed(self) -> bool:
        """Whether everything passed, and something was compared at each level."""
        return not self.failures

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
        if not_run := self.subject.get('libraries_not_run'):
            claim = f'{claim} against the installed {" and ".join(not_run.values())}'
        return claim

    def of(self, level: str) -> list[Finding]:
        """Return the findings of a level."""
        return [finding for finding in self.findings if finding.level == level]

    def with_figure(self, name: str) -> list[Finding]:
        """Return the findings that have a figure, e.g. 'tensor' or 'image'."""
        return [finding for finding in self.findings if name in finding.figures]

    def summary(self) -> dict[str, Any]:
        """Return the figures of all findings together; the largest and smallest are None without any."""
        inputs = {f.figures['case']: f.figures['traced'] for f in self.with_figure('case')}
        images = [finding.figures for finding in self.with_figure('image')]
        frames = [finding.figures['frames'] for finding in self.with_figure('frames')]

        def figures(kind: str, name: str) -> list[float]:
            values = (finding.figures.get(name) for finding in self.with_figure(kind))
            return [value for value in values if value is not None]

        return dict(
            inputs=len(inputs),
            unseen_inputs=sum(not traced for traced in inputs.values()),
            sequence_frames=max(frames, default=0),
            checks=len(self.of('surroundings')),
            failed=len(self.failures),
            **{
                name: sum(entry[name] for entry in images)
                for name in ('reference', 'matched', 'missing', 'extra')
            },
            worst_rel=max(figures('tensor', 'max_rel'), default=None),
            worst_iou=min(figures('image', 'worst_iou'), default=None),
            worst_distance=max(figures('image', 'worst_distance'), default=None),
            worst_score=max(figures('image', 'worst_score'), default=None),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; NaN and infinity, which JSON has not, become null.

        They are `verdict`, which is `title` in small letters, `summary`, and all attributes.
        """
        first = dict(verdict=self.title.lower(), summary=self.summary())
        return plain_json(first | dataclasses.asdict(self))


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
