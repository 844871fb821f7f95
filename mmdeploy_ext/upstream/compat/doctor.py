"""The installation: versions, abilities and faults, each with the command that fixes it.

The libraries are tried in one process. Those that it does not reach, because one fails or crashes, are tried
in a process each, so that a crash is a line of the table.
"""

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.files import write_json
from mmdeploy_ext.engines.registry import BACKENDS
from mmdeploy_ext.upstream import compat

PYTHONS = '3.10 to 3.12'
RUNTIME = {
    'numpy': '1.26.4',
    'opencv-python-headless': '4.11.0.86',
    'onnxruntime': '1.31.1',
    'rich': '15.0.0',
}
GRAPHS = {'onnx': '1.23.2', 'onnx-ir': '1.1.0', 'onnxslim': '0.1.98', 'jinja2': '3.1.6'}
"""What reads and changes graphs: the extra `graph`."""
EXPORT = {'torch': '2.13.0', 'torchvision': '0.28.0', 'spconv': '2.3.8'}
FROZEN = {'mmcv-full': '1.7.2', 'mmdet': '2.28.2', 'mmsegmentation': '0.30.0', 'mmdet3d': '1.0.0rc6'}
"""Distribution -> version of requirements*.txt."""

PATCHES = 'compat patches in effect'
OPERATORS = 'mmcv operators'
PLAIN = "plain (mmcv's operators in PyTorch and numba)"
BUILD_MMCV = (
    'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall '
    'mmcv-full==1.7.2'
)


@dataclass
class Finding:
    """One line of the report.

    Attributes:
        name: package or probe.
        found: version, 'not installed', or a probe's last line.
        expected: tried version; 'optional' for an absent engine, '' for a probe.
        verdict: 'ok', 'differs', 'absent' (optional) or 'problem' (exit status 1).
        fix: a command or sentence.
    """

    name: str
    found: str
    expected: str = ''
    verdict: str = 'ok'
    fix: str = ''


# Name of a probe -> code with the finding as its last line of output, and the fix of a failure.
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
    OPERATORS: (
        _COMPAT
        + 'import torch; from mmcv.ops import nms; from mmcv.utils.ext_loader import check_ops_exist\n'
        'kept = nms(torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]]), torch.ones(3), 0.5)[1]\n'
        f'assert len(kept) == 2, kept; print("compiled" if check_ops_exist() else {PLAIN!r})',
        BUILD_MMCV,
    ),
    'mmdet imports': (_COMPAT + 'import mmdet.apis, mmdet.datasets; print("yes")', 'make env'),
    'mmdet3d imports': (_COMPAT + 'import mmdet3d.apis, mmdet3d.models; print("yes")', 'make env'),
}
_PATCHES = (
    _COMPAT + 'import torchvision, mmdet.apis, mmdet3d.datasets\n'
    'print(", ".join(patch.name for patch in compat.effective()) or "none needed")'
)
_ALL = """
import contextlib, io, json, sys
for name, code in json.loads(sys.argv[1]).items():
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, {})
    print(json.dumps([name, (said.getvalue().strip().splitlines() or [''])[-1]]), flush=True)
"""
"""Program that runs the probes of its argument, and says what each found."""


