"""The results of a zoo as plain data: a record for each config, a JSON file of all, and their counts."""

import collections
import dataclasses
import re
import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext.core.errors import ExportError, UsageError, one_line
from mmdeploy_ext.core.files import read_json, write_json
from mmdeploy_ext.core.source_code import versions

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
"""Reasons why an export may not be proven, the values of `Outcome.reason`, in the order of counts."""
EXPORT_KINDS = ('fixed', 'dynamic')
"""The exports of a config: with one input size, of sweeps the only one, and with any size and batch."""
CPU = re.compile(
    r'not implemented on (the )?CPU|implementation for device cpu|compiled with (GPU|CUDA)', re.IGNORECASE
)
"""Messages of operators that have no kernel for the CPU."""
SITE_PACKAGES = re.compile(r'[^\s\'"]*/site-packages/(\w+/\.mim/configs/)?')
"""Beginning of the path of an installed file, or of a config of an installed library."""
UNREADABLE = ('the model cannot be built', 'cannot be read', 'syntax error')
"""Words in messages about configs of which no model can be built."""
MAX_CHARACTERS = 2000
"""Characters that a record keeps: the first of an error message, the last of a trace or of a log."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one export.

    Attributes:
        proven: whether the exported file is proven to be the same model.
        reason: one of `REASONS` if it is not.
        why: what fails in the proof, or the message of the error that ended the export or the proof (a trace
            if PyTorch failed; the end of the log if the process was stopped); '' if it is proven.
        shape: (H, W) of the network's input, pixels; (0, 0) of models of sweeps, and after an error.
        inputs: number of cases of the proof (`Verdict.cases`), not of inputs of the graph: pictures, batches
            or sweeps that both engines ran.
        reference: number of PyTorch's detections, in all samples, of at least the score from which on a proof
            needs a partner for each (`matching.match_lists`, `score_thr`).
        matched: number of these that have a partner in ONNX Runtime's results, see `matching.match_lists`.
        fewest: smallest number of such detections of PyTorch in a sample.
        classes: number of different classes in PyTorch's results in up to eight samples; 0 in records from
            before 2026-11-26.
        worst_rel: largest difference of a tensor from PyTorch's, relative to the largest absolute value of
            its columns there; None if no tensors were compared.
        worst_iou: smallest IoU of a pair of results, 1.0 without a pair; None for boxes in 3D, and if none
            were compared.
        worst_score: largest difference between the scores of a pair; None if no results were compared.
        worst_distance: largest distance between the centres of a pair of boxes in 3D, m; None for others.
        seconds: CPU time of the process for export and proof, without processes that it started.
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
        parts: detector, encoder, backbone, neck, head -> class names; see `configs.part_types`.
        notes: changes that the export made to the config, such as test-time augmentation that it removed.
        family: name of the family that exports it; '' if its model was not built.
        task: kind of its results, see `Family.task`.
        own_kernels: names of classes of the model's layers and heads that need an operator for which their
            library has no CPU kernel; PyTorch ran them with a kernel of this project.
        fixed: outcome with one input size, of models of sweeps the only one; None if it was not tried.
        dynamic: outcome with any size and batch; None if it was not tried.
        same_as: name of the config that was proven in place of this one, since the two differ in training
            alone; the outcomes are those of that config. '' if this one was tried itself.
        made_from: `config_proof.origin_digest`, by which a later run sees that it would get the same.
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
        """Write the record as JSON, atomically; a folder is made. Mm2OnnxError: it cannot be written."""
        write_json(path, dataclasses.asdict(self))


def record_from_json(content: Mapping[str, Any]) -> Record:
    """Return the record of a JSON object; keys of other versions are ignored."""
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
    """Return the record of a JSON file; None if the file is missing or damaged."""
    try:
        return record_from_json(read_json(path))
    except (UsageError, KeyError, TypeError):
        return None


def outcome_of_error(error: Exception) -> Outcome:
    """Return the outcome of an export that raised an error, with the reason that its messages give."""
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
    """Return a text in which paths lack the folders of Python, of its libraries and the working directory."""
    for folder in (sysconfig.get_path('stdlib'), str(Path.cwd())):
        text = text.replace(f'{folder}/', '')
    return SITE_PACKAGES.sub('', text)


def merge_records(earlier: Sequence[Record], later: Sequence[Record]) -> list[Record]:
    """Return a record for each config, sorted by name; later outcomes replace earlier ones."""
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
    """Return the records of a JSON file that `zoo_content` made."""
    return [record_from_json(record) for record in content['configs']]


@dataclasses.dataclass(frozen=True)
class Count:
    """Counts of a group of configs.

    Attributes:
        configs: number of configs.
        referenced: number of configs that no missing CPU kernel keeps from a comparison with the libraries'
            own code: those without `Record.own_kernels` whose export with one size did not end with the
            reason 'no CPU kernel in mmcv'. Configs that failed for another reason, or were not tried, are
            among them.
        fixed: number of referenced configs that are proven with one size.
        dynamic: number of referenced configs that are proven with any size.
        own_kernels: number of configs with `Record.own_kernels` that are proven with one size.
        reasons: reason -> number of all configs, referenced or not, that were tried with one size and are not
            proven; a reason outside `REASONS` is not counted.
    """

    configs: int
    referenced: int
    fixed: int
    dynamic: int
    own_kernels: int
    reasons: dict[str, int]


def count_records(records: Sequence[Record]) -> Count:
    """Count the records of a group of configs."""
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
    """Return the counts of all records in one line."""
    count = count_records(records)
    text = (
        f'{count.fixed} of {count.referenced} configs with a CPU reference proven, '
        f'{count.dynamic} at any size'
    )
    reasons = ', '.join(f'{configs} {reason}' for reason, configs in count.reasons.items())
    return f'{text}; not proven: {reasons}' if reasons else text
