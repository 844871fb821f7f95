"""Starting torch.distributed under OpenMMLab's launchers, and exchange between its processes."""

import contextlib
import datetime
import os
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from mmdeploy_ext.base.errors import Mm2OnnxError, RankError, UsageError, one_line

JOIN_TIMEOUT = datetime.timedelta(minutes=10)
"""Wait for the other processes at the start."""
WORK_TIMEOUT = datetime.timedelta(hours=12)
"""Wait for a slower process; an ended process is noticed at once."""
ENVIRONMENT = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST', 'SLURM_JOB_ID'),
}
STARTERS = {'pytorch': 'torchrun', 'slurm': 'srun (tools/slurm_test.sh)'}
"""Launcher -> command that starts its processes."""


class Ranks:
    """The processes of a run; a single one without a launcher. Objects travel through gloo."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._over, self._group = size == 1, None  # over: there is nobody left to tell of a failure
        if size > 1:
            import torch.distributed as dist

            self._group = dist.new_group(backend='gloo', timeout=WORK_TIMEOUT)

    def gather(self, value: Any = None) -> list[Any]:
        """Return the picklable value of every rank, in order. Collective. RankError: another rank failed."""
        if self.size == 1:
            return [value]
        messages = self._exchange((value, None))
        for rank, (_, failure) in enumerate(messages):
            if failure:
                self._over = True
                message, exit_code = failure
                raise RankError(f'process {rank} of {self.size} failed: {message}', exit_code)
        return [value for value, _ in messages]

    def to_first(self, value: Any, gpu: bool = False) -> list[Any] | None:
        """Return the value of every rank on rank 0, else None. `gpu`: by the launcher's backend."""
        self.gather()  # nobody sends to one that has failed
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values = [None] * self.size if self.rank == 0 else None
        try:
            dist.gather_object(value, values, group=None if gpu else self._group)
        except RuntimeError as error:
            raise self._lost(error) from error
        return values

    def fail(self, error: Exception) -> None:
        """Tell the other ranks why this process stops; their next `gather` raises RankError."""
        if not self._over:
            self._over = True
            message = (
                one_line(error) if isinstance(error, Mm2OnnxError) else f'{type(error).__name__}: {error}'
            )
            with contextlib.suppress(RankError):
                self._exchange((None, (one_line(message), getattr(error, 'exit_code', 1))))

    def leave(self) -> None:
        """Close gloo's connections: their threads abort a process when peers disconnect."""
        if self._group is not None:
            import torch.distributed as dist

            with contextlib.suppress(RuntimeError, ValueError):
                dist.destroy_process_group(self._group)
                if dist.get_backend() == 'gloo':
                    dist.destroy_process_group()

    def _exchange(self, message: Any) -> list[Any]:
        import torch.distributed as dist

        messages: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(messages, message, group=self._group)
        except RuntimeError as error:
            raise self._lost(error) from error
        return messages

    def _lost(self, error: RuntimeError) -> RankError:
        self._over = True
        return RankError(
            f'another of the {self.size} processes ended without a message, or cannot be reached; its own '
            f'output says why ({one_line(error)})'
        )


@contextlib.contextmanager
def join(launcher: str, local_rank: int = 0, timeout: datetime.timedelta = JOIN_TIMEOUT) -> Iterator[Ranks]:
    """Join the other processes of a run; all leave the block, or all fail.

    `launcher` is 'none', 'pytorch' or 'slurm' (ignores `timeout`). UsageError: the launcher's variables are
    not set. RankError: the other processes did not come, or one failed.
    """
    ranks = Ranks() if launcher == 'none' else _start(launcher, local_rank, timeout)
    try:
        yield ranks
        ranks.gather()
    except Exception as error:
        ranks.fail(error)
        raise
    finally:
        ranks.leave()


def _start(launcher: str, local_rank: int, timeout: datetime.timedelta) -> Ranks:
    """mmcv's `init_dist` would spawn loader workers, which hung under a launcher; mmdet's own tools fork."""
    if missing := [name for name in ENVIRONMENT[launcher] if not os.environ.get(name)]:
        raise UsageError(
            f'--launcher {launcher}: {", ".join(missing)} not set; start the processes with '
            f'{STARTERS[launcher]}, or leave --launcher out for one process'
        )
    import multiprocessing

    import torch
    from mmcv.runner import get_dist_info, init_dist

    multiprocessing.set_start_method('fork', force=True)
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    limit = dict(timeout=timeout)
    if launcher == 'slurm':
        # mmcv would let every process look for a free port of its own; and it takes no timeout
        os.environ.setdefault('MASTER_PORT', str(20000 + int(os.environ['SLURM_JOB_ID']) % 20000))
        limit = {}
    try:
        init_dist(launcher, backend='nccl' if torch.cuda.is_available() else 'gloo', **limit)
        return Ranks(*get_dist_info())
    except (RuntimeError, ValueError) as error:
        place = ':'.join(os.environ.get(name, '?') for name in ('MASTER_ADDR', 'MASTER_PORT'))
        raise RankError(
            f'--launcher {launcher}: the processes did not find each other at {place} within '
            f'{timeout.total_seconds():.0f} s: {one_line(error)}'
        ) from error


def shard_scenes(scene_tokens: Sequence[Hashable], rank: int, world_size: int) -> list[int]:
    """Sample indices of one process: whole scenes, the longest to the process with the fewest frames."""
    scenes: dict[Hashable, list[int]] = {}
    for index, token in enumerate(scene_tokens):
        scenes.setdefault(token, []).append(index)
    shards: list[list[list[int]]] = [[] for _ in range(world_size)]
    sizes = [0] * world_size
    for frames in sorted(scenes.values(), key=lambda frames: (-len(frames), frames[0])):
        smallest = sizes.index(min(sizes))
        shards[smallest].append(frames)
        sizes[smallest] += len(frames)
    return [index for frames in sorted(shards[rank]) for index in frames]
