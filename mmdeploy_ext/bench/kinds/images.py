"""Models of single images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.bench.kinds.base import Kind
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from mmdeploy_ext.bench.benchmark.base import Benchmark
    from mmdeploy_ext.bench.kinds.base import Channels
    from mmdeploy_ext.bench.kinds.tested import TestedModel
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.inputs import Samples
    from mmdeploy_ext.spec.options import Options


NIGHT = 20
"""Factor by which a quarter of the test path's image is darkened: seeded layers get their means and
spreads from it and must not saturate in dark images.
"""


class Images(Kind):
    unit, proving = 'samples', 'mmdeploy_ext.proving.pictures'
    traces = True
    refuses: ClassVar = {
        'verify': {'frames': 'is for streaming models only'},
        'kit': {'frames': 'is for models of frames and sweeps only'},
    }
    public_samples = (str(DEFAULT_PICTURE),)

    def samples(
        self,
        detector: Detector,
        paths: Sequence[str] = (),
        frames: int | None = None,
        option: str = '--images',
        *,
        traced: str | Path = '',
    ) -> Samples:
        from mmdeploy_ext.proving.inputs import PictureSamples

        return PictureSamples(detector, paths, traced)

    def build(self, detector: Detector, mean: Channels = None, std: Channels = None) -> None:
        from mmdeploy_ext.families.detector import build

        build(detector, mean, std)

    def check(self, detector: Detector, options: Options) -> Options:
        from mmdeploy_ext.families.detector import check_picture_options

        return check_picture_options(options, detector.unbuilt_cfg, detector.family, detector.model)

    def test(self, detector: Detector) -> Iterator[Any]:
        from mmdeploy_ext.proving.inputs import ProofInput, read_picture
        from mmdeploy_ext.proving.pictures import InputReference
        from mmdeploy_ext.runtime.preprocess.pictures import prepare_image

        picture = read_picture(DEFAULT_PICTURE, detector.rule)
        height, width = picture.shape[:2]
        picture[height // 2 :, width // 2 :] //= NIGHT
        images, sources = (prepare_image(detector.rule, picture),), (('sample', picture),)
        sample = ProofInput('sample', images, sources, rescale=True)
        yield InputReference(detector, sample).run()

    def rows_kept(self) -> Callable[..., list[Any]]:
        from mmdeploy_ext.bench.precision.results_kept import rows_of_pictures

        return rows_of_pictures

    def kit_contents(
        self, detector: Detector, path: str, samples: Collection[Any], folder: Path
    ) -> dict[str, Any]:
        from mmdeploy_ext.bench.kit.pictures import write_pictures

        return write_pictures(detector, path, samples, folder) | dict(task=detector.family.task)

    def benchmark(
        self, family: Family, voxels: Sequence[int] | None, files: Sequence[str]
    ) -> type[Benchmark]:
        from mmdeploy_ext.bench.benchmark.images import ImageBenchmark

        return ImageBenchmark

    def tested(self, cfg: Any, family: Family, args: argparse.Namespace, work_dir: Path) -> TestedModel:
        from mmdeploy_ext.bench.kinds.tested import ImageModel

        return ImageModel(cfg, family, args, work_dir)

    def check_engine(self, engine: Mapping[str, Any]) -> None:
        """All engines run image models."""

    def check_provable(self, family: Family) -> None:
        from mmdeploy_ext.runtime.detect import runtime_of

        super().check_provable(family)
        runtime_of(family.name)

    def export(
        self, detector: Detector, options: Options, output: str, samples: Samples
    ) -> tuple[list[str], float]:
        from mmdeploy_ext.bench.lint.dynamic_sizes import check_dynamic_parts
        from mmdeploy_ext.families.detector import prepare_fixed
        from mmdeploy_ext.families.detector_files import export_files
        from mmdeploy_ext.families.images import picture_of

        (_, traced), *_ = samples.pictures
        images = [prepare_fixed(detector.rule, traced, options.height, options.width)]
        if options.dynamic and options.exporter == 'torchscript':
            picture = picture_of(detector.family, detector.model, options)
            check_dynamic_parts(detector.model, picture.multiple, picture.smallest)
        return export_files(detector, options, output, images)

    def observed_options(self, family: Family, form: str, size: tuple[int, int], dynamic: bool) -> Options:
        # opset 0 is the default: no stage depends on it; trials use --opset-version
        return family.choose(form=form, opset=0, height=size[0], width=size[1], dynamic=dynamic)

    def observed(
        self, detector: Detector, options: Options, picture: str | Path
    ) -> Sequence[Mapping[str, np.ndarray]]:
        from mmdeploy_ext.proving.inputs import observed_inputs, read_images

        ((_, image),) = read_images([picture], 1, detector.rule)
        return observed_inputs(detector, options, image)

    def images_of_difference(self, detector: Detector, paths: Sequence[str]) -> Any:
        from mmdeploy_ext.proving.inputs import read_images

        return read_images(paths, rule=detector.rule)
