"""Sparse LiDAR backbones."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.base.errors import after_weights
from mmdeploy_ext.bench.kinds.base import INPUTS_INSTEAD, OF_PICTURES, Kind
from mmdeploy_ext.bench.kinds.sequence import SequenceSamples
from mmdeploy_ext.engines.registry import check_engine_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.bench.benchmark.base import Benchmark
    from mmdeploy_ext.bench.kinds.base import Channels
    from mmdeploy_ext.bench.kit.local_run import Run
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.inputs import ChosenSamples, Samples
    from mmdeploy_ext.spec.options import Options


ONNX_RUNTIME_ALONE = (
    'sparse backbones do not have it: they run in ONNX Runtime on the CPU and have no detections to '
    'evaluate; omit it'
)


class BackboneSamples(SequenceSamples):
    """Voxels of the user's sweeps; a proof adds generated ones."""

    def of(self, detector: Detector) -> ChosenSamples:
        from mmdeploy_ext.proving.inputs import ChosenSamples, sweep_sets

        rule, cfg, settings = detector.rule, detector.cfg, detector.settings
        with after_weights():
            sets = [sweep_sets(path, rule, cfg, settings, self.count) for path in self.paths]
        return ChosenSamples([*itertools.chain(*sets)])


class Backbones(Kind):
    proving = 'mmdeploy_ext.proving.backbone'
    refuses: ClassVar = {
        'verify': dict.fromkeys(('mean', 'std'), OF_PICTURES)
        | dict.fromkeys(
            ('metrics', 'engine', 'providers', 'inference_precision', 'device'), ONNX_RUNTIME_ALONE
        ),
        'graph diff': {'images': INPUTS_INSTEAD},
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
        return BackboneSamples(detector.family, paths, frames, option)

    def build(self, detector: Detector, mean: Channels = None, std: Channels = None) -> None:
        from mmdeploy_ext.families import backbone_files

        super().build(detector, mean, std)
        backbone_files.read_settings(detector)

    def load_weights(self, detector: Detector) -> None:
        from mmdeploy_ext.families import backbone_files

        backbone_files.load_weights(detector)

    def test(self, detector: Detector) -> Iterator[Any]:
        from mmdeploy_ext.proving.inputs import proof_sets

        settings = detector.settings
        voxels = proof_sets(settings.spatial_shape, settings.in_channels)[-1]
        yield detector.family.run_encoder(detector.model, voxels.features, voxels.coordinates)

    def kit_contents(
        self, detector: Detector, path: str, samples: Collection[Any], folder: Path
    ) -> dict[str, Any]:
        from mmdeploy_ext.bench.kit.frames import write_voxels

        return write_voxels(detector, path, samples, folder) | dict(task=None)

    def kit_opens(self) -> Callable[[Path], Run]:
        from mmdeploy_ext.bench.kit.frames import open_interpreted

        return open_interpreted

    def benchmark(
        self, family: Family, voxels: Sequence[int] | None, files: Sequence[str]
    ) -> type[Benchmark]:
        from mmdeploy_ext.bench.benchmark.sparse import SparseBenchmark

        return SparseBenchmark

    def check_engine(self, engine: Mapping[str, Any]) -> None:
        check_engine_kind(engine['engine'], engine.get('inference_precision'))

    def check_provable(self, family: Family) -> None:
        """Bird's-eye-view maps need no task."""

    def read(self, path: str) -> tuple[list[str], None]:
        from mmdeploy_ext.graphs.io.files import read
        from mmdeploy_ext.proving.backbone import file_options

        file_options(read(path), path)
        return [path], None

    def default_output(self, family: Family, stem: str, options: Options) -> str:
        target = '' if options.target == 'libspconv' else f'{options.target}.'
        return f'lidar.backbone.{target}{options.order}.onnx'
