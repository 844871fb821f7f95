"""Convert a checkpoint of mmdet 3, RT-DETR or SOLO; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdeploy_ext.cli.convert_app import main

sys.path.remove(str(Path(__file__).resolve().parents[1]))

if __name__ == '__main__':
    sys.exit(main())
