"""Draw the boxes of a LiDAR sweep by PyTorch, ONNX Runtime or both, seen from above; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def register() -> None:
    """Import the projects whose models take sweeps."""
    import projects.mmdet3d_plugin  # noqa: F401


if __name__ == '__main__':
    from mmdeploy_ext.apps.lidar_demo_app import main

    sys.exit(main(register))
