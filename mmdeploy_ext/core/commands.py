"""The commands of this project, by the names that a reader of a message can type.

A command has a name, such as 'verify'. A checkout of the repository has a script for most of them in its
folder `tools/`; the sub-command `mm2onnx NAME` does the same from any folder, for the commands of `RUNNERS`
`mm2onnx run`. Messages name the sub-command if `mm2onnx` was started or if there are no scripts, as in an
installed wheel, otherwise the script, with the folder in front that the user typed in front of the script
that runs; 'run' has none, see `command`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

SCRIPTS = {
    'run': '-m mmdeploy_ext run',
    'export': 'tools/deployment/pytorch2onnx.py',
    'verify': 'tools/deployment/verify.py',
    'export-backbone': 'tools/deployment/export_scn.py',
    'quantize': 'tools/deployment/quantize.py',
    'calibrate': 'tools/quantization/scn_ptq.py',
    'tensorrt': 'tools/deployment/onnx2tensorrt.py',
    'check': 'tools/deployment/check_autoware.py',
    'graph': 'tools/onnx/graph.py',
    'lint': 'tools/onnx/lint.py',
    'benchmark': 'tools/analysis_tools/benchmark.py',
    'zoo': 'tools/analysis_tools/zoo.py',
    'sweep': 'tools/demo/lidar_demo.py',
    'video': 'tools/demo/streampetr_video.py',
    'test': 'tools/test.py',
    'infos': 'tools/create_data.py',
    'convert-mmdet3': 'tools/convert/mmdet3.py',
    'convert-rtdetr': 'tools/convert/rtdetr.py',
    'convert-solo': 'tools/convert/solo_wxinlong.py',
}
"""Name of a command -> the script that does the same, by its path in a checkout.

'run' has none: what follows `python` in a checkout stands for it.
"""
RUNNERS = {
    'with_postprocess': 'tools/onnx/onnx_with_postprocess.py',
    'no_topk_nms': 'tools/onnx/onnx_no_topk_nms.py',
    'rtdetr': 'tools/onnx/onnx_rtdetr.py',
    'solo': 'tools/onnx/onnx_solo.py',
}
"""Name of a further command -> script that runs a file on pictures and draws its results.

Each is for the files of some families and forms, see `runtime.detect`; `mm2onnx run` takes all files.
"""
CHECKOUT = Path(__file__).resolve().parents[2]
"""Folder that the package is in, without links: the root of a checkout, with `tools/`, or site-packages."""
_names_scripts = (CHECKOUT / SCRIPTS['export']).is_file()


@contextlib.contextmanager
def sub_commands() -> Iterator[None]:
    """Let messages name sub-commands inside the block, which is that of `mm2onnx`; for the whole process."""
    global _names_scripts
    before, _names_scripts = _names_scripts, False
    try:
        yield
    finally:
        _names_scripts = before


def _as_typed(script: str) -> str:
    """Return the path of a script from the folder in which the user started the one that runs.

    It is relative to the checkout unless the user typed more, such as `../mm2onnx/tools/test.py`. What is no
    script, but an option of Python, stays as it is.
    """
    typed = sys.argv[0]
    with contextlib.suppress(ValueError):  # what runs is not of this checkout
        running = Path(typed).resolve().relative_to(CHECKOUT).as_posix()
        if script.endswith('.py') and typed.endswith(f'/{running}'):
            return typed.removesuffix(running) + script
    return script


def tool(name: str) -> str:
    """Return a command as messages name it: the path of its script, or `mm2onnx NAME`.

    `name` is a key of `SCRIPTS`, or of `RUNNERS`, whose sub-command is `mm2onnx run`; any other is a
    KeyError. 'run', which has no script, is `mm2onnx run` in a checkout, too.
    """
    if name in RUNNERS:
        return _as_typed(RUNNERS[name]) if _names_scripts else 'mm2onnx run'
    script = SCRIPTS[name]
    return _as_typed(script) if _names_scripts and script.endswith('.py') else f'mm2onnx {name}'


def command(name: str) -> str:
    """Return the beginning of a command line: `python` and the script, or `mm2onnx NAME`.

    `name` is that of `tool`. In a checkout 'run' gives `python -m mmdeploy_ext run`, which works without an
    installation, too.
    """
    if not _names_scripts:
        return tool(name)
    return f'python {_as_typed(SCRIPTS.get(name) or RUNNERS[name])}'
