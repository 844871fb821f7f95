"""TensorRT and TensorRT-RTX engines as one backend, without torch and mmcv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.base.errors import ConfigError, EngineError, InferenceError, ModelFileError, ShapeError
from mmdeploy_ext.engines.base import Backend
from mmdeploy_ext.engines.tensorrt.binding import GpuMemory, Session, check_ports, find_gpu
from mmdeploy_ext.engines.tensorrt.engine import engine_beside
from mmdeploy_ext.engines.tensorrt.package import find_package
from mmdeploy_ext.engines.tensorrt.record import check_architecture, check_source, check_version, read_record
from mmdeploy_ext.graphs.passes.for_tensorrt import parse_constants
from mmdeploy_ext.spec.metadata import Metadata


class TensorRtBackend(Backend):
    """An engine file of `tools/deployment/onnx2tensorrt.py` on one GPU, or the engine beside an ONNX file."""

    engine = 'tensorrt'

    def __init__(
        self, path: str, device: int = 0, shapes: Sequence[str] = (), constants: Sequence[str] = ()
    ) -> None:
        """Keep the options.

        Args:
            path: the engine, or an ONNX file.
            device: index of the GPU.
            shapes: NAME=MIN/OPT/MAX for open axes of an ONNX file; by default its engine's.
            constants: NAME or NAME=VALUES of inputs that become constants.
        """
        if not isinstance(device, int) or device < 0:
            raise ConfigError(f'device={device!r}: expected the index of a GPU, 0 or more')
        self.path, self.device = str(path), device
        self.shapes, self.constants = (
            (option,) if isinstance(option, str) else tuple(option) for option in (shapes, constants)
        )
        self.session: Session | None = None
        self._runtime: Any = None

    def activate(self) -> None:
        self.open_session()
        self.metadata = Metadata.from_props(self.record.metadata, self.path)
        self.spec = self.metadata.spec
        self.computes_in = self.record.computes_in

    def open_session(self) -> None:
        """Load the engine without metadata; sets `path`, `record` and `session`."""
        if not self.path.endswith('.engine'):
            self.path = str(engine_beside(self.path, self.device, self.shapes, self.constants))
        self.record = read_record(self.path)
        check_source(self.record, self.path)
        package = find_package(self.record.package)
        check_version(self.record, package.name, package.version, self.path)
        gpu = find_gpu(self.device)
        if gpu is None:
            raise EngineError(f'{self.path}: this machine has no GPU {self.device}, which an engine needs')
        check_architecture(self.record, gpu.architecture, gpu.name, self.path)
        log = package.logger()
        # the runtime has to live as long as its engines
        self._runtime = package.module.Runtime(log)
        with open(self.path, 'rb') as stream:
            engine = self._runtime.deserialize_cuda_engine(stream.read())
        if engine is None:
            raise ModelFileError(
                f'{self.path}: {package.name} {package.version} cannot load it: '
                f'{"; ".join(log.errors()[:3]) or "it gave no reason"}; build it again'
            )
        session = Session(engine, GpuMemory(self.device))
        check_ports(session.inputs, self.record.inputs, 'inputs', self.path)
        check_ports(session.outputs, self.record.outputs, 'outputs', self.path)
        self.session, self._engine = session, engine

    def layers(self) -> str:
        """JSON of TensorRT's inspector about layers."""
        json_format = find_package(self.record.package).module.LayerInformationFormat.JSON
        return self._engine.create_engine_inspector().get_engine_information(json_format)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.session is None:
            raise InferenceError(f'{self.path}: is closed; open it again')
        defaults = {tensor.name: tensor.default for tensor in self.spec.inputs}
        for name, value in parse_constants(self.record.constants).items():
            feed = feeds.get(name)
            if value is None:
                value = defaults.get(name, 0)
            if feed is not None and not np.all(feed.reshape(-1, np.size(value)) == value):
                raise ShapeError(
                    f'input {name!r} is a constant of {self.path}, {_text(value)}, but got {_text(feed)}; '
                    f'build the engine with --constant {name}={_text(feed)}, or run the raw form'
                )
        return self.session.run(self.spec.with_defaults(feeds))

    def deactivate(self) -> None:
        self.session = self._engine = self._runtime = None


def _text(value: object) -> str:
    return ','.join(f'{number:g}' for number in np.ravel(value))
