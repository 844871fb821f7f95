"""The results of a zoo: a record for each config, a JSON file of all, and counts."""

import collections
import dataclasses
import re
import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext.base.errors import ExportError, UsageError, one_line
from mmdeploy_ext.base.files import read_json, write_json
from mmdeploy_ext.base.source_code import versions

NO_FAMILY = 'no family'
NOT_BUILT = 'cannot be built'
REFUSED = 'a part refused by name'
NO_KERNEL = 'no CPU kernel in mmcv'
TORCH_FAILS = 'PyTorch itself fails'
NOT_EXPORTED = 'export fails'
NOT_PROVEN = 'not proven'
TIME, MEMORY, CRASH = 'out of time', 'out of memory', 'the process died'
REASONS = (
    NO_FAMILY, NOT_BUILT, REFUSED, NO_KERNEL, TORCH_FAILS, NOT_EXPORTED, NOT_PROVEN, TIME, MEMORY, CRASH,
)  # fmt: skip
"""Values of `Outcome.reason` in the order of counts."""
EXPORT_KINDS = ('fixed', 'dynamic')
"""One input size (the only kind for sweeps); any size and batch."""
CPU = re.compile(
    r'not implemented on (the )?CPU|implementation for device cpu|compiled with (GPU|CUDA)', re.IGNORECASE
)
SITE_PACKAGES = re.compile(r'[^\s\'"]*/site-packages/(\w+/\.mim/configs/)?')
"""Path of an installed file or config up to its library."""
UNREADABLE = ('the model cannot be built', 'cannot be read', 'syntax error')
"""Words in messages about configs without a model."""
MAX_CHARACTERS = 2000
"""Kept characters: the first of a message, the last of a trace or log."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one export.

    Attributes:
        reason: one of `REASONS` unless proven.
        why: failure of the proof, error message, trace or end of the log; '' if proven.
        shape: (H, W) of the input, pixels; (0, 0) for sweeps, and after an error.
        inputs: number of cases of the proof.
        reference: PyTorch's detections from `score_thr` of `matching.match_lists` on, in all samples.
        matched: number of these with a partner.
        fewest: smallest number of these in a sample.
        classes: different classes in PyTorch's results of up to eight samples; 0 before 2026-11-26.
        worst_rel: largest difference of a tensor, relative to its columns' largest absolute value, or None.
        worst_iou: smallest IoU of a pair, 1.0 without a pair; None for 3D boxes.
        worst_score: largest score difference of a pair, or None.
        worst_distance: largest distance of a pair's centres in 3D, m, or None.
        seconds: CPU time of the process without children.
    """

    proven: bool = False
    reason: str = ''
    why: str = ''
    shape: tuple[int, int] = (0, 0)
    inputs: int = 0
    reference: int = 0
    matched: int = 0
    fewest: int = 0
    classes: int = 0
    worst_rel: float | None = None
    worst_iou: float | None = None
    worst_score: float | None = None
    worst_distance: float | None = None
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Record:
    """The result of one config.

    Attributes:
        config: name in the zoo.
        parts: see `configs.part_types`.
        notes: changes of the config by the export, such as removed test-time augmentation.
        family: '' if the model was not built.
        task: see `Family.task`.
        own_kernels: classes of the model without a CPU kernel in their library; PyTorch ran them with this
            project's.
        fixed: outcome with one input size, or None.
        dynamic: outcome with any size and batch, or None.
        same_as: the proven config that differs in training alone, or ''.
        made_from: `config_proof.origin_digest`.
    """

    config: str
    parts: dict[str, str]
    notes: tuple[str, ...] = ()
    family: str = ''
    task: str = ''
    own_kernels: tuple[str, ...] = ()
    fixed: Outcome | None = None
    dynamic: Outcome | None = None
    same_as: str = ''
    made_from: str = ''

    @property
    def proven(self) -> bool:
        return self.fixed is not None and self.fixed.proven

    def write(self, path: Path) -> None:
        """Write the record as JSON, atomically."""
        write_json(path, dataclasses.asdict(self))


