"""Evaluate a detector through mmdet's test loop with PyTorch or an ONNX engine; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdeploy_ext.cli.test_app import main
from mmdeploy_ext.upstream import compat

sys.path.remove(str(Path(__file__).resolve().parents[1]))

compat.apply()  # also in loader workers that are spawned

if __name__ == '__main__':
    sys.exit(main())
