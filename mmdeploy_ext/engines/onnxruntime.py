"""ONNX Runtime, without torch and mmcv."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import ConfigError, EngineError, InferenceError, LoadError, ModelFileError
from mmdeploy_ext.base.files import check_onnx_file
from mmdeploy_ext.base.heap import resident_bytes
from mmdeploy_ext.base.session_options import GRAPH_OPTIMIZATION, providers_with_options
from mmdeploy_ext.engines.base import Backend, note_run
from mmdeploy_ext.spec.metadata import Metadata, check_graph

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    import onnxruntime

SPINNING = {
    'always': {},
    'run': {'session.force_spinning_stop': '1'},
    'never': {'session.intra_op.allow_spinning': '0'},
}
"""`spinning` -> session configuration. By default waiting threads keep their cores busy."""
EXTERNAL_DATA = 'session.model_external_initializers_file_folder_path'
SLOW_ON_CPU = ('SkipLayerNormFusion',)
"""Optimizers that slow graphs down on a CPU: 3.4 ms instead of 0.4 for 2500 rows of 256 in 1.31."""
UNKNOWN_OPERATOR = re.compile(r'(\S+)\(-?\d+\) is not a registered function/op')
"""Of ONNX Runtime's errors."""
MOST_KEPT_BYTES = 4 << 30
"""A larger process returns a run's memory, unless it is planned."""
GIVE_BACK = {'memory.enable_memory_arena_shrinkage': 'cpu:0'}


