"""The commands of this project: one table for `mm2onnx`, its help, scripts and messages."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STACK = ('torch', 'mmcv', 'mmdet')


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of `mm2onnx`, a script, or both.

    Attributes:
        module: has `main(argv)` and `build_parser()`.
        help: one line, without a full stop.
        script: path in a checkout, or ''.
        needs: required modules of `STACK`.
        without: option with which it needs none of them.
    """

    module: str
    help: str
    script: str = ''
    needs: tuple[str, ...] = ()
    without: str = ''


def _command(app: str, *texts: str, package: str = 'cli', **settings: Any) -> Command:
    return Command(f'mmdeploy_ext.{package}.{app}', *texts, **settings)


COMMANDS = {
    'demo': _command('demo_app', 'Export, prove and draw a small trained detector', needs=STACK),
    'run': _command('run_app', 'Run an exported file and draw what it finds'),
    'info': _command('info_app', 'Show the metadata of an exported file'),
    'export': _command(
        'export_app',
        'Export a detector, or its sparse backbone, and prove the file with --verify',
        'tools/deployment/pytorch2onnx.py',
        needs=STACK,
    ),
    'verify': _command(
        'verify_app', 'Prove a file that was exported earlier', 'tools/deployment/verify.py', needs=STACK
    ),
    'record': _command('record_app', 'Record results of the training environment, for verify', needs=STACK),
    'prove-module': _command(
        'prove_module_app', 'Prove any ONNX file against any PyTorch module', needs=('torch',)
    ),
    'lint': _command(
        'lint_app', 'Find code that an export would get wrong', 'tools/onnx/lint.py', needs=STACK
    ),
    'graph': _command('graph_app', 'Show, compare, rewrite and reduce any ONNX file', 'tools/onnx/graph.py'),
    'check': _command('check_app', 'Check whether the program that loads a file or folder would reject it'),
    'precision': _command(
        'precision_app', "Find a lower precision that keeps a model's results, and say why not", needs=STACK
    ),
    'quantize': _command(
        'quantize_app', 'Quantise an exported file to INT8 on images', 'tools/deployment/quantize.py'
    ),
    'calibrate': _command(
        'scn_ptq_app',
        'Calibrate INT8 ranges of a sparse backbone',
        'tools/quantization/scn_ptq.py',
        needs=STACK,
    ),
    'tensorrt': _command(
        'tensorrt_app', 'Build a TensorRT engine of an exported file', 'tools/deployment/onnx2tensorrt.py'
    ),
    'kit': _command(
        'kit_app',
        "Write a file, inputs and PyTorch's results for another device",
        needs=STACK,
        without='--serve',
    ),
    'judge': _command('judge_app', 'Judge what a device made of the inputs of a kit'),
    'test': _command(
        'test_app', 'Evaluate a detector with PyTorch or an ONNX engine', 'tools/test.py', needs=STACK
    ),
    'benchmark': _command(
        'benchmark_app',
        'Measure PyTorch and engines against each other',
        'tools/analysis_tools/benchmark.py',
        needs=STACK,
    ),
    'doctor': _command(
        'doctor', 'Check what is installed; each problem with its fix', package='upstream.compat'
    ),
    'convert': _command(
        'convert_app', 'Convert a checkpoint of mmdet 3, RT-DETR or SOLO', 'tools/convert.py', needs=STACK
    ),
    'synthetic': _command(
        'synthetic_app',
        'Generate a COCO set, a nuScenes set, info files, or weights',
        needs=STACK,
    ),
}
RUNNERS = {
    'with_postprocess': 'tools/onnx/onnx_with_postprocess.py',
    'no_topk_nms': 'tools/onnx/onnx_no_topk_nms.py',
    'rtdetr': 'tools/onnx/onnx_rtdetr.py',
    'solo': 'tools/onnx/onnx_solo.py',
}
"""Scripts that run some families' files on pictures, see `runtime.detect`."""
CHECKOUT = Path(__file__).resolve().parents[2]
"""Root of a checkout, or site-packages; links resolved."""
_names_scripts = (CHECKOUT / COMMANDS['export'].script).is_file()


@contextlib.contextmanager
def sub_commands() -> Iterator[None]:
    """Let messages name sub-commands of `mm2onnx` inside the block."""
    global _names_scripts
    before, _names_scripts = _names_scripts, False
    try:
        yield
    finally:
        _names_scripts = before


def tool(name: str) -> str:
    """Script path or `mm2onnx NAME` for messages; words may follow the name ('convert solo')."""
    line = command(name)
    return f'mm2onnx {name}' if ' -m mmdeploy_ext ' in line else line.removeprefix('python ')


def command(name: str) -> str:
    """`python SCRIPT`, `python -m mmdeploy_ext NAME`, or `mm2onnx NAME`."""
    key, _, words = name.partition(' ')
    if key in RUNNERS:
        return f'python {RUNNERS[key]}' if _names_scripts else 'mm2onnx run'
    script = COMMANDS[key].script or f'-m mmdeploy_ext {key}'
    line = f'python {script}' if _names_scripts else f'mm2onnx {key}'
    return f'{line} {words}' if words else line
