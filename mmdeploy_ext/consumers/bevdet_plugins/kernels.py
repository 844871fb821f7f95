"""The pooling of BEVDet's plug-in, in numpy.

Source: HuangJunJie2017/BEVDet f71858d, ops/bev_pool_v2 (behaviour in own words).
"""

import numpy as np

POOL = 'bev_pool_v2'
"""Name of the plug-in in the domain `mmdeploy`."""


def pool(
    depth: np.ndarray,
    features: np.ndarray,
    ranks_depth: np.ndarray,
    ranks_feat: np.ndarray,
    ranks_bev: np.ndarray,
    interval_starts: np.ndarray,
    interval_lengths: np.ndarray,
    out_height: int,
    out_width: int,
) -> np.ndarray:
    """Return the sums (1, Y, X, C) float32 of depth (N, D, h, w) times features (N, h, w, C) per interval.

    The tables come from `tables.intervals`.
    """
    rows = features.reshape(-1, features.shape[-1])
    values = depth.ravel()[ranks_depth, None] * rows[ranks_feat]
    view = np.zeros((out_height * out_width, rows.shape[1]), np.float32)
    ends = np.stack([interval_starts, interval_starts + interval_lengths], 1).ravel()
    padded = np.concatenate([values, np.zeros_like(values[:1])])
    view[ranks_bev[interval_starts]] = np.add.reduceat(padded, ends)[::2]
    return view.reshape(1, out_height, out_width, -1)


KERNELS = {POOL: pool}
