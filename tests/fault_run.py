"""Faults in our own code, each with a fresh export and its proof: `python tests/fault_run.py --family dense`.

At the end is a table: family, faults, PROVEN.

A fresh export has the fault too, so that level 1 finds the same graph: inputs and other checks alone can
tell. The exit status is 1 where a file with a fault is PROVEN, or where a fault shows nothing: nothing called
it, it changed the reference without being declared as one of shared code, or the export failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import logging
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

REPO = Path(__file__).resolve().parents[1]
if __name__ == '__main__':
    sys.path.insert(0, str(REPO))

from mmdeploy_ext import compat  # noqa: E402
from mmdeploy_ext.core import cli  # noqa: E402
from mmdeploy_ext.core.errors import Mm2OnnxError  # noqa: E402
from mmdeploy_ext.core.files import read_json, write_json  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from mutation_toys import Toy
    from planting import Planted


@dataclasses.dataclass
class Outcome:
    """What became of one fault.

    Attributes:
        toy: key of `planted_toys.FAULT_TOYS`.
        name: of the fault.
        proven: the proof of a file with the fault passed.
        reason: the verdict, or what the proof found first.
        problems: why the run shows nothing about the proof.
        cpu_s: seconds of CPU.
    """

    toy: str
    name: str
    proven: bool = False
    reason: str = ''
    problems: list[str] = dataclasses.field(default_factory=list)
    cpu_s: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the fault was there and was refused."""
        return not self.proven and not self.problems


def run_fault(toy: Toy, fault: Planted, right: Sequence[bytes], folder: Path) -> Outcome:
    """Export and prove a toy with a fault, loaded anew.

    Args:
        toy: of which the fault is.
        fault: that is applied.
        right: results of the reference without the fault, `Toy.reference_bytes`.
        folder: of the files.
    """
    from refusal import Refused, stopped_at_refusal

    outcome, start = Outcome(fault.toy, fault.name), time.process_time()
    with fault.apply() as idle:
        if not fault.shared and toy.reference_bytes() != right:
            outcome.problems.append('the reference has the fault too; declare it as shared=True if it has to')
        try:
            with stopped_at_refusal():
                verdict = toy.export_and_prove(folder, **fault.options).verdict
            outcome.proven, outcome.reason = verdict.passed, verdict.title
        except Refused as refusal:
            outcome.reason = str(refusal)
            if outcome.reason.startswith('graph:') and not fault.in_graph:
                outcome.problems.append('the fresh export does not have the fault')
        except Mm2OnnxError as error:
            outcome.reason = f'refused: {error}'
        except Exception:
            outcome.problems.append(traceback.format_exc())
        if idle():
            outcome.problems.append(f'nothing called {", ".join(idle())}')
    outcome.cpu_s = round(time.process_time() - start, 2)
    return outcome


def run_faults(name: str, words: str = '', before: Container[str] = ()) -> Iterator[Outcome]:
    """Yield the outcome of every fault of a toy whose name has some words and is not in `before`."""
    from planted_faults import FAULTS
    from planted_toys import FAULT_TOYS

    toy = FAULT_TOYS[name]
    faults = [fault for fault in FAULTS if fault.toy == name and words in fault.name]
    faults = [fault for fault in faults if fault.name not in before]
    right = toy.reference_bytes() if faults else []
    for fault in faults:
        with tempfile.TemporaryDirectory(prefix='fault_') as folder:
            yield run_fault(toy, fault, right, Path(folder) / 'export')


def untouched(name: str) -> Outcome:
    """Return the outcome of a toy without a fault; it is the only one that has to be proven."""
    from planted_toys import FAULT_TOYS
    from refusal import first_reason

    start = time.process_time()
    with tempfile.TemporaryDirectory(prefix='fault_') as folder:
        verdict = FAULT_TOYS[name].export_and_prove(Path(folder) / 'export').verdict
    seconds, reason = round(time.process_time() - start, 2), first_reason(verdict) or verdict.title
    return Outcome(name, 'no fault', verdict.passed, reason, cpu_s=seconds)


def print_outcome(outcome: Outcome) -> None:
    """Print a line, and problems below it."""
    title = 'PROVEN' if outcome.proven else 'ok' if outcome.passed else 'PROBLEM'
    print(f'{title:8} {outcome.toy}: {outcome.name} ({outcome.cpu_s} s): {outcome.reason[:150]}')
    for problem in outcome.problems:
        print(f'         {problem}')
    sys.stdout.flush()


def print_table(outcomes: Iterable[Outcome]) -> None:
    """Print how many faults each family has, and how many of them are PROVEN, or show nothing."""
    from planting import FAMILY_OF

    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(FAMILY_OF[outcome.toy], []).append(outcome)
    print(f'{"family":16} {"faults":>6} {"PROVEN":>6} {"problems":>8} {"CPU s":>6}')
    for family, found in rows.items():
        counts = len(found), sum(one.proven for one in found), sum(bool(one.problems) for one in found)
        print(f'{family:16} {counts[0]:6} {counts[1]:6} {counts[2]:8} {sum(one.cpu_s for one in found):6.0f}')


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(description='Prove toys with faults in our own code: none may be PROVEN.')
    add = cli.adder(parser)
    add('--family NAME...', 'families of planting.TOYS_OF, or toys of planted_toys.FAULT_TOYS (default: all)')
    add('--fault WORDS', 'only faults whose name has these words', default='')
    add('--right', 'first prove each toy without a fault')
    add(
        '--out FOLDER', 'also write TOY.faults.json for each toy, and leave out faults that are in it already'
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the faults and print what became of them."""
    cli.wait_passively()
    compat.apply()
    logging.disable(logging.INFO)  # of mmcv, which lists every weight
    warnings.simplefilter('ignore')
    from planted_toys import FAULT_TOYS, toys_of

    outcomes, rights = [], []
    for name in toys_of(args.family) if args.family else FAULT_TOYS:
        if args.right:
            rights.append(untouched(name))
            print_outcome(rights[-1])
        path = Path(args.out or '.', f'{name}.faults.json')
        kept = [Outcome(**entry) for entry in read_json(path)] if args.out and path.is_file() else []
        outcomes += kept
        for outcome in run_faults(name, args.fault, {entry.name for entry in kept}):
            print_outcome(outcome)
            outcomes.append(outcome)
            kept.append(outcome)
            if args.out:
                write_json(path, [dataclasses.asdict(entry) for entry in kept])
            gc.collect()
    print_table(outcomes)
    return 0 if all(one.passed for one in outcomes) and all(right.proven for right in rights) else 1


def main(argv: Iterable[str] | None = None) -> int:
    """Run the command."""
    return cli.run(run, build_parser(), argv)


if __name__ == '__main__':
    sys.exit(main())
