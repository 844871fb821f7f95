"""Export SOLO, Decoupled SOLO or SOLOv2 to ONNX; the options are those of pytorch2onnx.py, see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def register() -> None:
    """Import the projects whose families can be exported."""
    import projects.mmdet_plugin  # noqa: F401


if __name__ == '__main__':
    from mmdeploy_ext.apps.export_app import main

    sys.exit(main(register, only='solo'))
