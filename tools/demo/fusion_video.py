"""Draw a scene's boxes in all cameras and over the points, by PyTorch, ONNX Runtime or both; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def register() -> None:
    """Import the projects whose models take all cameras, LiDAR or both."""
    import projects.mmdet3d_plugin  # noqa: F401


if __name__ == '__main__':
    from mmdeploy_ext.apps.video_app import main

    sys.exit(main(register))
