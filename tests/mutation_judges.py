"""How a mutated export is judged: by `verify.py`, level 1 first; a proven one may be equivalent."""

from __future__ import annotations

import dataclasses
import shutil
import traceback
from pathlib import Path
from typing import Any

from equivalence import reason_of, same_results
from mmdeploy_ext.core.errors import Mm2OnnxError
from mutation_toys import TOYS
from mutations import Export, Mutant
from refusal import Refused, first_reason, stopped_at_refusal

PROVEN, REFUSED, CRASHED = 'proven', 'refused', 'crashed'
"""What becomes of a mutant: the proof passes, it fails or an error names the file, there is a traceback."""
EQUIVALENT, ON_INPUTS = 'equivalent', 'on_inputs'
"""Proven, and shown to be equivalent; PROVEN ON N INPUTS, which is no claim about the graph."""
OUTCOMES = PROVEN, EQUIVALENT, ON_INPUTS, REFUSED, CRASHED
INPUTS = 30
"""On which an equivalent mutant gives the same bits as the right files."""


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What became of one mutant.

    Attributes:
        outcome: one of `OUTCOMES`.
        reason: the title of the verdict, or what was refused first; why it is equivalent.
    """

    outcome: str
    reason: str


class Judge:
    """Judges mutants of the files of one toy.

    Attributes:
        toy: whose files are mutated.
        export: the right files.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.toy, self.folder = TOYS[name], folder
        self.right = self.toy.export(folder / 'right')
        self.export = Export.read(self.right)
        judgement = self._prove(self._written(Mutant('none', '', '')))
        if judgement.outcome != PROVEN:
            raise ValueError(f'{name}: the files without a fault are not proven: {judgement.reason}')

    def judge(self, mutant: Mutant) -> Judgement:
        """Judge the files with a fault."""
        path = self._written(mutant)
        judgement = self._prove(path)
        if judgement.outcome != PROVEN:
            return judgement
        reason = reason_of(self.export, mutant)
        if reason and same_results(self.toy, self.right, path, INPUTS):
            return Judgement(EQUIVALENT, f'{reason}; same bits on {INPUTS} inputs')
        return judgement

    def _written(self, mutant: Mutant) -> Path:
        """Write the files with a fault; return the file or folder."""
        target = self.folder / 'mutated'
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.folder / 'right', target)
        path = target / self.right.name
        folder = path if path.is_dir() else target
        for name, content in mutant.changes.items():
            if content is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(content)
        return path

    def _prove(self, path: Path) -> Judgement:
        try:
            with stopped_at_refusal():
                verdict = self.toy.prove(path).verdict
        except (Refused, Mm2OnnxError, OSError) as error:
            return Judgement(REFUSED, str(error))
        except Exception:
            return Judgement(CRASHED, traceback.format_exc())
        if verdict.passed:
            return Judgement(PROVEN, verdict.title)
        return Judgement(REFUSED, first_reason(verdict) or verdict.title)


def summary(judged: list[dict[str, Any]]) -> dict[str, int]:
    """Return how many mutants there are, and how many of each outcome."""
    counts = {name: sum(entry['outcome'] == name for entry in judged) for name in OUTCOMES}
    return dict(mutants=len(judged), **counts)
