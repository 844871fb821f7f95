"""Calibrate INT8 ranges of a LiDAR backbone, and see what int8 does to it; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def register() -> None:
    """Import the projects whose families have a sparse backbone."""
    import projects.mmdet3d_plugin  # noqa: F401


if __name__ == '__main__':
    from mmdeploy_ext.apps.scn_ptq_app import main

    sys.exit(main(register))
