"""TensorRT and TensorRT-RTX engines on a GPU, as one backend; imports neither torch nor mmcv."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.contract.metadata import Metadata
from mmdeploy_ext.core.errors import ConfigError, EngineError, InferenceError, ModelFileError, ShapeError
from mmdeploy_ext.engines.base import Backend
from mmdeploy_ext.engines.tensorrt.binding import Session, check_ports
from mmdeploy_ext.engines.tensorrt.cuda import GpuMemory, find_gpu
from mmdeploy_ext.engines.tensorrt.engine import engine_beside
from mmdeploy_ext.engines.tensorrt.package import find_package
from mmdeploy_ext.engines.tensorrt.record import check_architecture, check_source, check_version, read_record
from mmdeploy_ext.graph.passes.for_tensorrt import parse_constants

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class TensorRtBackend(Backend):
    """One engine file, built by `tools/deployment/onnx2tensorrt.py`, on one GPU.

    The record beside the engine says which package, version and architecture it is for; others are refused
    before the engine is loaded. Tensors are bound by name. For an ONNX file the engine beside it is loaded,
    which is built if there is none of this file for this GPU (`engine_beside`). `session` runs the engine; it
    is None before `activate` and after `deactivate`.
    """

    engine = 'tensorrt'

    def __init__(
        self, path: str, device: int = 0, shapes: Sequence[str] = (), constants: Sequence[str] = ()
    ) -> None:
        """Keep the options; a device that is not an index is a ConfigError.

        Args:
            path: the engine, or an ONNX file.
            device: index of the GPU.
            shapes: sizes of open axes of an ONNX file: NAME=MIN/OPT/MAX, as `onnx2tensorrt.py --shapes`, such
                as input=1x3x600x600/1x3x800x800/1x3x1000x1000; a single text needs no list. Without any,
                those of the engine beside it are used, if that is of this file.
            constants: inputs of an ONNX file that become constants: NAME or NAME=VALUES. If the engine
                beside the file has others, or other shapes than are given here, a new one is built.
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
        """Load the engine and its metadata; of an ONNX file see `engine_beside` for further errors.

        This sets `metadata`, its `spec`, and `computes_in`, which is 'fp16' or ''.

        Raises:
            ModelFileError: no engine, no record, a truncated engine, renamed tensors, no mm2onnx metadata, or
                beside it another ONNX file of the name of its own.
            EngineError: no TensorRT, no GPU, another GPU, another version.
            InferenceError: the memory of the GPU is too small, or the CUDA driver failed.
        """
        self.open_session()
        self.metadata = Metadata.from_props(self.record.metadata, self.path)
        self.spec = self.metadata.spec
        self.computes_in = self.record.computes_in

    def open_session(self) -> None:
        """Load the engine without reading mm2onnx's metadata, which engines need not have; see `activate`.

        `session` runs it then; `run` needs the metadata. `path` becomes that of the engine, and `record` is
        what is beside it.
        """
        if not self.path.endswith('.engine'):
            self.path = str(engine_beside(self.path, self.device, self.shapes, self.constants))
        self.record = read_record(self.path)
        check_source(self.record, self.path)
        package = find_package(self.record.package)
        check_version(self.record, package.name, package.version, self.path)
        gpu = find_gpu(self.device)
        if gpu is None:
            raise EngineError(f'{self.path}: there is no GPU {self.device} here; an engine needs a GPU')
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
        """Return what the inspector of the loaded engine reports of its layers, dtypes included, as JSON."""
        json_format = find_package(self.record.package).module.LayerInformationFormat.JSON
        return self._engine.create_engine_inspector().get_engine_information(json_format)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the engine; inputs that are not fed get the default that the spec states.

        An input that the build made a constant may be fed with that constant.

        Raises:
            ShapeError: an input that is a constant of the engine is fed with another value, or sizes are
                outside of those that the engine was built for.
            InferenceError: the engine was freed, or failed.
        """
        if self.session is None:
            raise InferenceError(f'{self.path}: is closed; open it again')
        defaults = {tensor.name: tensor.default for tensor in self.spec.inputs}
        for name, value in parse_constants(self.record.constants).items():
            feed = feeds.get(name)
            if value is None:
                value = defaults.get(name, 0)
            if feed is not None and not np.all(feed.reshape(-1, np.size(value)) == value):
                raise ShapeError(
                    f'input {name!r} is a constant of {self.path}, {_text(value)}, and is fed '
                    f'{_text(feed)}; build it with --constant {name}={_text(feed)}, or run the raw form'
                )
        return self.session.run(self.spec.with_defaults(feeds))

    def deactivate(self) -> None:
        """Free the engine."""
        self.session = self._engine = self._runtime = None


def _text(value: object) -> str:
    return ','.join(f'{number:g}' for number in np.ravel(value))
