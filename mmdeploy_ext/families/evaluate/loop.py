"""The data-set loop of every model and engine: a share per process, results by sample index."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.base.cli import tracked
from mmdeploy_ext.base.distributed import Ranks, shard_scenes
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.families.evaluate.evaluation import build_loader, loader_errors, loader_settings

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from mmdeploy_ext.families.sequence import SequenceFamily
    from mmdeploy_ext.runtime.frames import Frame, Sweep


class Network(abc.ABC):
    """A model on an engine.

    Attributes:
        one_by_one: takes single samples in the order of the data set.
    """

    one_by_one: ClassVar[bool] = False

    def start(self, dataset: Dataset) -> list[str] | None:
        """Reset the state; return the scene of every sample, or None if samples are independent.

        One process runs all samples of a scene, in order.
        """
        return None

    @abc.abstractmethod
    def run(self, data: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
        """Return a result per sample of a batch, as the evaluator takes it.

        `data` is a batch of the test loader, `indices` the samples' indices in the data set.
        """


@dataclasses.dataclass(frozen=True)
class DatasetFrames:
    """Prepared frames of a data set, read one by one (a hundred would not fit beside a model).

    `workers` 0 reads in this process.
    """

    family: SequenceFamily
    dataset: Dataset
    indices: Sequence[int]
    workers: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Frame | Sweep]:
        with loader_errors():
            for data in build_loader(self.dataset, self.indices, workers_per_gpu=self.workers):
                yield self.family.data.frame(data)


def run_dataset(
    network: Network,
    cfg: Any,
    dataset: Dataset,
    ranks: Ranks | None = None,
    tmpdir: str | None = None,
    gpu_collect: bool = False,
) -> list[Any] | None:
    """Run a model over a data set; return results in order on rank 0 (masks as run lengths), else None."""
    ranks = ranks or Ranks()
    scenes = network.start(dataset) or range(len(dataset))
    indices = shard_scenes(scenes, ranks.rank, ranks.size)
    settings = loader_settings(cfg)
    if network.one_by_one:
        settings['samples_per_gpu'] = 1
    loader = build_loader(dataset, indices, **settings)
    results: dict[int, Any] = {}
    with loader_errors():
        for data in tracked(loader, len(loader), 'batches', ranks.rank == 0):
            batch = indices[len(results) : len(results) + loader.batch_size]
            for index, result in zip(batch, network.run(data, batch), strict=True):
                _check_finite(index, result)
                results[index] = _compact(result)
    return collect(results, len(dataset), ranks, tmpdir, gpu_collect)


def _check_finite(index: int, result: Any) -> None:
    """COCO's evaluator takes boxes with NaN for matches of any object."""
    if not all(np.isfinite(array).all() for array in _float_arrays(result)):
        raise DataError(
            f'sample {index}: the model returned boxes or scores that are NaN or infinite, so nothing '
            'was evaluated'
        )


def _float_arrays(result: Any) -> Iterator[np.ndarray]:
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, list | tuple):
        for value in result:
            yield from _float_arrays(value)
        return
    array = getattr(result, 'tensor', result)  # of boxes in 3D
    if hasattr(array, 'detach'):
        array = array.detach().cpu().numpy()
    if isinstance(array, np.ndarray) and array.dtype.kind == 'f':
        yield array


def _compact(result: Any) -> Any:
    if isinstance(result, dict) and 'ins_results' in result:
        return dict(result, ins_results=_compact(result['ins_results']))
    if not isinstance(result, tuple):
        return result
    from mmdet.core import encode_mask_results

    boxes, masks = result
    return boxes, encode_mask_results(masks)


def collect(
    results: dict[int, Any],
    samples: int,
    ranks: Ranks,
    tmpdir: str | None = None,
    gpu_collect: bool = False,
) -> list[Any] | None:
    """Results in data-set order on rank 0, else None.

    Parts travel through the shared folder `tmpdir`, or by gloo, or with `gpu_collect` between GPUs.
    """
    by_files = tmpdir and ranks.size > 1
    parts = _parts_in(Path(tmpdir), results, ranks) if by_files else ranks.to_first(results, gpu_collect)
    if parts is None:
        return None
    indices = [index for part in parts for index in part]
    if sorted(indices) != list(range(samples)):
        raise DataError(
            f'the processes ran {len(indices)} samples, {len(set(indices))} of them different; expected each '
            f'of {samples} once'
        )
    merged = {index: result for part in parts for index, result in part.items()}
    return [merged[index] for index in range(samples)]


def _parts_in(folder: Path, results: dict[int, Any], ranks: Ranks) -> list[dict[int, Any]] | None:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f'part_{rank}.pkl' for rank in range(ranks.size)]
    if not ranks.rank:
        for path in paths:  # of a run that has failed; it would stand for one that is not shared
            path.unlink(missing_ok=True)
    ranks.gather()
    paths[ranks.rank].write_bytes(pickle.dumps(results))
    ranks.gather()
    if ranks.rank:
        return None
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f'--tmpdir {folder}: has no {", ".join(missing)}; expected a folder that the machines of all '
            'processes share, or omit --tmpdir'
        )
    parts = [pickle.loads(path.read_bytes()) for path in paths]
    for path in paths:
        path.unlink()
    with contextlib.suppress(OSError):  # it holds other files of the user
        folder.rmdir()
    return parts
