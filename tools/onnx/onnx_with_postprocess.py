"""Draw the detections of an ONNX file that holds its post-processing (`pytorch2onnx.py --postprocess full`).

`python tools/onnx/onnx_with_postprocess.py MODEL IMAGE_OR_FOLDER... [--out PATH] [--json FILE]` needs numpy,
opencv-python-headless and onnxruntime, nothing else.
"""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdeploy_ext.cli import run_images

sys.path.remove(str(Path(__file__).resolve().parents[2]))

main = functools.partial(run_images.main, runner='with_postprocess', description=__doc__.splitlines()[0])

if __name__ == '__main__':
    sys.exit(main())
