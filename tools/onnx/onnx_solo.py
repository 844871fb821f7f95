"""Draw the instances that a SOLO, Decoupled SOLO or SOLOv2 file finds, whatever its form.

`python tools/onnx/onnx_solo.py MODEL IMAGE_OR_FOLDER... [--out PATH] [--json FILE]` needs numpy,
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
    """Run files of the SOLO family."""
    return run_images.main(argv, 'tools/onnx/onnx_solo.py', __doc__.splitlines()[0])


if __name__ == '__main__':
    sys.exit(main())
