"""Angle versions of mmrotate 0.3.4: the interval in which an angle is, for numpy and PyTorch (`xp`).

Source: `core/bbox/transforms.py`, `norm_angle`.
"""

from types import ModuleType
from typing import Any, Literal

import numpy as np

VERSIONS = dict(oc=None, le135=float(np.pi / 4), le90=float(np.pi / 2))
"""Angle version -> how far below zero its interval of length pi begins; None: not wrapped."""
Version = Literal['oc', 'le135', 'le90']
"""Key of `VERSIONS`."""
PI = float(np.pi)


def norm_angle(xp: ModuleType, angle: Any, version: str) -> Any:
    """Return angles, radians, in the interval of a version, whose upper end is not in it but by rounding.

    `oc` leaves them as they are. `xp` is numpy or torch.

    The rest of a division by pi is exact in `fmod`, which is one operator in ONNX; PyTorch's `%` would become
    a division that rounds.
    """
    start = VERSIONS[version]
    if start is None:
        return angle
    rest = xp.fmod(angle + start, PI)
    return xp.where(rest < 0, rest + PI, rest) - start
