"""What the test loop asks of a kind of model: its settings, its network on an engine, its files."""

from __future__ import annotations

import abc
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.apps import backend_config
from mmdeploy_ext.apps.options import check_engine_kind, refuse_given
from mmdeploy_ext.core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from torch.utils.data import Dataset

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.core.dump import DumpWriter
    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.evaluate.loop import Network
    from mmdeploy_ext.families.base import Family, ImageFamily
    from mmdeploy_ext.families.sequence import SequenceFamily
    from mmdeploy_ext.inputs.pictures import PreparedImage
    from mmdeploy_ext.proof.against_dump import Dumped

DEMOS = {True: 'streampetr_video.py', False: 'lidar_demo.py'}
"""Whether the model has a memory -> what draws its boxes."""


class TestedModel(abc.ABC):
    """A model of the test loop, as its config describes it.

    Attributes:
        settings: as `backend_config.read_settings` returns it.
        options: of the export, not yet resolved.
        target: file or folder of the exported model.
        dump_facts: kept in every manifest of a dump, besides what all models have.
        unit: key of `backend_config.dump` that says how much is written.
    """

    settings: dict[str, Any]
    options: Options
    target: str
    dump_facts: Mapping[str, Any] = {}
    unit: ClassVar[str]

    @abc.abstractmethod
    def __init__(
        self, cfg: Any, family: Any, args: argparse.Namespace, parser: argparse.ArgumentParser, work_dir: Path
    ) -> None:
        """Read the settings, and refuse what this kind of model does not have.

        Args:
            cfg: the config.
            family: that claims it.
            args: the command line.
            parser: of it.
            work_dir: shared by the `_pth` and the `_onnx` run.
        """

    @abc.abstractmethod
    def check(self, cfg: Any, family: Any, model: Any) -> None:
        """Refuse, before the weights load, what cannot be exported."""

    @abc.abstractmethod
    def in_torch(self, deployment: Deployment, dump: DumpWriter | None) -> AbstractContextManager[Network]:
        """Return the model in PyTorch."""

    def resolved(self, deployment: Deployment) -> Options:
        """Return the export options with the default opset and size filled in."""
        from mmdeploy_ext.deploy import deployment as deploy

        return deploy.resolve(self.options, deployment.model, deployment.rule)

    def wanted(self, deployment: Deployment) -> list[Metadata]:
        """Return what the files of an export would say about themselves."""
        from mmdeploy_ext.deploy.files import make_metadata

        options = self.resolved(deployment)
        graphs = deployment.family.graphs(deployment.model, options)
        return [make_metadata(deployment, options, graph) for graph in graphs]

    def export(self, deployment: Deployment) -> float:
        """Write the files; returns the seconds that it took."""
        from mmdeploy_ext.deploy.files import check_output, export_files

        options = self.resolved(deployment)
        check_output(self.target, options, deployment.family, 'onnx_file=')
        return export_files(deployment, options, self.target, self.traced(deployment, options))[1]

    def traced(self, deployment: Deployment, options: Options) -> list[PreparedImage]:
        """Return the images that an export traces; none where graphs have examples of their own."""
        return []

    @abc.abstractmethod
    def on_engine(
        self, deployment: Deployment, engine: Mapping[str, Any]
    ) -> AbstractContextManager[tuple[Network, Dumped]]:
        """Return the exported model on its engine, for the loop and for the samples of a dump."""


class ImageModel(TestedModel):
    """A detector of images."""

    unit = 'samples'

    def __init__(
        self,
        cfg: Any,
        family: ImageFamily,
        args: argparse.Namespace,
        parser: argparse.ArgumentParser,
        work_dir: Path,
    ) -> None:
        """See `TestedModel`."""
        self.args, self.settings = args, backend_config.read_settings(cfg, family)
        backend_config.check_targets(self.settings, work_dir)
        self.options = backend_config.graph_options(cfg, self.settings, family)
        self._check = backend_config.graph_check(self.options, self.settings, work_dir)
        if self.settings['type'] == 'TorchBackend':
            self.options = self.options.replace(precision='fp32', fp16_io=False, keep_fp32=())
        self.dump_facts = dict(form=self.options.form)
        self.target = str(
            self.settings.get('onnx_file') or work_dir / f'{work_dir.name}_{self.options.form}.onnx'
        )

    def check(self, cfg: Any, family: ImageFamily, model: Any) -> None:
        """See `TestedModel`."""
        self._check(cfg, family, model)

    @contextlib.contextmanager
    def in_torch(self, deployment: Deployment, dump: DumpWriter | None) -> Iterator[Network]:
        """See `TestedModel`."""
        from mmdeploy_ext.deploy.files import make_metadata
        from mmdeploy_ext.engines import build_backend
        from mmdeploy_ext.evaluate.detector import BackendDetector

        options = self.resolved(deployment)
        metadata = make_metadata(deployment, options)
        stages = deployment.family.stages(deployment.model, options, fold=self.args.fuse_conv_bn)
        device = str(next(deployment.model.parameters()).device)
        with build_backend('TorchBackend', stages, metadata.spec, device=device) as backend:
            yield BackendDetector(backend, deployment.family, metadata, dump, self._show(metadata))

    def _show(self, metadata: Metadata) -> Any:
        from mmdeploy_ext.evaluate.detector import Show

        folder = self.args.show_dir
        return Show(Path(folder), metadata.classes, self.args.show_score_thr) if folder else None

    def traced(self, deployment: Deployment, options: Options) -> list[PreparedImage]:
        """See `TestedModel`: the demo's picture."""
        from mmdeploy_ext.apps.proof import DEFAULT_IMAGE
        from mmdeploy_ext.deploy import deployment as deploy
        from mmdeploy_ext.inputs.pictures import read_image

        picture = read_image(DEFAULT_IMAGE)
        return [deploy.prepare_fixed(deployment.rule, picture, options.height, options.width)]

    @contextlib.contextmanager
    def on_engine(
        self, deployment: Deployment, engine: Mapping[str, Any]
    ) -> Iterator[tuple[Network, Dumped]]:
        """See `TestedModel`."""
        from mmdeploy_ext.engines import build_backend
        from mmdeploy_ext.evaluate.detector import BackendDetector
        from mmdeploy_ext.proof.against_dump import DumpedImages

        with build_backend(self.settings['type'], self.target, **engine) as backend:
            show = self._show(backend.metadata)
            detector = BackendDetector(backend, deployment.family, backend.metadata, show=show)
            yield detector, DumpedImages(backend, deployment)


