"""mmcv's layers as torch's own, in exported copies.

mmcv 1.7.2's convolutions, linear and pooling layers ask whether their input is empty before they ask whether
this is PyTorch 1.4. torch.export cannot answer for a number of regions that it does not know.
"""

import functools

from torch import nn

from mmdeploy_ext.exporting.fold import PREPARATIONS

WRAPPERS = 'mmcv.cnn.bricks.wrappers'
"""The module of mmcv that has them."""


def ask_nothing(module: nn.Module) -> None:
    """Let a layer of mmcv run as the layer of torch that it is derived from, in place."""
    kind = type(module)
    if kind.__module__ == WRAPPERS:
        module.forward = functools.partial(kind.__mro__[1].forward, module)


PREPARATIONS.append(ask_nothing)
