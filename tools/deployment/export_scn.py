"""Export the sparse backbone of a LiDAR model; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def register() -> None:
    """Import the projects whose families can be exported."""
    import projects.mmdet3d_plugin.sparse_backbone  # noqa: F401


if __name__ == '__main__':
    from mmdeploy_ext.apps.export_scn_app import main

    sys.exit(main(register))