def record_from_json(content: Mapping[str, Any]) -> Record:
    """Return the record of a JSON object; unknown keys are ignored."""
    fields = _fields_of(Record, content)
    for kind in EXPORT_KINDS:
        if fields.get(kind) is not None:
            outcome = _fields_of(Outcome, fields[kind])
            fields[kind] = Outcome(**outcome | dict(shape=tuple(outcome.get('shape', (0, 0)))))
    tuples = {name: tuple(fields.get(name, ())) for name in ('notes', 'own_kernels')}
    return Record(**fields | tuples)


def _fields_of(record_type: type, content: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(record_type)]
    return {name: content[name] for name in names if name in content}


def read_record(path: Path) -> Record | None:
    """Return the record of a JSON file; None if missing or damaged."""
    try:
        return record_from_json(read_json(path))
    except (UsageError, KeyError, TypeError):
        return None


def outcome_of_error(error: Exception) -> Outcome:
    """Return the outcome of an export's error."""
    text, causes, cause = portable(one_line(error)), [], error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(CPU.search(str(cause)) for cause in causes):
        reason = NO_KERNEL
    elif any(isinstance(cause, MemoryError) for cause in causes):
        reason = MEMORY
    elif isinstance(error, UsageError):
        reasons = dict.fromkeys(UNREADABLE, NOT_BUILT) | {'belongs to no family': NO_FAMILY}
        reason = next((reason for words, reason in reasons.items() if words in text), REFUSED)
    elif isinstance(error, ExportError):
        reason = NOT_EXPORTED
    else:
        trace = portable(''.join(traceback.format_exception(error)))
        return Outcome(reason=TORCH_FAILS, why=trace[-MAX_CHARACTERS:])
    return Outcome(reason=reason, why=text[:MAX_CHARACTERS])


def portable(text: str) -> str:
    """Return a text without the folders of Python, its libraries and the working directory."""
    for folder in (sysconfig.get_path('stdlib'), str(Path.cwd())):
        text = text.replace(f'{folder}/', '')
    return SITE_PACKAGES.sub('', text)


def merge_records(earlier: Sequence[Record], later: Sequence[Record]) -> list[Record]:
    """Return a record per config, by name; later outcomes win."""
    merged = {record.config: record for record in earlier}
    for record in later:
        before = merged.get(record.config)
        outcomes = {
            kind: getattr(before, kind) for kind in EXPORT_KINDS if before and getattr(record, kind) is None
        }
        merged[record.config] = dataclasses.replace(record, **outcomes)
    return [merged[name] for name in sorted(merged)]


def zoo_content(records: Sequence[Record]) -> dict[str, Any]:
    """Return the content of the JSON file of all records."""
    ordered = sorted(records, key=lambda record: record.config)
    return dict(versions=versions(), configs=[dataclasses.asdict(record) for record in ordered])


def zoo_records(content: Mapping[str, Any]) -> list[Record]:
    return [record_from_json(record) for record in content['configs']]


@dataclasses.dataclass(frozen=True)
class Count:
    """Counts of a group of configs.

    Attributes:
        referenced: configs that PyTorch runs without this project's kernels, tried or not.
        fixed: referenced configs that are proven with one size.
        dynamic: referenced configs that are proven with any size.
        own_kernels: configs with `Record.own_kernels` that are proven with one size.
        reasons: reason -> configs that were tried with one size and are not proven.
    """

    configs: int
    referenced: int
    fixed: int
    dynamic: int
    own_kernels: int
    reasons: dict[str, int]


def count_records(records: Sequence[Record]) -> Count:
    reasons = collections.Counter(
        record.fixed.reason for record in records if record.fixed and not record.proven
    )
    on_cpu = [record for record in records if not record.own_kernels]
    referenced = [record for record in on_cpu if record.fixed is None or record.fixed.reason != NO_KERNEL]
    return Count(
        configs=len(records),
        referenced=len(referenced),
        fixed=sum(record.proven for record in referenced),
        dynamic=sum(record.dynamic is not None and record.dynamic.proven for record in referenced),
        own_kernels=sum(record.proven for record in records if record.own_kernels),
        reasons={reason: reasons[reason] for reason in REASONS if reasons[reason]},
    )


def summary_line(records: Sequence[Record]) -> str:
    count = count_records(records)
    text = (
        f'{count.fixed} of {count.referenced} configs with a CPU reference proven, '
        f'{count.dynamic} at any size'
    )
    reasons = ', '.join(f'{configs} {reason}' for reason, configs in count.reasons.items())
    return f'{text}; not proven: {reasons}' if reasons else text
