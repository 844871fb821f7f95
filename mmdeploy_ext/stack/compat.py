"""All that mmcv-full 1.7.2, mmdet 2.28.2, mmdet3d 1.0.0rc6 and spconv 2.3.8 need on today's PyTorch.

`apply()` imports no library: each patch runs when its module is imported, and looks then whether it is
needed. Call it before the first import of torchvision, mmcv, mmdet or mmdet3d:

    from mmdeploy_ext.stack import compat
    compat.apply()
    import mmdet.apis

It returns all the patches; `effective()` says later which of them had something to do. See
`import_hook.Patch` for what a patch takes and returns.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from mmdeploy_ext.stack import patches_mmcv, patches_mmdet, patches_spconv  # noqa: F401 - they register
from mmdeploy_ext.stack.import_hook import PATCHES
from mmdeploy_ext.stack.patches_mmcv import numpy_checkpoint_globals

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ['apply', 'effective', 'numpy_checkpoint_globals', 'single_thread']

apply = PATCHES.apply
effective = PATCHES.effective


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Runs its body with one OpenMP thread in every loaded runtime; spconv 2.3.8 on CPU needs it.

    With more threads it has a race: 4 of 27,774 rows of a convolution were wrong, others in each run (one
    thread: within 1e-7, and faster). It brings an OpenMP runtime of its own, so torch.set_num_threads alone
    does not reach it.
    """
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1, user_api='openmp'):
            yield
    finally:
        torch.set_num_threads(threads)
