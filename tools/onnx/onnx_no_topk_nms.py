"""Draw the detections of an ONNX file without top-k and NMS (`pytorch2onnx.py --postprocess {decode,raw}`).

`python tools/onnx/onnx_no_topk_nms.py MODEL IMAGE_OR_FOLDER... [--out PATH] [--json FILE]` does threshold,
top-k and NMS (for `raw` also box decoding) in numpy, with the same result as the form `full`. It needs numpy,
opencv-python-headless and onnxruntime, nothing else.
"""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdeploy_ext.cli import run_images

sys.path.remove(str(Path(__file__).resolve().parents[2]))

main = functools.partial(run_images.main, runner='no_topk_nms', description=__doc__.splitlines()[0])

if __name__ == '__main__':
    sys.exit(main())