class OnnxRuntimeBackend(Backend):
    """One file in one ONNX Runtime session."""

    engine = 'onnxruntime'

    def __init__(
        self,
        path: str,
        providers: Sequence[str] = ('CPUExecutionProvider',),
        threads: int = 0,
        graph_optimization: str = 'all',
        spinning: str = 'always',
        plan_memory: bool = True,
        round_fp16: bool = False,
        inner_tensors: Sequence[str] = (),
    ) -> None:
        """Keep the options.

        Args:
            path: the ONNX file.
            providers: execution providers in order; CUDA computes without TF32.
            threads: within an operator; 0: ONNX Runtime decides.
            graph_optimization: 'none', 'basic', 'extended' or 'all'.
            spinning: waiting threads keep cores busy 'always' (also some milliseconds after a run), during a
                'run', or 'never'.
            plan_memory: keep one block for all tensors of a run. Without it BEVFusion's frame takes 2.0 GB
                instead of 3.3 and 1 % more time.
            round_fp16: round stored float16 values as GPUs do (`graphs/passes/round_half.py`); slower, for
                proofs.
            inner_tensors: inner tensors to put into `inner`.
        """
        for name, value, choices in (
            ('spinning', spinning, SPINNING),
            ('graph_optimization', graph_optimization, GRAPH_OPTIMIZATION),
        ):
            if value not in choices:
                raise ConfigError(f'{name}={value!r}: expected one of {", ".join(choices)}')
        self.providers = [providers] if isinstance(providers, str) else list(providers)
        self.path, self.threads = str(path), threads
        self.graph_optimization = graph_optimization
        self.spinning, self.plan_memory, self.round_fp16 = spinning, plan_memory, round_fp16
        self.inner_tensors, self.inner = tuple(inner_tensors), {}
        self.session: onnxruntime.InferenceSession | None = None
        self.seconds = 0.0

    def _options(self) -> onnxruntime.SessionOptions:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        options.enable_mem_pattern = self.plan_memory
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, GRAPH_OPTIMIZATION[self.graph_optimization]
        )
        for name, value in SPINNING[self.spinning].items():
            options.add_session_config_entry(name, value)
        return options

    def _run_options(self) -> onnxruntime.RunOptions | None:
        if self.plan_memory or 'CPUExecutionProvider' not in self.providers:
            return None
        if resident_bytes() <= MOST_KEPT_BYTES:
            return None
        import onnxruntime

        options = onnxruntime.RunOptions()
        for name, value in GIVE_BACK.items():
            options.add_run_config_entry(name, value)
        return options

    def activate(self) -> None:
        self.open_session()
        self.metadata = Metadata.from_props(self.session.get_modelmeta().custom_metadata_map, self.path)
        self.spec = self.metadata.spec
        inputs = [*self.session.get_inputs(), *self.session.get_overridable_initializers()]
        outputs = [value for value in self.session.get_outputs() if value.name not in self.inner_tensors]
        check_graph(self.spec, _tensors(inputs), _tensors(outputs), self.path)

    def open_session(self) -> None:
        """Open the session without metadata."""
        import onnxruntime

        available = onnxruntime.get_available_providers()
        missing = [name for name in self.providers if name not in available]
        if missing:
            raise EngineError(
                f'execution provider {", ".join(missing)} was asked for; this ONNX Runtime '
                f'{onnxruntime.__version__} has {", ".join(available)}'
            )
        check_onnx_file(self.path)
        try:
            self.path.encode()
        except UnicodeEncodeError as error:
            raise ModelFileError(
                f'{self.path}: its path is not UTF-8, which ONNX Runtime does not support; rename it'
            ) from error
        try:
            with self._source() as source:
                options = self._options()
                if isinstance(source, bytes):
                    folder = str(Path(self.path).absolute().parent)
                    options.add_session_config_entry(EXTERNAL_DATA, folder)
                self.session = onnxruntime.InferenceSession(
                    source,
                    options,
                    providers=providers_with_options(self.providers),
                    disabled_optimizers=SLOW_ON_CPU if self.providers == ['CPUExecutionProvider'] else None,
                )
        except Exception as error:
            if plugin := UNKNOWN_OPERATOR.search(str(error)):
                other = ', or export it without --nms-plugin' if 'EfficientNMS' in plugin[1] else ''
                raise LoadError(
                    f'{self.path}: its node {plugin[1]} is not an operator of ONNX Runtime; run the file '
                    f'in the engine that has it, such as TensorRT with its plug-ins{other}'
                ) from error
            raise LoadError(f'{self.path}: ONNX Runtime cannot load it: {error}') from error
        check_active(self.providers, self.session.get_providers())

    @contextlib.contextmanager
    def _source(self) -> Iterator[str | bytes]:
        if not self.round_fp16 and not self.inner_tensors:
            yield self.path
            return
        import onnx

        values = [onnx.ValueInfoProto(name=name) for name in self.inner_tensors]
        if self.round_fp16:
            from mmdeploy_ext.graphs.io.files import openable
            from mmdeploy_ext.graphs.passes.round_half import round_half

            model = round_half(onnx.load(self.path))
            model.graph.output.extend(values)
            with openable(model) as source:
                yield source
            return
        # protobuf joins messages that are written one behind the other: no weight is parsed for this
        added = onnx.ModelProto(graph=onnx.GraphProto(output=values)).SerializeToString()
        yield Path(self.path).read_bytes() + added

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.session is None:
            raise InferenceError(f'{self.path}: is closed; open it again')
        names, start = [output.name for output in self.session.get_outputs()], time.perf_counter()
        try:
            outputs = dict(zip(names, self.session.run(names, dict(feeds), self._run_options()), strict=True))
        except Exception as error:
            raise InferenceError(f'{self.path}: ONNX Runtime failed to run it: {error}') from error
        self.seconds += time.perf_counter() - start
        self.inner = {name: outputs.pop(name) for name in self.inner_tensors}
        note_run(self.path, feeds, outputs)
        return outputs

    def deactivate(self) -> None:
        self.session = None


def _tensors(values: Iterable[onnxruntime.NodeArg]) -> dict[str, tuple[str, Sequence[Any]]]:
    dtypes = {'float': 'float32', 'double': 'float64'}
    names = {value.name: value.type.removeprefix('tensor(').removesuffix(')') for value in values}
    return {value.name: (dtypes.get(names[value.name], names[value.name]), value.shape) for value in values}


def check_active(requested: Sequence[str], active: Sequence[str]) -> None:
    """Raise EngineError if a requested provider is not active; ONNX Runtime falls back silently."""
    inactive = [name for name in requested if name not in active]
    if inactive:
        raise EngineError(
            f'execution provider {", ".join(inactive)} did not start, this session has {", ".join(active)}; '
            f'its libraries or its device are missing'
        )
