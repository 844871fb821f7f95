"""Count the files of mmdeploy_ext that a command calls into; calls while a module is imported are left out.

`python -m dev.called_files [WORD...]` runs `mm2onnx WORD...`, or export, verify and run of the demo.
"""

import os
import runpy
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

DEMO = 'configs/demo/atss_toy_onnx.py', 'demo/checkpoints/atss_toy.pth'
PACKAGE = f'{os.sep}mmdeploy_ext{os.sep}'
called: set[str] = set()


def notice(frame: FrameType, event: str, _: object) -> None:
    """Note the file of a function that begins, unless an import is under way."""
    code = frame.f_code
    if event != 'call' or PACKAGE not in code.co_filename or code.co_name == '<module>':
        return
    while frame := frame.f_back:
        if frame.f_code.co_filename == '<frozen importlib._bootstrap>':
            return
    called.add(code.co_filename.rpartition(PACKAGE)[2])


def main(words: list[str]) -> None:
    if words:
        sys.argv = ['mm2onnx', *words]
        threading.setprofile(notice)
        sys.setprofile(notice)
        try:
            runpy.run_module('mmdeploy_ext', run_name='__main__')
        finally:
            sys.setprofile(None)
            print(*sorted(called), f'{len(called)} files of mmdeploy_ext called by {words[0]}', sep='\n')
        return
    with tempfile.TemporaryDirectory() as folder:
        file, drawn = str(Path(folder, 'toy.onnx')), str(Path(folder, 'toy.png'))
        export, verify = ['export', *DEMO, '--output-file', file], ['verify', *DEMO, file]
        for command in export, verify, ['run', file, 'demo/toy.jpg', '--out', drawn]:
            subprocess.run([sys.executable, __file__, *command], check=True)


if __name__ == '__main__':
    main(sys.argv[1:])
