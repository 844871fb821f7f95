"""Several processes that measure together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core import distributed

if TYPE_CHECKING:
    import argparse


class Ranks:
    """The processes that measure together; one alone when there is no launcher."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Start torch.distributed when a launcher is given."""
        self.rank, self.size = distributed.start(args.launcher, args.local_rank)

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
