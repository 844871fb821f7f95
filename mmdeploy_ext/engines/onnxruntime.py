"""ONNX Runtime; imports neither torch nor mmcv."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import Metadata, check_graph
from mmdeploy_ext.core.errors import ConfigError, EngineError, InferenceError, LoadError, ModelFileError
from mmdeploy_ext.core.files import check_onnx_size
from mmdeploy_ext.core.heap import resident_bytes
from mmdeploy_ext.core.session_options import GRAPH_OPTIMIZATION, providers_with_options
from mmdeploy_ext.engines.base import Backend, note_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import onnxruntime

SPINNING = {
    'always': {},
    'run': {'session.force_spinning_stop': '1'},
    'never': {'session.intra_op.allow_spinning': '0'},
}
"""Value of `spinning` (see `OnnxRuntimeBackend`) -> entries of the session's configuration.

By default of ONNX Runtime threads that wait for work keep their cores busy.
"""
EXTERNAL_DATA = 'session.model_external_initializers_file_folder_path'
"""Entry of a session's configuration with the folder of weights outside of the file."""
SLOW_ON_CPU = ('SkipLayerNormFusion',)
"""Optimizers of ONNX Runtime that make graphs slower on a CPU.

This one makes one operator of Add and LayerNormalization: 3.4 ms instead of 0.4 for 2500 rows of 256 in 1.31.
"""
MOST_KEPT_BYTES = 4 << 30
"""A larger process gets the memory of a run back after it, unless the run's memory is planned."""
GIVE_BACK = {'memory.enable_memory_arena_shrinkage': 'cpu:0'}
"""Entries of the configuration of such a run."""


