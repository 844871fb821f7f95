"""Models of frames and sweeps, with or without a memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.bench.kinds.base import INPUTS_INSTEAD, OF_PICTURES, Kind
from mmdeploy_ext.engines.registry import check_engine_kind

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from mmdeploy_ext.bench.benchmark.base import Benchmark
    from mmdeploy_ext.bench.kinds.tested import TestedModel
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.claims import Claims
    from mmdeploy_ext.proving.inputs.samples import ChosenSamples, Samples
    from mmdeploy_ext.spec.results import MetricRow
    from mmdeploy_ext.spec.verdict import Verdict


NO_SUCH_OPTION = 'family {entry.name!r} has no such option; {entry.of_config}'
SIZES_OF_CONFIG = 'streaming and LiDAR models do not have it; their config decides graphs and sizes'


class Sequences(Kind):
    name = 'sequence'
    refuses: ClassVar = {
        'export': dict.fromkeys(('input_img', 'mean', 'std', 'show'), NO_SUCH_OPTION),
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
        from mmdeploy_ext.bench.kinds.sequence_samples import SequenceSamples

        return SequenceSamples(detector.family, paths, frames, option)

    def test(self, detector: Detector) -> Iterator[Any]:
        from mmdeploy_ext.bench.kinds.sequence_samples import proof_samples

        frames, _ = proof_samples(detector, 2)
        frames = [*itertools.islice(frames, 2)]
        for _ in range(2 if detector.family.memory else 1):  # run 2 has the layers of the first
            yield from map(detector.family.reference(detector.model).step, frames)

    def prove(
        self,
        detector: Detector,
        paths: Sequence[str],
        samples: Collection[Any],
        engine: Mapping[str, Any],
        claims: Claims,
    ) -> Verdict:
        from mmdeploy_ext.proving.drive import prove_frames
        from mmdeploy_ext.proving.frames import prove_sweeps

        prove = prove_frames if detector.family.memory else prove_sweeps
        return prove(detector, paths, samples, engine, claims, **claims.settings)

    def ask(self, detector: Detector, paths: Sequence[str], chosen: ChosenSamples) -> None:
        from mmdeploy_ext.proving.drive import ask_samples

        ask_samples(detector, paths, chosen.samples)

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

    def metrics(
        self, detector: Detector, paths: Sequence[str], names: Sequence[str], engine: Mapping[str, Any]
    ) -> list[MetricRow]:
        from mmdeploy_ext.families.contracts import contract_of
        from mmdeploy_ext.families.evaluate.detector import FrameDetector
        from mmdeploy_ext.proving.metrics import compare_metrics
        from mmdeploy_ext.spec.metadata import least_precision, read_metadata

        family, metadata = detector.family, [read_metadata(path) for path in paths]
        contract = contract_of(family, metadata[-1].options)
        networks = (family.reference(detector.model), contract.runner(paths, engine))
        detectors = (FrameDetector(network, family) for network in networks)
        return compare_metrics(detector.cfg, *detectors, names, least_precision(metadata))


def is_portable(path: str) -> bool:
    """Whether a file is a sparse backbone in standard operators."""
    from mmdeploy_ext.spec.metadata import PREFIX, read_props

    return Path(path).is_file() and read_props(path).get(f'{PREFIX}form') == '"portable"'
