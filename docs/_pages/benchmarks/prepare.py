"""Files that a benchmark needs: made by this project's own tools, kept until what they come from changes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import Mm2OnnxError
from mmdeploy_ext.core.files import read_json, sha256_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from docs._pages.benchmarks.cases import Case, Step

ROOT = Path(__file__).resolve().parents[3]
"""Where commands run."""
LIMIT_S = 3600
"""A command that takes longer has hung."""


class StepError(Mm2OnnxError):
    """A command that failed; the message is why."""


def shown(words: Sequence[str]) -> str:
    """Return a command as people type it, from the root of the repository; `words` follow `python`."""
    program, words = ['python'], list(map(from_root, words))
    if words[:2] == ['-m', 'mmdeploy_ext']:
        program, words = ['mm2onnx'], words[2:]
    return shlex.join([*program, *words])


def from_root(text: str) -> str:
    """Return a text with its paths in the repository as seen from its root."""
    return text.replace(f'{ROOT}/', '')


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all ONNX files of a folder."""
    return sum(file.stat().st_size for file in (path.glob('*.onnx*') if path.is_dir() else [path]))


def run_command(words: Sequence[str], log: Path, limit_s: float = LIMIT_S) -> None:
    """Run `python WORDS`, with all that it says in a file.

    Raises:
        StepError: it failed or was too slow; the message is the tool's own `error:` line, else its last one.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'w', encoding='utf-8') as stream:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, text=True
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise StepError(f'{shown(words)}: took longer than {limit_s:.0f} s and was ended') from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if status:
        raise StepError(failure(log.read_text(encoding='utf-8', errors='replace'), status))


def failure(text: str, status: int) -> str:
    """Return why a command failed, of what it printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r'(error|\w*Error): ', line)]
    reason = from_root((errors or lines or ['it said nothing'])[-1].removeprefix('error: '))
    if status < 0:
        return f'ended by {signal.Signals(-status).name}: {reason}'
    return reason


def config_texts(path: Path) -> list[str]:
    """Return the text of a config and of the files of this repository that it names as bases."""
    if not path.is_file():
        return []
    text = path.read_text(encoding='utf-8')
    bases = re.findall(r"""['"]([\w./-]+\.py)['"]""", text)
    return [text, *(base_text for base in bases for base_text in config_texts(path.parent / base))]


@dataclasses.dataclass(frozen=True)
class Workshop:
    """Makes the files of cases, or takes them as they are when nothing that they come from changed.

    Attributes:
        folder: for everything.
        fresh: make everything again.
        versions: of the packages that decide about a file.
        say: is told of every command that runs.
    """

    folder: Path
    fresh: bool
    versions: dict[str, str]
    say: Callable[[str], None]

    def target(self, case: Case, step: Step) -> Path:
        """Return where a step's file is."""
        return (self.folder / ('shared' if step.shared else case.name) / step.name).absolute()

    def words(self, case: Case, step: Step) -> list[str]:
        """Return the command of a step."""
        places = {part.key: str(self.target(case, part)) for part in case.steps}
        places |= dict(config=case.config, checkpoint=self.checkpoint(case), out=places[step.key])
        words = [word.format(shape='{shape}', **places) for word in step.command.split()]
        sizes = list(map(str, case.shape or ()))
        return [word for text in words for word in (sizes if text == '{shape}' else [text])]

    def checkpoint(self, case: Case) -> str:
        """Return the weights of a case."""
        if case.checkpoint:
            return case.checkpoint
        return str(self.folder.absolute() / case.name / 'seeded.pth')

    def key(self, case: Case, step: Step) -> str:
        """Return a hash of what a step's file comes from: commands, config, trained weights, versions."""
        before = case.steps[: case.steps.index(step) + 1]
        facts: list[Any] = [shown(self.words(case, part)) for part in before if part.shared == step.shared]
        facts += [self.versions]
        if not step.shared:
            facts += config_texts(ROOT / case.config)
        weights = ROOT / self.checkpoint(case)
        if case.checkpoint and weights.is_file():
            facts.append(sha256_file(weights))
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def make(self, case: Case, step: Step) -> Path:
        """Make a step's file unless it is there and nothing changed; returns it.

        Raises:
            StepError: its command failed.
        """
        target, key = self.target(case, step), self.key(case, step)
        return self.kept(target, key, lambda: self._make(case, step, target))

    def kept(self, target: Path, key: str, make: Callable[[], None]) -> Path:
        """Make a file unless the key beside it says that it is what is wanted."""
        note = target.with_name(f'{target.name}.key')
        if not self.fresh and target.exists() and note.is_file() and note.read_text() == key:
            return target
        note.unlink(missing_ok=True)
        make()
        note.write_text(key)
        return target

    def _make(self, case: Case, step: Step, target: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        self.say(f'{case.name}: {step.key}')
        run_command(self.words(case, step), target.with_name(f'{target.name}.log'))

    def measure(
        self, case: Case, words: Sequence[str], name: str, limit_s: float = LIMIT_S
    ) -> dict[str, Any]:
        """Run `benchmark.py` on a case; returns its result.

        Args:
            case: to measure.
            words: of the command, without --json.
            name: of the result's file in the case's folder.
            limit_s: seconds that it may take.
        """
        target = self.folder.absolute() / case.name / f'{name}.json'
        target.unlink(missing_ok=True)
        self.say(f'{case.name}: {name}')
        run_command([*words, '--json', str(target)], target.with_suffix('.log'))
        return read_json(target)

    def memory(self, case: Case, words: Sequence[str], facts: Sequence[Any]) -> dict[str, Any]:
        """Return the result of one round with memory, kept like a file."""
        digest = hashlib.sha256(json.dumps([shown(words), self.versions, *facts]).encode()).hexdigest()
        target = self.folder.absolute() / case.name / 'memory.json'
        return read_json(self.kept(target, digest, lambda: self.measure(case, words, 'memory') and None))


class Deadline:
    """Minutes that are spent at most; what has begun is finished."""

    def __init__(self, minutes: float | None) -> None:
        """Begin to count; None never ends."""
        self.minutes, self._start = minutes, time.monotonic()

    @property
    def passed(self) -> bool:
        """Whether they are spent."""
        return self.minutes is not None and time.monotonic() - self._start >= 60 * self.minutes

    def seconds(self, wanted: float) -> float:
        """Return the seconds of rounds that a run may take: as wanted, but no more than what is left."""
        if self.minutes is None:
            return wanted
        return max(min(wanted, 60 * self.minutes - (time.monotonic() - self._start)), 1.0)