def installed_version(distribution: str) -> str | None:
    """Version of a distribution or None, without an import."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python() -> Finding:
    """Compare Python with 3.10 to 3.12: older is a 'problem', newer 'differs'."""
    version, found = platform.python_version(), sys.version_info[:2]
    if found < (3, 10):
        return Finding(
            'python', version, PYTHONS, 'problem', 'apt install python3.11 python3.11-venv; make env'
        )
    return Finding('python', version, PYTHONS, 'ok' if found <= (3, 12) else 'differs')


def check_version(distribution: str, expected: str, frozen: bool = False) -> Finding:
    """Compare an installed version, up to '+', with the tried one; `frozen`: others are a 'problem'."""
    install = f'pip install {"--no-deps --no-build-isolation " if frozen else ""}{distribution}=={expected}'
    if distribution == 'mmcv-full':
        install = BUILD_MMCV
        if installed_version(distribution) is None and installed_version('mmcv'):
            distribution = 'mmcv'  # the same files without compiled operators
    installed = installed_version(distribution)
    if installed is None:
        return Finding(distribution, 'not installed', expected, 'problem', install)
    if installed.split('+')[0] == expected:
        return Finding(distribution, installed, expected)
    return Finding(distribution, installed, expected, 'problem' if frozen else 'differs', install)


def probe(name: str, code: str, fix: str = '', timeout_s: float = 120) -> Finding:
    """Run code in a fresh interpreter; the finding is its last line on stdout, or on stderr if it fails."""
    try:
        process = _python(timeout_s, code)
    except subprocess.TimeoutExpired:
        return Finding(name, f'no answer in {timeout_s:.0f} s', '', 'problem', fix)
    if process.returncode < 0:
        return Finding(name, f'crashed with signal {-process.returncode}', '', 'problem', fix)
    failed = process.returncode != 0
    lines = (process.stderr if failed else process.stdout).strip().splitlines() or ['']
    return Finding(name, lines[-1], '', 'problem' if failed else 'ok', fix if failed else '')


def probe_all(probes: Mapping[str, str], timeout_s: float = 120) -> dict[str, str]:
    """Run probes in one interpreter; return what was found up to the first that fails."""
    try:
        said = _python(timeout_s, _ALL, json.dumps(probes)).stdout
    except subprocess.TimeoutExpired:
        return {}
    lines = (line for line in said.splitlines() if line.startswith('["'))
    return dict(json.loads(line) for line in lines)


def _python(timeout_s: float, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
        timeout=timeout_s,
    )


def examine(runtime_only: bool = False, patches: bool = False) -> list[Finding]:
    """All findings; `runtime_only` leaves out PyTorch and OpenMMLab, `patches` adds those in effect."""
    findings = [check_python(), *(check_version(*item) for item in RUNTIME.items())]
    probes = dict(_RUNTIME_PROBES)
    if runtime_only and not any(map(installed_version, GRAPHS)):
        findings.append(
            Finding('onnx', 'not installed', 'optional', 'absent', "pip install 'mm2onnx[graph]'")
        )
    else:
        findings += [check_version(*item) for item in GRAPHS.items()]
    if not runtime_only:
        findings += [check_version(*item) for item in EXPORT.items()]
        findings += [check_version(*item, frozen=True) for item in FROZEN.items()]
        probes |= _PROBES
        if patches:
            probes[PATCHES] = _PATCHES, 'make env'
    for distribution, extra, name, code in filter(None, (row.doctor for row in BACKENDS.values())):
        install = f"pip install '.[{extra}]'"
        if installed_version(distribution):
            probes[name] = code, install
        else:
            findings.append(Finding(name, 'not installed', 'optional', 'absent', install))
    found = probe_all({name: code for name, (code, _) in probes.items()})
    for name, (code, fix) in probes.items():
        if name not in found:
            print(f'checking {name} ...', file=sys.stderr)
        findings.append(Finding(name, found[name]) if name in found else probe(name, code, fix))
    return findings


def print_report(findings: Sequence[Finding]) -> None:
    from rich.table import Table

    from mmdeploy_ext.base.errors import escape

    colours = dict(ok='green', differs='yellow', absent='dim', problem='bold red')
    table = Table('', 'found', 'expected', 'verdict', title='mm2onnx doctor')
    for f in [f for f in findings if f.name != PATCHES or f.verdict == 'problem']:
        table.add_row(f.name, escape(f.found), f.expected, f'[{colours[f.verdict]}]{f.verdict}[/]')
    cli.stdout().print(table)
    for found in [f.found.split(', ') for f in findings if f.name == PATCHES and f.verdict == 'ok']:
        for patch in [patch for patch in compat.apply() if patch.name in found]:
            print(f'patched: {patch.name}: {patch.reason}')
    problems = [f for f in findings if f.verdict == 'problem']
    for f in problems:
        expected = f' (expected {f.expected})' if f.expected else ''
        print(f'problem: {f.name}: {f.found}{expected}\n    fix: {f.fix}')
    print(f'{len(problems)} problem(s)' if problems else summary(findings))


def summary(findings: Sequence[Finding]) -> str:
    differing = [f'{f.name} {f.found} for {f.expected}' for f in findings if f.verdict == 'differs']
    healthy = 'healthy'
    if any(f.name == OPERATORS and f.found == PLAIN for f in findings):
        healthy = f'healthy, {PLAIN}'
    if not differing:
        return healthy
    others = ', '.join(differing)
    return f'{healthy}, with other versions than those tried: {others}; the checks passed with them'


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--runtime',
        action='store_true',
        help='only what running an exported model needs (default where no part of PyTorch and OpenMMLab is '
        'installed)',
    )
    parser.add_argument(
        '--patches', action='store_true', help='also list the patches of the libraries, with their reasons'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the findings to FILE')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(_run, build_parser(), argv)


def _run(args: argparse.Namespace) -> int:
    exports = any(installed_version(name) for name in (*EXPORT, *FROZEN))
    findings = examine(args.runtime or not exports, args.patches)
    healthy = all(finding.verdict != 'problem' for finding in findings)
    if args.json:
        content = dict(healthy=healthy, findings=[asdict(f) for f in findings])
        write_json(args.json, content)
    print_report(findings)
    if not exports:
        print('PyTorch and OpenMMLab are not installed: exported files run, nothing can be exported')
    return 0 if healthy else 1


if __name__ == '__main__':
    sys.argv[0] = 'python -m mmdeploy_ext.upstream.compat.doctor'
    sys.exit(main())
