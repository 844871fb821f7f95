"""Starting torch.distributed under OpenMMLab's launchers, on GPUs and on CPU alike."""

from __future__ import annotations

import os


def start(launcher: str, local_rank: int = 0) -> tuple[int, int]:
    """Join the other processes of a run.

    Loader workers are forked, as mmdet's own tools have it: mmcv's `init_dist` would choose to spawn them,
    and spawned ones hung under a launcher.

    Args:
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        local_rank: number of this process on its machine, where the launcher has not set LOCAL_RANK.

    Returns:
        Rank of this process and number of processes; 0 and 1 without a launcher.
    """
    if launcher == 'none':
        return 0, 1
    import multiprocessing

    import torch
    from mmcv.runner import get_dist_info, init_dist

    multiprocessing.set_start_method('fork', force=True)
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    init_dist(launcher, backend='nccl' if torch.cuda.is_available() else 'gloo')
    return get_dist_info()
