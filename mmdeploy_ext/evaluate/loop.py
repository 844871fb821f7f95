"""The data-set loop of every model and engine: a share per process, results by sample index."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.core.cli import tracked
from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.distributed import Ranks, shard_scenes
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.evaluate.evaluation import build_loader, loader_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.utils.data import Dataset

    from mmdeploy_ext.families.sequence import SequenceFamily
    from mmdeploy_ext.runtime.frames import Frame, Sweep


class Network(abc.ABC):
    """A model on an engine, as the loop runs it; its kinds are in `detector.py`.

    Attributes:
        one_by_one: whether it takes batches of one sample, in the order of the data set.
    """

    one_by_one: ClassVar[bool] = False

    def start(self, dataset: Dataset) -> list[str] | None:
        """Reset the state; return the scene of every sample, or None if each sample stands alone.

        All samples of a scene are run by one process, in the order of the data set.
        """
        return None

    @abc.abstractmethod
    def run(self, data: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
        """Return a result per sample of a batch, as the data set's evaluator takes it.

        Args:
            data: a batch of the test loader: key that the test pipeline collects -> values of the samples.
            indices: indices of these samples in the data set.
        """


def scene_tokens(dataset: Dataset, required: bool = True) -> list[str]:
    """Return the scene token of every sample of an mmdet3d nuScenes data set.

    If an entry of its info file has none, as mmdet3d's, and of any other data set, every token is '', or a
    DataError is raised if they are `required`.
    """
    infos = getattr(dataset, 'data_infos', [])
    if not infos or not all('scene_token' in info for info in infos):
        if not required:
            return [''] * len(dataset)
        raise DataError(
            f'{getattr(dataset, "ann_file", "the data set")}: its infos have no scene_token, so frames '
            f'cannot be put in sequence; make the info file with {tool("synthetic infos")}'
        )
    return [str(info['scene_token']) for info in infos]


@dataclasses.dataclass(frozen=True)
class DatasetFrames:
    """Samples of a data set as frames that are prepared for the network, as the family's `frame` makes them.

    They are read one by one: a hundred of them would not fit beside a model.

    Attributes:
        family: makes a frame of a sample of the test loader.
        dataset: built by `evaluation.build_dataset`.
        indices: indices of the samples, in the order in which they are read.
        workers: processes that read; 0: this one.
    """

    family: SequenceFamily
    dataset: Dataset
    indices: Sequence[int]
    workers: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Frame | Sweep]:
        """Read the frames."""
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
    """Run a model over a data set.

    A DataError names a sample that cannot be read, or of which a result is NaN or infinite.

    Args:
        network: the model on an engine.
        cfg: the config, with the loader's settings.
        dataset: built by `evaluation.build_dataset`.
        ranks: the processes that share the samples; None for this process alone.
        tmpdir: folder that all processes share, see `collect`; None sends the parts.
        gpu_collect: see `collect`.

    Returns:
        One result per sample in data-set order on rank 0, with run-length encoded masks; None elsewhere.
    """
    ranks = ranks or Ranks()
    scenes = network.start(dataset) or range(len(dataset))
    indices = shard_scenes(scenes, ranks.rank, ranks.size)
    settings = {'workers_per_gpu': cfg.data.get('workers_per_gpu', 2), **cfg.data.get('test_dataloader', {})}
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
    """Refuse results of the sample at an index with a value that is NaN or infinite.

    COCO's evaluator takes such a box for a match of any object.
    """
    if not all(np.isfinite(array).all() for array in _float_arrays(result)):
        raise DataError(
            f'sample {index}: the model gave boxes or scores that are NaN or infinite, nothing is evaluated'
        )


def _float_arrays(result: Any) -> Iterator[np.ndarray]:
    """Yield all arrays of floats in a result, as mmdet or mmdet3d give it: in lists, tuples and dicts.

    Tensors, and the tensors of mmdet3d's boxes, are among them as arrays.
    """
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
    """Return a result with its masks run-length encoded, which mmdet's evaluators accept, too.

    A panoptic detector of mmdet may give instances beside its map (`ins_results`).
    """
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
    """Return one result per sample of the data set on rank 0, None elsewhere.

    Args:
        results: results of this process, by sample index.
        samples: size of the data set.
        ranks: the processes.
        tmpdir: a folder that all of them share, made if it is missing, for the parts of several processes,
            which are removed at the end, and the folder if nothing else is in it; None sends the parts.
        gpu_collect: send the parts from GPU to GPU; not used with `tmpdir`.

    Raises:
        DataError: on rank 0, a sample was run by no process, or by two; or a part is missing in `tmpdir`.
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
    """Return the parts of all processes, through files, on rank 0."""
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
            f'processes share, or leave --tmpdir out'
        )
    parts = [pickle.loads(path.read_bytes()) for path in paths]
    for path in paths:
        path.unlink()
    with contextlib.suppress(OSError):  # it holds other files of the user
        folder.rmdir()
    return parts
