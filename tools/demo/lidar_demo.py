"""Draw the boxes of a LiDAR sweep by PyTorch, ONNX Runtime or both, seen from above; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from lidar_demo_app import main

sys.path.remove(str(Path(__file__).resolve().parent))
sys.path.remove(str(Path(__file__).resolve().parents[2]))

if __name__ == '__main__':
    sys.exit(main())
