"""The kinds of samples: all differences between them in commands."""

from __future__ import annotations

import abc
import functools
import importlib
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.spec.registry import registration_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

    import numpy as np

    from mmdeploy_ext.bench.benchmark.base import Benchmark
    from mmdeploy_ext.bench.kinds.tested import TestedModel
    from mmdeploy_ext.bench.kit.local_run import Run
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.inputs import Samples
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.options import Options

    Channels = Sequence[float] | None
    """`mean` or `std` by channel, see `api.export`."""


OF_PICTURES = 'is for models of single images'
INPUTS_INSTEAD = 'is for image models; for others use --input'


class Kind(abc.ABC):
    """The commands for models of one kind of samples; stateless.

    Methods import torch and mmcv themselves.

    Attributes:
        unit: unit of `backend_config.dump`: 'samples' or 'frames'.
        refuses: command -> option -> why it is not supported; `entry` is the family's registration,
            `drawn_by` the command that draws its results.
        proving: module of the proof, see `subject`.
        traces: whether a test path is traced whole where its family refuses the model.
        public_samples: default samples of a kit; they may be published.
    """

    unit: ClassVar[str] = 'frames'
    refuses: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    public_samples: ClassVar[Sequence[str]] = ()
    proving: ClassVar[str]
    traces: ClassVar[bool] = False

    @abc.abstractmethod
    def samples(
        self,
        detector: Detector,
        paths: Sequence[str] = (),
        frames: int | None = None,
        option: str = '--images',
        *,
        traced: str | Path = '',
    ) -> Samples:
        """Check the samples of a proof before the weights load.

        Args:
            detector: read, but not built.
            paths: files and folders; (): the package's picture, the config's data set, or generated samples.
            frames: maximum of frames, or sweeps per path; None: 12.
            option: option of the files, for messages.
            traced: image before the images of `paths`.
        """

    def build(self, detector: Detector, mean: Channels = None, std: Channels = None) -> None:
        """Build a read detector without weights; raises as `detector.build`.

        `mean` and `std` override the config; UsageError: samples are not single images.
        """
        from mmdeploy_ext.families.detector import build

        for name, values in dict(mean=mean, std=std).items():
            if values is not None and len(values):
                raise UsageError(
                    f'{name}={[*map(float, values)]}: is for models of single images; family '
                    f'{detector.family.name!r} normalises as in its config: omit {name}'
                )
        build(detector)

    def check(self, detector: Detector, options: Options) -> Options:
        """Check export options against a built model; return them resolved.

        Raises UsageError or ConfigError, see `detector.check_options`.
        """
        from mmdeploy_ext.families.detector import check_options

        return check_options(options, detector.unbuilt_cfg, detector.family, detector.model)

    def load(self, detector: Detector, options: Options, output: str) -> Options:
        """Check options and output of a built model, load its weights; return resolved options."""
        from mmdeploy_ext.families.detector_files import check_output

        options = self.check(detector, options)
        check_output(output, options, detector.family)
        self.load_weights(detector)
        return options

    def load_weights(self, detector: Detector) -> None:
        """Load the checkpoint strictly into a built model; raises as `detector.load_weights`."""
        from mmdeploy_ext.families.detector import load_weights

        load_weights(detector)

    @abc.abstractmethod
    def test(self, detector: Detector) -> Iterator[Any]:
        """Run the test path of a built model, and yield the result of each sample."""

    def subject(self) -> ModuleType:
        """Return the module of the proof.

        - `prove(detector, paths, samples, engine, claims)` returns the verdict on the files of one export,
          with results to draw in `pairs`. `paths` are in the order of use; `samples` are (title, (h, w, 3)
          uint8 BGR), the first traced; with a memory the `Frame`s of a drive, read once; or `Sweep`s,
          `FusedFrame`s or `VoxelSet`s; `engine` has the name of its class and its options ({}: ONNX Runtime
          on the CPU).
        - `ask(detector, paths, chosen)` runs PyTorch on the inputs of a proof, for `detector.recording`.
        - `metrics(detector, paths, names, engine, half)` returns metrics of the data set, or of a `half` of
          it, by both engines.
        """
        return importlib.import_module(self.proving)

    @abc.abstractmethod
    def kit_contents(
        self, detector: Detector, path: str, samples: Collection[Any], folder: Path
    ) -> dict[str, Any]:
        """Write files and cases of a kit; return entries of the manifest, see `bench/kit/contents.py`."""

    def rows_kept(self) -> Callable[..., list[Any]]:
        """Return the function that compares the results of samples for `bench.precision.plan.planner_of`.

        It runs PyTorch once and returns one function from files to rows for a search, one for its result.
        """
        raise UsageError('a sparse backbone has no results of its own; give the export of the whole model')

    def kit_opens(self) -> Callable[[Path], Run]:
        """Return file -> function from inputs to outputs by name."""
        from mmdeploy_ext.bench.kit.runners import run_onnxruntime

        return run_onnxruntime.open_file

    def kit(
        self,
        detector: Detector,
        path: str,
        samples: Collection[Any],
        out: str | Path,
        pictures: Sequence[dict[str, str]],
    ) -> dict[str, Any]:
        """Write the kit of an exported file or folder; return its manifest.

        `samples` as in a proof; `pictures` are `name` and `licence` of each picture, or one entry for all
        frames, sweeps or voxels.
        """
        from mmdeploy_ext.bench.kit.writer import write_detector_kit

        write = functools.partial(self.kit_contents, detector, path, samples)
        return write_detector_kit(detector, path, write, out, pictures, self.kit_opens())

    @abc.abstractmethod
    def benchmark(
        self, family: Family, voxels: Sequence[int] | None, files: Sequence[str]
    ) -> type[Benchmark]:
        """Return the benchmark class of a family.

        `voxels` are the user's sizes of scenes, `files` the user's exports.
        """

    def tested(self, cfg: Any, family: Family, args: argparse.Namespace, work_dir: Path) -> TestedModel:
        """Return the model of the test loop; `args` are those of `mm2onnx test`."""
        raise NotImplementedError(f'family {family.name!r} has no results that a data set can evaluate')

    def refused(self, command: str, family: Family) -> dict[str, str]:
        """Return option of a command -> why a family does not support it."""
        entry = registration_of(family.name)
        drawn_by = tool((entry.used_by.get('') or 'run').split()[0])
        reasons = self.refuses.get(command, {})
        return {name: reason.format(entry=entry, drawn_by=drawn_by) for name, reason in reasons.items()}

    @abc.abstractmethod
    def check_engine(self, engine: Mapping[str, Any]) -> None:
        """Raise UsageError unless the engine (`engine_settings`) runs such models."""

    def check_provable(self, family: Family) -> None:
        """Raise ConfigError if a family lacks its task, or for images its runtime."""
        from mmdeploy_ext.runtime.tasks import task_module

        task_module(family.task)

    def export(
        self, detector: Detector, options: Options, output: str, samples: Samples
    ) -> tuple[list[str], float]:
        """Export a loaded model with resolved options; return the paths of its graphs and the seconds."""
        from mmdeploy_ext.families.detector_files import export_files

        return export_files(detector, options, output)

    def read(self, path: str) -> tuple[list[str], Metadata | None]:
        """Return the files of an export in the order of use, and the metadata of the last."""
        from mmdeploy_ext.families.detector_files import read_files
        from mmdeploy_ext.graphs.io.files import load

        files = read_files(path)
        for file in files.paths:
            load(file)
        return files.paths, files.metadata

    def default_output(self, family: Family, stem: str, options: Options) -> str:
        """Return the default file or folder of an export; `stem` is the config's."""
        from mmdeploy_ext.families.contracts import contract_of

        if not contract_of(family, options).one_file:
            return stem
        return f'{stem}_{options.contract}.onnx' if family.files else 'tmp.onnx'

    def observed_options(self, family: Family, form: str, size: tuple[int, int], dynamic: bool) -> Options:
        """Return the graph options for lint; `form`, `size` (height, width) of images."""
        return family.choose()

    def observed(
        self, detector: Detector, options: Options, picture: str | Path
    ) -> Sequence[Mapping[str, np.ndarray]]:
        """Return lint's inputs by name, per run; []: examples of the graphs.

        `picture` is a file, for image models.
        """
        return []

    def images_of_difference(self, detector: Detector, paths: Sequence[str]) -> Any:
        """Return `images` of `first_difference`; `paths` are images."""
        return None
