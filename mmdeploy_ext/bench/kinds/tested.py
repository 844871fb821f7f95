"""Models of the test loop: settings, engine, exported files."""

from __future__ import annotations

import abc
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.engines import Backend, build_backend
from mmdeploy_ext.engines.registry import check_engine_kind
from mmdeploy_ext.families.base import exported_options
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.evaluate import backend_config
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from torch.utils.data import Dataset

    from mmdeploy_ext.base.dump import DumpWriter
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.families.evaluate.loop import Network
    from mmdeploy_ext.proving.subject import Subject
    from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.options import Options


class TestedModel(abc.ABC):
    """A model of the test loop.

    Attributes:
        args: command line of `test.py`.
        work_dir: shared folder of the `_pth` and `_onnx` runs.
        settings: `backend_config.read_settings` of the config.
        options: export options, from the file of `--onnx`; `check` resolves them.
        target: file or folder of the exported model: `--onnx`, else `onnx_file` of the settings, else one in
            `work_dir`.
        unit: key of `backend_config.dump` for the dumped samples: 'samples', a number, or 'frames', a
            number or a list of indices.
    """

    unit: ClassVar[str]

    def __init__(self, cfg: Any, family: Family, args: argparse.Namespace, work_dir: Path) -> None:
        self.args, self.work_dir = args, work_dir
        onnx = False if args.torch else None if args.onnx is None else True
        self.settings = backend_config.read_settings(cfg, family, self.unit, onnx)
        self.options = backend_config.graph_options(cfg, self.settings, family)
        backend_config.check_targets(self.settings, work_dir)
        default = work_dir / f'{work_dir.name}_{self.file_suffix()}'
        self.target = args.onnx or str(self.settings.get('onnx_file') or default)
        if args.onnx:
            self.options = self._options_of_file(family)
            self.settings['precision'] = self.options.get('precision', 'fp32')

    def _options_of_file(self, family: Family) -> Options:
        from mmdeploy_ext.families.detector_files import read_files
        from mmdeploy_ext.proving.file_checks import option_errors

        metadata = read_files(self.target).metadata
        metadata.require(self.target, family.name)
        options = exported_options(family, metadata.options, self.target)
        with option_errors(self.target):
            options.check()
        return options

    def check(self, detector: Detector, resolve: Callable[[Detector, Options], Options]) -> None:
        """Complete the options; refuse unsupported models before the weights load.

        `resolve` is `Kind.check`.
        """
        from mmdeploy_ext.families.detector_files import check_output

        cfg, family = detector.unbuilt_cfg, detector.family
        try:
            self.options = resolve(detector, self.options)
            if self.settings['type'] != 'TorchBackend' and not self.args.onnx:
                check_output(self.target, self.options, family, 'onnx_file=')
        except UsageError as error:
            raise ConfigError(f'{cfg.filename}: backend_config: {error}') from error

    def dump_facts(self) -> dict[str, Any]:
        """Optional facts in the manifest of a dump."""
        return {}

    def input_size(self) -> list[int] | None:
        """(H, W) to which images are padded; None: sizes of the pipeline."""
        return None

    @abc.abstractmethod
    def file_suffix(self) -> str:
        """Suffix of the file or folder in the work directory."""

    @abc.abstractmethod
    def in_torch(self, detector: Detector, dump: DumpWriter | None) -> AbstractContextManager[Network]:
        """Context manager that yields the model in PyTorch, for the loop."""

    def expected_metadata(self, detector: Detector) -> list[Metadata]:
        """Expected metadata of the exported files, in order."""
        from mmdeploy_ext.families.detector_files import make_metadata

        contract = contract_of(detector.family, self.options)
        graphs = contract.graphs(detector.model, self.options)
        return [make_metadata(detector, self.options, graph) for graph in graphs]

    def export(self, detector: Detector) -> float:
        """Export to `target`; return the seconds."""
        from mmdeploy_ext.families.detector_files import export_files

        return export_files(detector, self.options, self.target, self.example_images(detector))[1]

    def example_images(self, detector: Detector) -> list[PreparedImage]:
        """Traced images; [] if the graphs have examples."""
        return []

    @abc.abstractmethod
    def on_engine(
        self, detector: Detector, engine: Mapping[str, Any]
    ) -> AbstractContextManager[tuple[Network, Subject]]:
        """Context manager that yields the model on its engine, and the dump's comparer."""


