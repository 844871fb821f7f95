"""Several processes that measure together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.core import distributed

if TYPE_CHECKING:
    import argparse


class Ranks:
    """The processes that measure together; one alone when there is no launcher."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Start torch.distributed when a launcher is given."""
        ranks = distributed.start(args.launcher, args.local_rank)
        self.rank, self.size, self.gather, self.barrier = ranks.rank, ranks.size, ranks.gather, ranks.gather
