"""Evaluate a detector through mmdet's test loop with PyTorch or an ONNX engine; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdeploy_ext.stack import compat

compat.apply()  # also in loader workers that are spawned


def register() -> None:
    """Import the projects whose families can be evaluated."""
    import projects.mmdet_plugin  # noqa: F401


if __name__ == '__main__':
    from mmdeploy_ext.apps.test_app import main

    sys.exit(main(register))
