"""A data set of frames through a streaming model: whole scenes per process, results by sample index."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from mmdeploy_ext.core.cli import stderr
from mmdeploy_ext.core.dump import save_dump
from mmdeploy_ext.core.errors import ConfigError, DataError
from mmdeploy_ext.core.taps import collect_taps
from mmdeploy_ext.evaluate.evaluation import loader_errors
from mmdeploy_ext.evaluate.sharding import shard_scenes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset

    from mmdeploy_ext.families.sequence import SequenceFamily
    from mmdeploy_ext.runtime.frames import Frame, Stepper, Sweep


@dataclasses.dataclass
class FrameDump:
    """What the `_pth` configs write.

    Attributes:
        folder: one sub-folder per frame, named by the sample index, is made in it.
        facts: kept in every manifest.
        frames: how many frames of the data set are written, or which (sample indices).
        tensors: names to write; None means all.
    """

    folder: Path
    facts: dict[str, Any]
    frames: int | Sequence[int] = 4
    tensors: Sequence[str] | None = None

    def wants(self, index: int) -> bool:
        """Return whether this sample is written."""
        return index < self.frames if isinstance(self.frames, int) else index in self.frames

    def write(
        self, index: int, frame: Frame | Sweep, tensors: Mapping[str, np.ndarray], suffixes: Mapping[str, str]
    ) -> None:
        """Write one frame.

        Args:
            index: of the sample.
            frame: for the manifest.
            tensors: everything that there is.
            suffixes: name prefix -> what its files end in.

        Raises:
            ConfigError: `tensors` of the config names one that there is not.
        """
        unknown = sorted(set(self.tensors or ()) - tensors.keys())
        if unknown:
            raise ConfigError(
                f'backend_config.dump.tensors names {unknown}, which this model does not have; there are '
                f'{sorted(tensors)}'
            )
        chosen = {name: array for name, array in tensors.items() if name in (self.tensors or tensors)}
        facts = dict(
            self.facts,
            sample=index,
            frame=frame.name,
            scene_token=frame.scene_token,
            timestamp_s=frame.timestamp_s,
        )
        save_dump(self.folder / f'{index:06d}', chosen, facts, suffixes=suffixes)


def scene_tokens(dataset: Dataset) -> list[str]:
    """Return the scene token of every sample of an mmdet3d nuScenes data set.

    Raises:
        DataError: its info file has none.
    """
    infos = getattr(dataset, 'data_infos', [])
    if not infos or not all('scene_token' in info for info in infos):
        raise DataError(
            f'{getattr(dataset, "ann_file", "the data set")}: its infos have no scene_token, so frames '
            f'cannot be put in sequence; make the info file with tools/create_data.py'
        )
    return [str(info['scene_token']) for info in infos]


def sample_scenes(family: SequenceFamily, dataset: Dataset) -> list[str]:
    """Return the scene token of every sample; without a memory every sample is a scene of its own.

    Raises:
        DataError: see `scene_tokens`.
    """
    if family.memory:
        return scene_tokens(dataset)
    return [str(index) for index in range(len(dataset))]


def frame_loader(dataset: Dataset, indices: Sequence[int], workers: int) -> DataLoader:
    """Return a loader that gives these samples one by one, in this order."""
    from mmcv.parallel import collate
    from torch.utils.data import DataLoader

    return DataLoader(
        dataset,
        batch_size=1,
        sampler=list(indices),
        num_workers=workers,
        collate_fn=functools.partial(collate, samples_per_gpu=1),
    )


def frames_of(
    family: SequenceFamily, dataset: Dataset, indices: Sequence[int], workers: int = 2
) -> Iterator[Frame | Sweep]:
    """Yield samples of a data set as frames."""
    with loader_errors():
        for data in frame_loader(dataset, indices, workers):
            yield family.frame(data)


@dataclasses.dataclass(frozen=True)
class DatasetFrames:
    """Samples of a data set as frames, read one by one: a hundred of them would not fit beside a model.

    Attributes:
        family: makes frames of samples.
        dataset: built by `evaluation.build_dataset`.
        indices: of the samples, in order.
    """

    family: SequenceFamily
    dataset: Dataset
    indices: Sequence[int]

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.indices)

    def __iter__(self) -> Iterator[Frame | Sweep]:
        """Read the frames anew."""
        return frames_of(self.family, self.dataset, self.indices, workers=0)


def run_frames(
    stepper: Stepper,
    family: SequenceFamily,
    dataset: Dataset,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 2,
    dump: FrameDump | None = None,
    model: torch.nn.Module | None = None,
    keep_memory: bool = True,
) -> dict[int, dict[str, Any]]:
    """Run this process's scenes.

    Args:
        stepper: the model on an engine.
        family: makes frames of samples, and results of detections.
        dataset: built by `evaluation.build_dataset`.
        rank: of this process.
        world_size: number of processes.
        workers: loader processes.
        dump: what to write while it runs; needs `model`.
        model: the PyTorch model whose taps are written.
        keep_memory: False empties the memory before every frame.

    Returns:
        Sample index -> result, as the data set's evaluator takes it.
    """
    indices = shard_scenes(sample_scenes(family, dataset), rank, world_size)
    results: dict[int, dict[str, Any]] = {}
    console = stderr()
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    shown = console.is_terminal and rank == 0
    stepper.reset()
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        frames = frames_of(family, dataset, indices, workers)
        for index, frame in bar.track(zip(indices, frames, strict=True), len(indices), description='frames'):
            if not keep_memory:
                stepper.reset()
            if dump is not None and dump.wants(index):
                with collect_taps() as taps:
                    found = stepper.step(frame)
                dump.write(index, frame, family.dump_tensors(model, taps), family.dump_suffixes)
            else:
                found = stepper.step(frame)
            results[index] = family.result(found.detections)
    return results


def collect(results: dict[int, dict[str, Any]], samples: int, world_size: int) -> list[Any] | None:
    """Bring the results of all processes into data-set order.

    Args:
        results: of this process, by sample index.
        samples: size of the data set.
        world_size: number of processes.

    Returns:
        One result per sample on rank 0, None elsewhere.

    Raises:
        DataError: a sample was run by no process, or by two.
    """
    parts = [results]
    if world_size > 1:
        import torch.distributed as dist

        parts = [None] * world_size if dist.get_rank() == 0 else None
        dist.gather_object(results, parts)
        if parts is None:
            return None
    counts = [index for part in parts for index in part]
    if sorted(counts) != list(range(samples)):
        raise DataError(
            f'the processes ran {len(counts)} samples, {len(set(counts))} of them different; expected each '
            f'of {samples} once'
        )
    merged = {index: result for part in parts for index, result in part.items()}
    return [merged[index] for index in range(samples)]
