"""Train a detector with mmdet's own loop, on CPU or GPU; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdeploy_ext.cli.train_app import main

sys.path.remove(str(Path(__file__).resolve().parents[1]))

if __name__ == '__main__':
    sys.exit(main())
