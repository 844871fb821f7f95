"""Look at ONNX files and check them; see --help. Only `diff` against a checkpoint needs torch."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdeploy_ext.cli.graph_app import main

sys.path.remove(str(Path(__file__).resolve().parents[2]))

if __name__ == '__main__':
    sys.exit(main())
