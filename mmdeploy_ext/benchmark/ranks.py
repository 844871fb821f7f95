"""Several processes that measure together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse


class Ranks:
    """The processes that measure together; one alone when there is no launcher."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Start torch.distributed when a launcher is given."""
        self.rank, self.size = 0, 1
        if args.launcher != 'none':
            import torch
            from mmcv.runner import get_dist_info, init_dist

            os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
            init_dist(args.launcher, backend='nccl' if torch.cuda.is_available() else 'gloo')
            self.rank, self.size = get_dist_info()

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed

        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values
