"""Draw the detections of an ONNX file without top-k and NMS (`pytorch2onnx.py --postprocess {decode,raw}`).

`python tools/onnx/onnx_no_topk_nms.py MODEL IMAGE_OR_FOLDER... [--out PATH] [--json FILE]` does threshold,
top-k and NMS (for `raw` also box decoding) in numpy, with the same result as the form `full`. It needs numpy,
opencv-python-headless and onnxruntime, nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdeploy_ext.runtime import run_images

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run files of forms `decode` and `raw`."""
    return run_images.main(argv, 'tools/onnx/onnx_no_topk_nms.py', __doc__.splitlines()[0])


if __name__ == '__main__':
    sys.exit(main())
