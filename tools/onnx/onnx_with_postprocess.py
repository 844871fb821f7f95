"""Draw the detections of an ONNX file that holds its post-processing (`pytorch2onnx.py --postprocess full`).

`python tools/onnx/onnx_with_postprocess.py MODEL IMAGE_OR_FOLDER... [--out PATH] [--json FILE]` needs numpy,
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
    """Run files of form `full`."""
    return run_images.main(argv, 'tools/onnx/onnx_with_postprocess.py', __doc__.splitlines()[0])


if __name__ == '__main__':
    sys.exit(main())
