"""What is known of one config of a zoo, as plain data: one JSON file each, and all together."""

import dataclasses
import re
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdeploy_ext.core.errors import ExportError, UsageError
from mmdeploy_ext.core.files import read_json, write_json

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
"""All that a config can lack."""
FILES = ('fixed', 'dynamic')
"""The files of a config: of one size, and of any size and batch."""
CPU = re.compile(
    r'not implemented on (the )?CPU|implementation for device cpu|compiled with (GPU|CUDA)', re.IGNORECASE
)
INSTALLED = re.compile(r'[^\s\'"]*/site-packages/(mmdet(?:3d)?/\.mim/configs/)?')
UNREADABLE = ('the model cannot be built', 'cannot be read', 'syntax error')
LONGEST = 2000
"""Characters of a trace that are kept."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one export.

    Attributes:
        proven: whether the file is the same model.
        reason: of `REASONS`, where it is not.
        why: what was said of it; a trace where PyTorch failed.
        digest: of the exported graph with its weights; '' where nothing was exported.
        rules: of the proof, see `rules.py`.
        shape: of the traced picture, (H, W).
        inputs: how many both engines were given.
        reference: detections of PyTorch over the threshold.
        matched: of them in ONNX Runtime.
        fewest: detections in one picture.
        worst_rel: largest error of a tensor, of its scale; None without tensors of its own.
        worst_iou: smallest IoU of a pair; None of boxes in 3D.
        worst_distance: metres; largest distance of the centres of a pair, of boxes in 3D.
        worst_score: largest difference of scores of a pair.
        seconds: CPU time of export and proof.
    """

    proven: bool = False
    reason: str = ''
    why: str = ''
    digest: str = ''
    rules: str = ''
    shape: tuple[int, int] = (0, 0)
    inputs: int = 0
    reference: int = 0
    matched: int = 0
    fewest: int = 0
    worst_rel: float | None = None
    worst_iou: float | None = None
    worst_score: float | None = None
    worst_distance: float | None = None
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Record:
    """What is known of one config.

    Attributes:
        config: its name in the zoo.
        parts: detector, encoder, backbone, neck, head -> class names; see `configs.parts`.
        notes: what was changed for the export, such as test-time augmentation that was left out.
        family: that exports it.
        own_kernels: operators that mmcv has no CPU kernel of, and that ran by a form of this project.
        fixed: of one size; None where it was not tried.
        dynamic: of any size and batch.
        same_as: the config that was looked at instead: they differ in what only training reads.
    """

    config: str
    parts: dict[str, str]
    notes: tuple[str, ...] = ()
    family: str = ''
    own_kernels: tuple[str, ...] = ()
    fixed: Outcome | None = None
    dynamic: Outcome | None = None
    same_as: str = ''

    @property
    def proven(self) -> bool:
        """Whether it is proven with one size."""
        return self.fixed is not None and self.fixed.proven

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, dataclasses.asdict(self))


def from_json(content: Mapping[str, Any]) -> Record:
    """Return the record of a JSON file; keys of other versions are left out."""
    values = _known(Record, content)
    for name in FILES:
        if values.get(name) is not None:
            outcome = _known(Outcome, values[name])
            values[name] = Outcome(**dict(outcome, shape=tuple(outcome.get('shape', (0, 0)))))
    lists = {name: tuple(values.get(name, ())) for name in ('notes', 'own_kernels')}
    return Record(**dict(values, **lists))


def _known(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    return {one.name: content[one.name] for one in dataclasses.fields(kind) if one.name in content}


def read_record(path: Path) -> Record | None:
    """Return the record of a file; None where there is none, or none that can be read."""
    try:
        return from_json(read_json(path))
    except (UsageError, KeyError, TypeError):
        return None


def failure(error: Exception) -> Outcome:
    """Return what an error means for an export."""
    chain, text = list(_chain(error)), portable(' '.join(str(error).split()))
    if any(CPU.search(str(one)) for one in chain):
        reason = NO_KERNEL
    elif any(isinstance(one, MemoryError) for one in chain):
        reason = MEMORY
    elif isinstance(error, UsageError):
        kinds = dict.fromkeys(UNREADABLE, NOT_BUILT) | {'belongs to no family': NO_FAMILY}
        reason = next((kind for words, kind in kinds.items() if words in text), REFUSED)
    elif isinstance(error, ExportError):
        reason = NOT_EXPORTED
    else:
        trace = portable(''.join(traceback.format_exception(error)))
        return Outcome(reason=TORCH_FAILS, why=trace[-LONGEST:])
    return Outcome(reason=reason, why=text[:LONGEST])


def portable(text: str) -> str:
    """Return a text without the folders of this machine."""
    for folder in (sysconfig.get_path('stdlib'), str(Path.cwd())):
        text = text.replace(f'{folder}/', '')
    return INSTALLED.sub('', text)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