class OnnxRuntimeBackend(Backend):
    """One file in one ONNX Runtime session; `Backend` describes what has no text here.

    Attributes:
        session: the open session; None before `activate` or `open_session`, and after `deactivate`.
        seconds: time of all runs so far.
        inner: name -> array of `inner_tensors`, of the last run.
    """

    engine = 'onnxruntime'

    def __init__(
        self,
        path: str,
        providers: Sequence[str] = ('CPUExecutionProvider',),
        threads: int = 0,
        graph_optimization: str = 'all',
        profile_prefix: str = '',
        spinning: str = 'always',
        plan_memory: bool = True,
        round_fp16: bool = False,
        inner_tensors: Sequence[str] = (),
    ) -> None:
        """Keep the options; ConfigError: a `spinning` or `graph_optimization` that there is not.

        Args:
            path: the ONNX file.
            providers: execution providers in order of preference, or the name of one; one that is missing is
                an error. CUDA computes products of float32 without TF32.
            threads: threads within an operator; 0 leaves the choice to ONNX Runtime.
            graph_optimization: 'none', 'basic', 'extended' or 'all'.
            profile_prefix: write a profile to a file whose path begins with this text; '' for no profile.
            spinning: when threads that wait keep their cores busy: 'always' (also for some milliseconds after
                a run, which slows the next program), only during a 'run', or 'never'.
            plan_memory: from the second run on hold one block for all tensors of a run, beside the memory of
                the first. Without it BEVFusion's frame takes 2.0 GB instead of 3.3, and 1 % more time, and a
                process of more than 4 GB gets the memory back between two runs, for PyTorch's own.
            round_fp16: round every value that a float16 graph stores, as a GPU does and ONNX Runtime's CPU
                does not (see `graph/passes/round_half.py`); for proofs, it is slower.
            inner_tensors: names of inner tensors of the graph that each run puts into `inner`.
        """
        for name, value, choices in (
            ('spinning', spinning, SPINNING),
            ('graph_optimization', graph_optimization, GRAPH_OPTIMIZATION),
        ):
            if value not in choices:
                raise ConfigError(f'{name}={value!r}: expected one of {", ".join(choices)}')
        self.providers = [providers] if isinstance(providers, str) else list(providers)
        self.path, self.threads = str(path), threads
        self.graph_optimization, self.profile_prefix = graph_optimization, profile_prefix
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
        # of a file that is given as bytes
        options.add_session_config_entry(EXTERNAL_DATA, str(Path(self.path).absolute().parent))
        if self.profile_prefix:
            options.enable_profiling = True
            options.profile_file_prefix = self.profile_prefix
        return options

    def _run_options(self) -> onnxruntime.RunOptions | None:
        """Return the options of a run; None for those by default."""
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
        """Open the session and read the file's metadata.

        ModelFileError: it has none of mm2onnx, damaged ones, or those of another graph, see `check_graph`;
        the session then stays open until `deactivate`. For the other errors see `open_session`.
        """
        self.open_session()
        self.metadata = Metadata.from_props(self.session.get_modelmeta().custom_metadata_map, self.path)
        self.spec = self.metadata.spec
        inputs = [*self.session.get_inputs(), *self.session.get_overridable_initializers()]
        outputs = [value for value in self.session.get_outputs() if value.name not in self.inner_tensors]
        check_graph(self.spec, _tensors(inputs), _tensors(outputs), self.path)

    def open_session(self) -> None:
        """Open the session without reading the file's metadata, for files that need not have any.

        Raises:
            EngineError: an execution provider is missing, or does not start; the session then stays open
                until `deactivate`.
            ModelFileError: no such file, too large a one, or a path that is not UTF-8; a LoadError: ONNX
                Runtime cannot load it.
        """
        import onnxruntime

        available = onnxruntime.get_available_providers()
        missing = [name for name in self.providers if name not in available]
        if missing:
            raise EngineError(
                f'execution provider {", ".join(missing)} was asked for; this ONNX Runtime '
                f'{onnxruntime.__version__} has {", ".join(available)}'
            )
        if not os.path.isfile(self.path):
            raise ModelFileError(f'{self.path}: no such ONNX file')
        check_onnx_size(self.path)
        try:
            self.path.encode()
        except UnicodeEncodeError as error:
            raise ModelFileError(
                f'{self.path}: its path is not UTF-8, and ONNX Runtime opens no such file; rename it'
            ) from error
        try:
            source = self._changed_model() if self.round_fp16 or self.inner_tensors else self.path
            self.session = onnxruntime.InferenceSession(
                source,
                self._options(),
                providers=providers_with_options(self.providers),
                disabled_optimizers=SLOW_ON_CPU if self.providers == ['CPUExecutionProvider'] else None,
            )
        except Exception as error:
            raise LoadError(f'{self.path}: ONNX Runtime cannot load it: {error}') from error
        check_active(self.providers, self.session.get_providers())

    def _changed_model(self) -> bytes:
        """Return the file with roundings if `round_fp16`, and with `inner_tensors` as further outputs."""
        import onnx

        if self.round_fp16:
            from mmdeploy_ext.graph.passes.round_half import round_half

            content = round_half(onnx.load(self.path)).SerializeToString()
        else:
            content = Path(self.path).read_bytes()
        values = [onnx.ValueInfoProto(name=name) for name in self.inner_tensors]
        # protobuf joins messages that are written one behind the other: no weight is parsed for this
        return content + onnx.ModelProto(graph=onnx.GraphProto(output=values)).SerializeToString()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the session, for `record_runs` too; add its time to `seconds`.

        InferenceError: it is not open, or ONNX Runtime failed.
        """
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
        """Close the session; nothing happens if none is open."""
        self.session = None


def _tensors(values: Iterable[onnxruntime.NodeArg]) -> dict[str, tuple[str, Sequence[Any]]]:
    """Return name -> numpy dtype and axes of the inputs or outputs of a session."""
    dtypes = {'float': 'float32', 'double': 'float64'}
    names = {value.name: value.type.removeprefix('tensor(').removesuffix(')') for value in values}
    return {value.name: (dtypes.get(names[value.name], names[value.name]), value.shape) for value in values}


def check_active(requested: Sequence[str], active: Sequence[str]) -> None:
    """Refuse a session that fell back: ONNX Runtime goes on without a provider that cannot start.

    `requested` are the execution providers that were asked for, `active` those of the session. EngineError:
    one that was asked for is not active.
    """
    inactive = [name for name in requested if name not in active]
    if inactive:
        raise EngineError(
            f'execution provider {", ".join(inactive)} did not start, this session has {", ".join(active)}; '
            f'its libraries or its device are missing'
        )
