"""Draw a scene's boxes in all cameras and over the points, by PyTorch, ONNX Runtime or both; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from video_app import main

sys.path.remove(str(Path(__file__).resolve().parent))
sys.path.remove(str(Path(__file__).resolve().parents[2]))

if __name__ == '__main__':
    sys.exit(main())
