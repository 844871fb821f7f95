"""Calibrate INT8 ranges of a LiDAR backbone, and see what int8 does to it; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdeploy_ext.cli.scn_ptq_app import main
from mmdeploy_ext.core.cli import imports

register = imports('mmdeploy_ext.families.mmdet3d_plugin')

if __name__ == '__main__':
    sys.exit(main(register))