class FrameModel(TestedModel):
    """A model of frames: of a drive, or sweeps."""

    unit = 'frames'

    def __init__(
        self,
        cfg: Any,
        family: SequenceFamily,
        args: argparse.Namespace,
        parser: argparse.ArgumentParser,
        work_dir: Path,
    ) -> None:
        """See `TestedModel`."""
        why = f'these models are drawn by tools/demo/{DEMOS[family.memory]}'
        refuse_given(args, parser, ('show_dir', 'show_score_thr'), why)
        self.fuse, self.settings = args.fuse_conv_bn, backend_config.read_settings(cfg, family)
        check_engine_kind(self.settings['type'], self.settings.get('inference_precision'))
        self.options = backend_config.graph_options(cfg, self.settings, family)
        # where a folder of graphs goes is checked with its contract, below
        backend_config.check_targets({**self.settings, 'onnx_file': None}, work_dir)
        name = f'{work_dir.name}_{self.options.contract}'
        own = work_dir / (f'{name}.onnx' if self.options.contract == 'fork' else name)
        self.target = str(self.settings.get('onnx_file') or own)

    def check(self, cfg: Any, family: SequenceFamily, model: Any) -> None:
        """See `TestedModel`."""
        from mmdeploy_ext.deploy import deployment as deploy
        from mmdeploy_ext.deploy.files import check_output

        try:
            deploy.check_options(self.options, cfg, family, model)
            if self.settings.get('onnx_file'):
                check_output(self.target, self.options, family, 'onnx_file=')
        except UsageError as error:
            raise ConfigError(f'{cfg.filename}: backend_config: {error}') from error

    @contextlib.contextmanager
    def in_torch(self, deployment: Deployment, dump: DumpWriter | None) -> Iterator[Network]:
        """See `TestedModel`."""
        from mmdeploy_ext.exporting.fold import fuse

        model = deployment.model
        stepper = deployment.family.reference(fuse(model) if self.fuse else model)
        yield self._network(deployment, stepper, dump)

    def _network(self, deployment: Deployment, stepper: Any, dump: DumpWriter | None = None) -> Network:
        from mmdeploy_ext.evaluate.detector import FrameDetector

        keep = self.settings.get('memory') != 'reset'
        return FrameDetector(stepper, deployment.family, dump, deployment.model, keep)

    @contextlib.contextmanager
    def on_engine(
        self, deployment: Deployment, engine: Mapping[str, Any]
    ) -> Iterator[tuple[Network, Dumped]]:
        """See `TestedModel`."""
        from mmdeploy_ext.deploy.files import read_files
        from mmdeploy_ext.proof.against_dump import DumpedFrames

        files = read_files(self.target)
        stepper = deployment.family.runner(files.paths, dict(engine=self.settings['type'], **engine))
        yield self._network(deployment, stepper), DumpedFrames(stepper, files.metadata, deployment)


def check_dataset(cfg: Any, tested: TestedModel, family: Family, dataset: Dataset) -> None:
    """Refuse a data set without scenes, and a dump that will not come, before an hour passes without them.

    Args:
        cfg: the config.
        tested: for its settings.
        family: for the names of the tensors, where it knows them.
        dataset: built by `evaluation.build_dataset`.

    Raises:
        ConfigError: names the key.
        DataError: see `scene_tokens`.
    """
    from mmdeploy_ext.evaluate.loop import scene_tokens

    if family.memory:
        scene_tokens(dataset)
    dump, unit, names = tested.settings['dump'], tested.unit, getattr(family, 'dump_names', ())
    if dump is None:
        return
    asked = [] if isinstance(dump[unit], int) else dump[unit]
    beyond = [index for index in asked if index >= len(dataset)]
    if beyond:
        raise ConfigError(
            f'{cfg.filename}: backend_config.dump.{unit} names {beyond}; data.test has {len(dataset)} '
            f'{unit}, counted from 0'
        )
    unknown = sorted(set(dump['tensors'] or ()) - set(names))
    if names and unknown:
        raise ConfigError(
            f'{cfg.filename}: backend_config.dump.tensors names {unknown}, which this model does not have; '
            f'there are {sorted(names)}'
        )
