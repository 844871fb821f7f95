"""mmcv 2's `_ext`: the operators that mmcv-full 1.7.2 compiled for .venv/; make copies it to mmcv/_ext.py."""

import importlib.util
import sys
from pathlib import Path

import torch  # noqa: F401 its libraries are loaded before the extension

(compiled,) = (
    file for path in sys.path for file in Path(path, 'mmcv').glob('_ext.*') if file.suffix in ('.so', '.pyd')
)
spec = importlib.util.spec_from_file_location('mmcv._ext', compiled)
operators = importlib.util.module_from_spec(spec)
spec.loader.exec_module(operators)


def __getattr__(name):  # noqa: ANN001, ANN202
    def absent(*args, **kwargs):  # noqa: ANN002, ANN003, ANN202
        raise NotImplementedError(f'mmcv-full 1.7.2 has no operator {name}, which mmcv 2.1 calls')

    return getattr(operators, name, absent)