class ImageModel(TestedModel):
    """A detector of images."""

    unit = 'samples'

    def file_suffix(self) -> str:
        return f'{self.options.form}.onnx'

    def dump_facts(self) -> dict[str, Any]:
        return dict(form=self.options.form)

    def input_size(self) -> list[int] | None:
        return None if self.options.dynamic else [self.options.height, self.options.width]

    @contextlib.contextmanager
    def in_torch(self, detector: Detector, dump: DumpWriter | None) -> Iterator[Network]:
        """The model's test path; dumped tensors come from the export stages, in float32."""
        from mmdeploy_ext.exporting.copy import fused
        from mmdeploy_ext.families.detector_files import make_metadata
        from mmdeploy_ext.families.evaluate.detector import TorchDetector

        options = self.options.replace(precision='fp32', fp16_io=False, keep_fp32=())
        metadata = make_metadata(detector, options)
        device = str(next(detector.model.parameters()).device)
        model = fused(detector.model) if self.args.fuse_conv_bn else detector.model
        stages = detector.family.stages(model, options)
        with build_backend('TorchBackend', stages, metadata.spec, device=device) as backend:
            network = self._network(detector, backend, metadata, dump)
            show, network.show = network.show, None
            yield TorchDetector(detector.family.reference(model), network, show)

    def _network(
        self, detector: Detector, backend: Backend, metadata: Metadata, dump: DumpWriter | None = None
    ) -> Network:
        from mmdeploy_ext.families.evaluate.detector import BackendDetector, Show

        folder = self.args.show_dir
        show = None
        if folder:
            show = Show(Path(folder), metadata.family, metadata.classes, self.args.show_score_thr)
        return BackendDetector(backend, detector.family, metadata, dump, show)

    def example_images(self, detector: Detector) -> list[PreparedImage]:
        """The demo image, prepared for the options' size."""
        from mmdeploy_ext.families.detector import prepare_fixed
        from mmdeploy_ext.proving.inputs import read_picture

        picture = read_picture(DEFAULT_PICTURE, detector.rule)
        size = self.options.height, self.options.width
        return [prepare_fixed(detector.rule, picture, *size)]

    @contextlib.contextmanager
    def on_engine(self, detector: Detector, engine: Mapping[str, Any]) -> Iterator[tuple[Network, Subject]]:
        from mmdeploy_ext.proving.against_dump import ImageDump

        with build_backend(self.settings['type'], self.target, **engine) as backend:
            yield self._network(detector, backend, backend.metadata), ImageDump(backend, detector)


class FrameModel(TestedModel):
    """A streaming or LiDAR model for frames or sweeps."""

    unit = 'frames'

    def file_suffix(self) -> str:
        """Name of the contract; 'fork' has one file, 'fork.onnx'."""
        check_engine_kind(self.settings['type'], self.settings.get('inference_precision'))
        return 'fork.onnx' if self.options.contract == 'fork' else self.options.contract

    @contextlib.contextmanager
    def in_torch(self, detector: Detector, dump: DumpWriter | None) -> Iterator[Network]:
        from mmdeploy_ext.exporting.copy import fused

        model = fused(detector.model) if self.args.fuse_conv_bn else detector.model
        yield self._network(detector, detector.family.reference(model), dump)

    def _network(self, detector: Detector, stepper: Any, dump: DumpWriter | None = None) -> Network:
        from mmdeploy_ext.families.evaluate.detector import FrameDetector

        keep = self.settings.get('memory') != 'reset'
        model = detector.model if dump is not None else None  # do not keep the weights in memory
        return FrameDetector(stepper, detector.family, dump, model, keep)

    @contextlib.contextmanager
    def on_engine(self, detector: Detector, engine: Mapping[str, Any]) -> Iterator[tuple[Network, Subject]]:
        from mmdeploy_ext.families.detector_files import read_files
        from mmdeploy_ext.proving.against_dump import FrameDump

        files = read_files(self.target)
        contract = contract_of(detector.family, files.metadata.options)
        stepper = contract.runner(files.paths, dict(engine=self.settings['type'], **engine))
        yield self._network(detector, stepper), FrameDump(stepper, files.all_metadata, detector)


def check_dataset(cfg: Any, tested: TestedModel, family: Family, dataset: Dataset) -> None:
    """Refuse a data set unfit for the model, and a dump of missing samples or tensors."""
    family.scenes(dataset)
    family.check_dataset(cfg, dataset)
    dump, unit = tested.settings['dump'], tested.unit
    if dump is None:
        return
    indices = [] if isinstance(dump[unit], int) else dump[unit]
    if too_large := [index for index in indices if index >= len(dataset)]:
        raise ConfigError(
            f'{cfg.filename}: backend_config.dump.{unit} names {too_large}; data.test has {len(dataset)} '
            f'{unit}, counted from 0'
        )
    names = family.data.dump_names if unit == 'frames' else ()
    unknown = sorted(set(dump['tensors'] or ()) - set(names))
    if names and unknown:
        raise ConfigError(
            f'{cfg.filename}: backend_config.dump.tensors names {unknown}, which this model does not have; '
            f'there are {sorted(names)}'
        )
