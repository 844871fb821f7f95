"""Say what a perception node of Autoware would reject or read wrongly in a folder; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdeploy_ext.cli.check_app import check_autoware

sys.path.remove(str(Path(__file__).resolve().parents[2]))

if __name__ == '__main__':
    sys.exit(check_autoware())
