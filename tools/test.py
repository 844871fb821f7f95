"""Evaluate a detector through mmdet's test loop with PyTorch or an ONNX engine; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdeploy_ext.apps.test_app import main
from mmdeploy_ext.core.cli import imports
from mmdeploy_ext.stack import compat

compat.apply()  # also in loader workers that are spawned

register = imports('projects.mmdet_plugin')

if __name__ == '__main__':
    sys.exit(main(register))
