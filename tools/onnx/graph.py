"""Look at ONNX files and check them; see --help. Only `diff` against a checkpoint needs torch."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def register() -> None:
    """Import the projects whose families can be compared with a checkpoint."""
    import projects.mmdet_plugin  # noqa: F401


if __name__ == '__main__':
    from mmdeploy_ext.apps.graph_app import main

    sys.exit(main(register=register))
