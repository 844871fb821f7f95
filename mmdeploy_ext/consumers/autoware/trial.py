"""Loads the graphs of a folder in ONNX Runtime and sends probes through them, in a process of its own.

A file from anybody may crash ONNX Runtime, fill the memory or never end; the process has limits of CPU time,
wall time and memory, and a crash or a limit that it meets is a violation of the file. Needs onnx and ONNX
Runtime.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.consumers.graph_tensors import GraphTensors, graph_tensors, shape_text
from mmdeploy_ext.core.errors import Mm2OnnxError, one_line
from mmdeploy_ext.core.violations import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx

    from mmdeploy_ext.graph.run import Runner

CPU_SECONDS, WALL_SECONDS = 25, 120
"""Limits of the process that tries all files of a folder."""
MEMORY_BYTES, MEMORY_PER_BYTE = 900 << 20, 16
"""Memory that the process may take, and what it may take more for each byte of the files."""
LOAD, CONVENTION, MEMORY = 'load', 'convention', 'memory'
"""Whether a file is only loaded and run on zeros, or a probe of `probes.py` is sent through it, too."""
TRYING = 'trying '
"""Beginning of the line that the process prints before each file."""
REPOSITORY = Path(__file__).resolve().parents[3]
"""Folder that the process imports this package from."""
START = (
    'import sys; sys.path.insert(0, sys.argv[1]); '
    'from mmdeploy_ext.consumers.autoware import trial; trial.main()'
)
"""Code that the process begins with."""


def trial_rules(graphs: Sequence[tuple[Path, onnx.ModelProto, str]]) -> list[Violation]:
    """Return the violations that ONNX Runtime and the probes reveal in files without an error so far.

    A process that crashes, fails or meets a limit is one violation, of the file that it tried last; those of
    files before that one are lost. After a file that ONNX Runtime refuses the next one is tried. Every file
    is loaded and run on zeros, unless it has more arithmetic than `MOST_FLOPS`; a probe is sent through where
    that reveals nothing.

    Args:
        graphs: path, model, and `LOAD` or a probe. Files with operators of plug-ins are left out.
    """
    from mmdeploy_ext.graph.io.files import DEFAULT_DOMAINS
    from mmdeploy_ext.graph.io.index import all_nodes
    from mmdeploy_ext.graph.reduce.checks import run_limited

    arguments = []
    for path, model, probe in graphs:
        if all(node.domain in DEFAULT_DOMAINS for node in all_nodes(model)):
            arguments += [str(path), probe]
    if not arguments:
        return []
    command = [sys.executable, '-c', START, str(REPOSITORY), *arguments]
    status, output = run_limited(command, WALL_SECONDS)
    lines = output.strip().splitlines() or ['']
    if status == 0:
        with contextlib.suppress(ValueError, TypeError):
            return [Violation(**entry) for entry in json.loads(lines[-1])]
    end = f'exit status {status}: {lines[-1][:300]}'
    if status is None:
        end = f'it did not end within {WALL_SECONDS} s'
    elif status == -signal.SIGXCPU:
        end = f'it did not end within {CPU_SECONDS} s of CPU time'
    elif status < 0:
        end = f'the process died of signal {-status}'
    file = next((line.removeprefix(TRYING) for line in reversed(lines) if line.startswith(TRYING)), '')
    message = f'{file}: ONNX Runtime could not load and run it in a process of its own: {end}'
    return [Violation(file, '', 'load', message)]


def main() -> None:
    """Try the files of the command line: behind `REPOSITORY` path and probe of each in turn.

    The limits of CPU time and memory are set here, where the system has such. The last line printed is a JSON
    list of the violations, each a dict of the attributes of `Violation`.
    """
    paths, probes = [Path(path) for path in sys.argv[2::2]], sys.argv[3::2]
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        limit = MEMORY_BYTES + MEMORY_PER_BYTE * sum(path.stat().st_size for path in paths)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    print(try_files(paths, probes))


def try_files(paths: Sequence[Path], probes: Sequence[str]) -> str:
    """Try each file, in this process, with its probe; return what `main` prints last.

    Before each file its name is printed, behind `TRYING`.
    """
    violations = []
    for path, probe in zip(paths, probes, strict=True):
        print(f'{TRYING}{path.name}', flush=True)
        violations += _try_file(path, probe)
    return json.dumps([dataclasses.asdict(violation) for violation in violations])


def _try_file(path: Path, probe: str) -> list[Violation]:
    from mmdeploy_ext.consumers.autoware.probes import convention_rules, memory_rules
    from mmdeploy_ext.graph.io.files import load
    from mmdeploy_ext.graph.run import Runner

    file, model = path.name, load(path)
    tensors = graph_tensors(model)
    try:
        violations = list(_run_on_zeros(file, Runner(model, threads=1), tensors))
    except Mm2OnnxError as error:
        return [Violation(file, '', 'load', f'{file}: {one_line(error)[:300]}')]
    if violations or probe == LOAD:
        return violations
    if probe == CONVENTION:
        return list(convention_rules(file, model, [value.name for value in model.graph.output]))
    return list(memory_rules(file, model, tensors))


def _run_on_zeros(file: str, runner: Runner, tensors: GraphTensors) -> Iterator[Violation]:
    """Yield outputs that are not finite, or not of the stated shape, if all inputs are zeros.

    Axes that are not fixed are 1.
    """
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    feeds = {}
    for name, shape in tensors.inputs.items():
        dtype = tensor_dtype_to_np_dtype(TensorProto.DataType.Value(tensors.types[name]))
        feeds[name] = np.zeros([size or 1 for size in shape], dtype)
    for name, values in runner.run(feeds).items():
        stated = tensors.outputs[name]
        differs = any(size not in (None, got) for size, got in zip(stated, values.shape, strict=False))
        if len(stated) != values.ndim or differs:
            got = shape_text(values.shape)
            message = f'{file}: {name} is {got} where zeros are fed, and stated as {shape_text(stated)}'
            yield Violation(file, name, 'shape', message)
        elif not np.isfinite(values).all():
            yield Violation(file, name, 'not-finite', f'{file}: {name} is not finite where zeros are fed')
