"""`python -m mm2onnx_mmrotate.training CONFIG`: `tools/train.py`, with what mmrotate 0.3.4 needs on a CPU.

The patch comes before the import of mmrotate, which the config makes. `after` calls it with the module; the
decorated name takes a function that runs the module's code, too, and returns a bool.
"""

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from mmdeploy_ext.compat.import_hook import after


@after('mmrotate.models.dense_heads.rotated_anchor_head', versions='mmrotate 0.3.4')
def anchors_of_training_on_the_device(module: ModuleType) -> None:
    """RotatedAnchorHead.get_anchors passes the device as the dtype of anchors, so that they need a GPU.

    Here they are made on the device that it is called with.
    """
    original = module.RotatedAnchorHead.get_anchors

    @functools.wraps(original)
    def get_anchors(self: Any, featmap_sizes: Any, img_metas: Any, device: Any = 'cuda') -> tuple[list, list]:
        anchors = self.anchor_generator.grid_priors(featmap_sizes, device=device)
        flags = [
            self.anchor_generator.valid_flags(featmap_sizes, meta['pad_shape'], device) for meta in img_metas
        ]
        return [anchors] * len(img_metas), flags

    module.RotatedAnchorHead.get_anchors = get_anchors


def main(argv: Sequence[str] | None = None) -> int:
    """Train a detector; arguments and exit status are those of `tools/train.py`.

    `argv` are the words of the command line, None those of `sys.argv`.
    """
    from mmdeploy_ext.cli import train_app

    return train_app.main(argv)


if __name__ == '__main__':
    raise SystemExit(main())
