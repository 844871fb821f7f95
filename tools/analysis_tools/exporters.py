"""Measure both exporters on the small model of every family; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from docs._pages.exporters.tool import main

sys.path.remove(str(Path(__file__).resolve().parents[2]))

if __name__ == '__main__':
    sys.exit(main())
