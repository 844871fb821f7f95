"""What is installed, what it can do, and what is wrong, each with the command that fixes it.

    python -m mmdeploy_ext.compat.doctor [--runtime] [--json FILE]

Nothing heavy is imported here: each library is tried in a process of its own, so that one that crashes is a
line in the table and not the end of the doctor.
"""

import argparse
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from mmdeploy_ext import compat
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.files import write_json
from mmdeploy_ext.engines.registry import BACKENDS

RUNTIME = {
    'numpy': '1.26.4',
    'opencv-python-headless': '4.11.0.86',
    'onnx': '1.23.2',
    'onnxruntime': '1.31.1',
    'onnx-ir': '1.1.0',
    'onnxslim': '0.1.98',
    'rich': '15.0.0',
    'jinja2': '3.1.6',
}
EXPORT = {'torch': '2.13.0', 'torchvision': '0.28.0', 'spconv': '2.3.8'}
FROZEN = {'mmcv-full': '1.7.2', 'mmdet': '2.28.2', 'mmsegmentation': '0.30.0', 'mmdet3d': '1.0.0rc6'}
"""Distribution -> version of requirements*.txt, which a test compares: what running an exported model needs,
what an export needs besides, and of that the packages of which no other version works."""

PATCHES = 'compat patches in effect'
"""Name of the probe that lists the patches of `compat` that had something to do."""
BUILD_MMCV = (
    'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall '
    'mmcv-full==1.7.2'
)
"""The command that builds mmcv with its compiled operators."""


@dataclass
class Finding:
    """One line of the report.

    Attributes:
        name: name of the package or probe.
        found: installed version or 'not installed'; of a probe its last line, or how it ended.
        expected: version that was tried; 'optional' of an engine that is absent, '' of a probe.
        verdict: 'ok', 'differs' (another version than the one tried), 'absent' (optional) or 'problem'; only
            the last makes the doctor exit 1.
        fix: a command, or a sentence that says what to do.
    """

    name: str
    found: str
    expected: str = ''
    verdict: str = 'ok'
    fix: str = ''


# Name of a probe -> its code, whose last line of output is the finding, and how to fix a failure.
_COMPAT = 'from mmdeploy_ext import compat; compat.apply()\n'
_RUNTIME_PROBES = {
    'opencv': (
        'import cv2; print(cv2.__version__)',
        'pip uninstall -y opencv-python; pip install --force-reinstall opencv-python-headless',
    ),
    'ONNX Runtime providers': (
        'import onnxruntime; print(", ".join(onnxruntime.get_available_providers()))',
        'pip install --force-reinstall onnxruntime',
    ),
}
_PROBES = {
    'GPU': (
        'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "none")',
        'reinstall torch from https://download.pytorch.org/whl/cpu or the index of your CUDA version',
    ),
    'mmcv compiled operators': (
        _COMPAT + 'import torch; from mmcv.ops import nms\n'
        'kept = nms(torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]]), torch.ones(3), 0.5)[1]\n'
        'assert len(kept) == 2, kept; print("run")',
        BUILD_MMCV,
    ),
    'mmdet imports': (_COMPAT + 'import mmdet.apis, mmdet.datasets; print("yes")', 'make env'),
    'mmdet3d imports': (_COMPAT + 'import mmdet3d.apis, mmdet3d.models; print("yes")', 'make env'),
    PATCHES: (
        _COMPAT + 'import torchvision, mmdet.apis, mmdet3d.datasets\n'
        'print(", ".join(patch.name for patch in compat.effective()) or "none needed")',
        'make env',
    ),
}


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None, without importing it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python() -> Finding:
    """Compare the version of Python with 3.11, which everything is pinned for.

    An older one is a 'problem', a newer one 'differs'.
    """
    version = platform.python_version()
    if sys.version_info < (3, 11):  # noqa: UP036 (this is the check)
        return Finding(
            'python', version, '3.11', 'problem', 'apt install python3.11 python3.11-venv; make env'
        )
    return Finding('python', version, '3.11', 'ok' if sys.version_info[:2] == (3, 11) else 'differs')


def check_version(distribution: str, expected: str, frozen: bool = False) -> Finding:
    """Compare the installed version of a distribution with the one that was tried.

    It is a 'problem' if none is installed. What follows a '+' in a version, as in 2.13.0+cpu, does not count.

    Args:
        distribution: name of the distribution, as pip has it.
        expected: the version that was tried.
        frozen: whether another version is a 'problem' and does not just differ: later majors of the OpenMMLab
            1.x packages have other interfaces.
    """
    install = f'pip install {"--no-deps --no-build-isolation " if frozen else ""}{distribution}=={expected}'
    if distribution == 'mmcv-full':
        install = BUILD_MMCV
    installed = installed_version(distribution)
    if installed is None:
        return Finding(distribution, 'not installed', expected, 'problem', install)
    if installed.split('+')[0] == expected:
        return Finding(distribution, installed, expected)
    return Finding(distribution, installed, expected, 'problem' if frozen else 'differs', install)


