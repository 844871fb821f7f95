"""Report what an export of a model will get wrong; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def register() -> None:
    """Import the projects whose families can be exported."""
    import projects.mmdet_plugin  # noqa: F401


if __name__ == '__main__':
    from mmdeploy_ext.apps.lint_app import main

    sys.exit(main(register))
