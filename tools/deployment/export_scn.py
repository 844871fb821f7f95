"""Export the sparse backbone of a LiDAR model: `pytorch2onnx.py --backbone`; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdeploy_ext.cli.export_app import main

sys.path.remove(str(Path(__file__).resolve().parents[2]))

if __name__ == '__main__':
    sys.exit(main(['--backbone', *sys.argv[1:]]))