def probe(name: str, code: str, fix: str = '', timeout_s: float = 120) -> Finding:
    """Run a few lines in a fresh interpreter; the last line that they print on stdout is what is found.

    Args:
        name: name of the probe.
        code: the lines. If they end with another status than 0, as by an exception, or by a signal, that is a
            'problem', and what is found is the last line on stderr, or the signal; else the probe is 'ok'.
        fix: `fix` of the finding if it is a problem.
        timeout_s: seconds after which they are stopped, which is a problem, too.
    """
    try:
        process = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', code],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return Finding(name, f'no answer in {timeout_s:.0f} s', '', 'problem', fix)
    if process.returncode < 0:
        return Finding(name, f'crashed with signal {-process.returncode}', '', 'problem', fix)
    failed = process.returncode != 0
    lines = (process.stderr if failed else process.stdout).strip().splitlines() or ['']
    return Finding(name, lines[-1], '', 'problem' if failed else 'ok', fix if failed else '')


def examine(runtime_only: bool = False, progress: Callable[[str], None] = lambda name: None) -> list[Finding]:
    """Return all findings; with `runtime_only` those of a runtime without PyTorch and OpenMMLab.

    Both have probes of the optional engines that are installed. `progress` is called with the name of each
    probe before it runs, by one of two threads.
    """
    findings = [check_python(), *(check_version(*item) for item in RUNTIME.items())]
    if not runtime_only:
        findings += [check_version(*item) for item in EXPORT.items()]
        findings += [check_version(*item, frozen=True) for item in FROZEN.items()]
    probes = [(name, code, fix) for name, (code, fix) in _RUNTIME_PROBES.items()]
    if not runtime_only:
        probes += [(name, code, fix) for name, (code, fix) in _PROBES.items()]
    for distribution, extra, name, code in filter(None, (row.doctor for row in BACKENDS.values())):
        install = f"pip install '.[{extra}]'"
        if installed_version(distribution):
            probes.append((name, code, install))
        else:
            findings.append(Finding(name, 'not installed', 'optional', 'absent', install))

    def run(arguments: tuple[str, str, str]) -> Finding:
        progress(arguments[0])
        return probe(*arguments)

    with ThreadPoolExecutor(2) as pool:  # each is a process of its own, of up to 1 GB
        return findings + list(pool.map(run, probes))


def print_report(findings: Sequence[Finding]) -> None:
    """Print the findings as a table, the patches in effect, and each problem with its fix.

    The last line is the number of problems, or the summary if there is none. Of the finding of the
    patches the table has a row only if it is a problem. `compat.apply` is called, which knows their reasons.
    """
    from rich.markup import escape
    from rich.table import Table

    colours = dict(ok='green', differs='yellow', absent='dim', problem='bold red')
    table = Table('', 'found', 'expected', 'verdict', title='mm2onnx doctor')
    for f in [f for f in findings if f.name != PATCHES or f.verdict == 'problem']:
        table.add_row(f.name, escape(f.found), f.expected, f'[{colours[f.verdict]}]{f.verdict}[/]')
    cli.stdout().print(table)
    patches = ', '.join(f.found for f in findings if f.name == PATCHES and f.verdict == 'ok').split(', ')
    for patch in [patch for patch in compat.apply() if patch.name in patches]:
        print(f'patched: {patch.name}: {patch.reason}')
    problems = [f for f in findings if f.verdict == 'problem']
    for f in problems:
        expected = f' (expected {f.expected})' if f.expected else ''
        print(f'problem: {f.name}: {f.found}{expected}\n    fix: {f.fix}')
    print(f'{len(problems)} problem(s)' if problems else summary(findings))


def summary(findings: Sequence[Finding]) -> str:
    """Return the last line of a report without problems.

    It is 'healthy', and names the findings whose verdict is 'differs', if there are any.
    """
    differing = [f'{f.name} {f.found} for {f.expected}' for f in findings if f.verdict == 'differs']
    if not differing:
        return 'healthy'
    return (
        f'healthy, with other versions than those tried: {", ".join(differing)}; the checks passed with them'
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of --runtime, --json and --debug."""
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--runtime',
        action='store_true',
        help='only what running an exported model needs (default where no part of PyTorch and OpenMMLab is '
        'installed)',
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the findings to FILE')
    cli.add_debug_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check the installation and print the findings; return 0 if no finding is a problem, else 1.

    `argv` are the words of the command line, by default those of the process. SystemExit: --help, or an
    option that the parser refuses, which is status 2.
    """
    return cli.run(_run, build_parser(), argv)


def _run(args: argparse.Namespace) -> int:
    exports = any(installed_version(name) for name in (*EXPORT, *FROZEN))
    findings = examine(
        args.runtime or not exports, progress=lambda name: print(f'checking {name} ...', file=sys.stderr)
    )
    healthy = all(finding.verdict != 'problem' for finding in findings)
    if args.json:
        content = dict(healthy=healthy, findings=[asdict(f) for f in findings])
        write_json(args.json, content)
    print_report(findings)
    if not exports:
        print('PyTorch and OpenMMLab are not installed: exported files run, nothing can be exported')
    return 0 if healthy else 1


if __name__ == '__main__':
    sys.argv[0] = 'python -m mmdeploy_ext.compat.doctor'
    sys.exit(main())
