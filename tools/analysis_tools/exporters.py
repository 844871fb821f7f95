"""Measure both exporters on the small model of every family; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def register() -> None:
    """Import the projects whose families are measured."""
    import projects.mmdet3d_plugin
    import projects.mmdet_plugin  # noqa: F401


if __name__ == '__main__':
    from docs._pages.exporters.tool import main

    sys.exit(main(register))
