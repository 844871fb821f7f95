"""Models of frames and sweeps, with or without a memory."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.base.errors import ConfigError, DataError, UsageError, after_weights, one_line
from mmdeploy_ext.base.files import IMAGE_SUFFIXES
from mmdeploy_ext.bench.kinds.base import INPUTS_INSTEAD, OF_PICTURES, Kind
from mmdeploy_ext.engines.registry import check_engine_kind

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from mmdeploy_ext.bench.benchmark.base import Benchmark
    from mmdeploy_ext.bench.kinds.tested import TestedModel
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.inputs import ChosenSamples, Samples


# Frames and sweeps of a proof: the user's files, the config's data set, or generated.


DEFAULT_FRAMES = 12
"""Default maximum of frames or sweeps."""
PROOF_SCENES = 3
"""Number of scenes in a proof."""


class SequenceSamples:
    """Frames or sweeps.

    Attributes:
        paths: user files and folders.
        count: maximum of frames, or sweeps per path.
    """

    pictures = ()

    def __init__(self, family: Family, paths: Sequence[str], frames: int | None, option: str) -> None:
        self.paths, self.count = paths, check_paths(family, paths, frames, option)

    def of(self, detector: Detector) -> ChosenSamples:
        from mmdeploy_ext.proving.inputs import ChosenSamples

        with after_weights():
            return ChosenSamples(*proof_samples(detector, self.count, self.paths))


def check_paths(
    family: Family, paths: Sequence[str], count: int | None = None, option: str = '--images'
) -> int:
    """Raise UsageError unless files are samples of a family; return the number of frames."""
    if _has_cameras(family) and len(paths) > 1:
        raise UsageError(f'{option} {" ".join(paths)}: expected one info file with all frames')
    for path in paths:
        if not Path(path).exists():
            raise UsageError(f'{option} {path}: no such file or folder')
        suffix = Path(path).suffix.lower()
        if _has_cameras(family) and suffix != '.pkl':
            models = 'models with a memory' if family.memory else 'models of cameras'
            raise UsageError(
                f'{option} {path}: {models} need frames with poses and calibrations: pass an info file '
                f'(.pkl); without {option} they come from data.test or are generated'
            )
        if suffix in IMAGE_SUFFIXES:
            raise UsageError(
                f'{option} {path}: is an image, the model expects LiDAR sweeps: points (.bin, .npy), a '
                'folder of them, or an info file (.pkl, .json)'
            )
    minimum = 2 if family.memory else 1
    if count is not None and count < minimum:
        why = '; a memory needs a previous frame' if family.memory else ''
        raise UsageError(f'--frames {count}: expected {minimum} or more{why}')
    return count or DEFAULT_FRAMES


def _has_cameras(family: Family) -> bool:
    return family.memory or family.samples == 'fused'


def proof_samples(detector: Detector, count: int, paths: Sequence[str] = ()) -> tuple[Collection[Any], str]:
    """Return frames or sweeps, and a text about their source.

    `count`: maximum of samples, per path with LiDAR. Without `paths`: the config's data set, or
    generated samples.
    """
    from mmdeploy_ext.families.evaluate import evaluation
    from mmdeploy_ext.families.evaluate.loop import DatasetFrames
    from mmdeploy_ext.families.synthetic.drive import synthetic_drive
    from mmdeploy_ext.proving.inputs import points_of
    from mmdeploy_ext.runtime.frames import Sweep

    family, cfg, rule = detector.family, detector.cfg, detector.rule
    names = ', '.join(Path(path).name for path in paths)
    if paths and not _has_cameras(family):
        sweeps = itertools.chain(*(points_of(path, cfg, rule, count) for path in paths))
        return [Sweep(points, name) for name, points in sweeps], names
    if paths:
        cfg = copy.deepcopy(cfg)
        cfg.merge_from_dict({'data.test.ann_file': str(Path(paths[0]).resolve())})
    try:
        dataset = evaluation.build_dataset(cfg)
    except (ConfigError, DataError) as error:
        if paths:
            raise
        source = (
            f'a synthetic drive of {count} frames is' if family.memory else f'{count} generated sweeps are'
        )
        print(f'{source} used, since there is no data set: {one_line(error)}')
        if family.memory:
            scenes = min(PROOF_SCENES, max(count - 1, 1))  # a scene has two: the second has a memory
            return synthetic_drive(count, rule, scenes=scenes), 'synthetic drive'
        return list(family.data.generated_sweeps(rule, count)), 'generated sweeps'
    if tokens := family.scenes(dataset):
        indices = choose_frames(tokens, count)
    else:  # without a memory samples are independent: spread them evenly
        available = min(count, len(dataset))
        indices = [index * len(dataset) // available for index in range(available)]
    source = f'{len(indices)} of {len(dataset)} frames of {names or "data.test"}'
    return DatasetFrames(family, dataset, indices), source


def choose_frames(tokens: Sequence[str], count: int) -> list[int]:
    """Return the first frames of the first scenes, so that the memory is reset."""
    scenes: dict[str, list[int]] = {}
    for index, token in enumerate(tokens):
        scenes.setdefault(token, []).append(index)
    share = max(-(-count // PROOF_SCENES), 2)
    while sum(min(len(scene), share) for scene in scenes.values()) < min(count, len(tokens)):
        share += 1
    return [index for scene in scenes.values() for index in scene[:share]][:count]


NO_SUCH_OPTION = 'family {entry.name!r} has no such option; {entry.of_config}'
SIZES_OF_CONFIG = 'streaming and LiDAR models do not have it; their config decides graphs and sizes'


class Sequences(Kind):
    proving = 'mmdeploy_ext.proving.frames'
    refuses: ClassVar = {
        'export': dict.fromkeys(('picture', 'mean', 'std', 'show'), NO_SUCH_OPTION),
        'verify': dict.fromkeys(('mean', 'std'), OF_PICTURES),
        'test': dict.fromkeys(('show_dir', 'show_score_thr'), 'these models are drawn by {drawn_by}'),
        'graph diff': {'images': INPUTS_INSTEAD},
        'lint': dict.fromkeys(('input_img', 'shape', 'dynamic_export', 'postprocess'), SIZES_OF_CONFIG),
    }

    def samples(
        self,
        detector: Detector,
        paths: Sequence[str] = (),
        frames: int | None = None,
        option: str = '--images',
        *,
        traced: str | Path = '',
    ) -> Samples:
        return SequenceSamples(detector.family, paths, frames, option)

    def test(self, detector: Detector) -> Iterator[Any]:
        frames, _ = proof_samples(detector, 2)
        frames = [*itertools.islice(frames, 2)]
        for _ in range(2 if detector.family.memory else 1):  # run 2 has the layers of the first
            yield from map(detector.family.reference(detector.model).step, frames)

    def rows_kept(self) -> Callable[..., list[Any]]:
        from mmdeploy_ext.bench.precision.results_kept import rows_of_frames

        return rows_of_frames

    def kit_contents(
        self, detector: Detector, path: str, samples: Collection[Any], folder: Path
    ) -> dict[str, Any]:
        from mmdeploy_ext.bench.kit.frames import write_frames
        from mmdeploy_ext.families.detector_files import read_files

        return write_frames(detector, read_files(path).paths, samples, folder) | dict(
            task=detector.family.task
        )

    def benchmark(
        self, family: Family, voxels: Sequence[int] | None, files: Sequence[str]
    ) -> type[Benchmark]:
        from mmdeploy_ext.bench.benchmark.sparse import SparseBenchmark
        from mmdeploy_ext.bench.benchmark.streams import FrameBenchmark, StreamBenchmark

        if family.samples == 'frames':
            return FrameBenchmark
        backbone = voxels or any(map(is_portable, files))
        return SparseBenchmark if backbone and family.samples == 'sweeps' else StreamBenchmark

    def tested(self, cfg: Any, family: Family, args: argparse.Namespace, work_dir: Path) -> TestedModel:
        from mmdeploy_ext.bench.kinds.tested import FrameModel

        return FrameModel(cfg, family, args, work_dir)

    def check_engine(self, engine: Mapping[str, Any]) -> None:
        check_engine_kind(engine['engine'], engine.get('inference_precision'))


def is_portable(path: str) -> bool:
    """Whether a file is a sparse backbone in standard operators."""
    from mmdeploy_ext.spec.metadata import PREFIX, read_props

    return Path(path).is_file() and read_props(path).get(f'{PREFIX}form') == '"portable"'
