"""Load the graphs of a folder in ONNX Runtime and send probes through them, in a process of its own.

A file from anybody may crash ONNX Runtime, fill the memory or never end; the process has limits of CPU time,
wall time and memory, and what happens to it is a finding about the file. Needs onnx and ONNX Runtime.
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

from mmdeploy_ext.core.errors import Mm2OnnxError
from mmdeploy_ext.core.violations import Violation
from mmdeploy_ext.runtime.contract_files import Ends, ends_of, shape_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx

    from mmdeploy_ext.graph.run import Runner

CPU_SECONDS, WALL_SECONDS = 25, 120
"""Of a folder."""
MEMORY_BYTES, MEMORY_PER_BYTE = 900 << 20, 16
"""What the process may take, and that for each byte of the files: weights, their copies, and activations."""
MOST_FLOPS = 50_000_000_000
"""Of a graph that is run on zeros: a few seconds on one core."""
LOAD, CONVENTION, MEMORY = 'load', 'convention', 'memory'
"""Whether a file is only loaded, or a probe is sent through it: `probe.py`, `memory_probe.py`."""
TRYING = 'trying '
REPOSITORY = Path(__file__).resolve().parents[3]
START = (
    'import sys; sys.path.insert(0, sys.argv[1]); '
    'from mmdeploy_ext.consumers.autoware import trial; trial.main()'
)


def trial_rules(graphs: Sequence[tuple[Path, onnx.ModelProto, str]]) -> list[Violation]:
    """Return what ONNX Runtime and the probes find wrong with files of which no error is known.

    Args:
        graphs: path, model, and `LOAD` or a probe. Files with operators of plug-ins are left out.
    """
    from mmdeploy_ext.graph.io.checks import DEFAULT_DOMAINS
    from mmdeploy_ext.graph.reduce.checks import run_limited

    words = []
    for path, model, probe in graphs:
        if all(node.domain in DEFAULT_DOMAINS for node in model.graph.node):
            words += [str(path), probe]
    if not words:
        return []
    status, output = run_limited([sys.executable, '-c', START, str(REPOSITORY), *words], WALL_SECONDS)
    lines = output.strip().splitlines() or ['']
    if status == 0:
        with contextlib.suppress(ValueError, TypeError):
            return [Violation(**entry) for entry in json.loads(lines[-1])]
    ended = f'exit status {status}: {lines[-1][:300]}'
    if status is None or status == -signal.SIGXCPU:
        ended = f'it did not end within {CPU_SECONDS} s of CPU time'
    elif status < 0:
        ended = f'the process died of signal {-status}'
    # each file before its trial writes its name
    file = next((line.removeprefix(TRYING) for line in reversed(lines) if line.startswith(TRYING)), '')
    said = f'{file}: ONNX Runtime could not load and run it in a process of its own: {ended}'
    return [Violation(file, '', 'load', said)]


def main() -> None:
    """Try the files of the command line within the limits; the last line printed holds the violations."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        size = sum(Path(path).stat().st_size for path in sys.argv[2::2])
        most = MEMORY_BYTES + MEMORY_PER_BYTE * size
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    words, violations = sys.argv[2:], []
    for path, probe in zip(map(Path, words[::2]), words[1::2], strict=True):
        print(f'{TRYING}{path.name}', flush=True)
        violations += _findings(path, probe)
    print(json.dumps([dataclasses.asdict(violation) for violation in violations]))


def _findings(path: Path, probe: str) -> list[Violation]:
    from mmdeploy_ext.consumers.autoware.memory_probe import memory_rules
    from mmdeploy_ext.consumers.autoware.probe import convention_rules
    from mmdeploy_ext.graph.io.files import load
    from mmdeploy_ext.graph.run import Runner

    file, model = path.name, load(path)
    try:
        runner = Runner(model, threads=1)
        violations = list(_run_on_zeros(file, runner, ends_of(model)))
    except Mm2OnnxError as error:
        said = f'{file}: {" ".join(str(error).split())[:300]}'
        return [Violation(file, '', 'load', said)]
    if violations:
        return violations
    if probe == CONVENTION:
        return list(convention_rules(file, model, [value.name for value in model.graph.output]))
    return list(memory_rules(file, model, ends_of(model))) if probe == MEMORY else []


def _run_on_zeros(file: str, runner: Runner, ends: Ends) -> Iterator[Violation]:
    """Yield outputs that are not finite, or not of the stated shape, where all inputs are zeros.

    Axes that are not fixed are 1. Graphs of more arithmetic than `MOST_FLOPS` are not run.
    """
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    from mmdeploy_ext.graph import flops

    if sum(number or 0 for number in flops.count(runner.index.model).values()) > MOST_FLOPS:
        return
    feeds = {}
    for name, shape in ends.inputs.items():
        dtype = tensor_dtype_to_np_dtype(TensorProto.DataType.Value(ends.kinds[name]))
        feeds[name] = np.zeros([size or 1 for size in shape], dtype)
    for name, values in runner.run(feeds).items():
        stated = ends.outputs[name]
        sizes_differ = any(size not in (None, got) for size, got in zip(stated, values.shape, strict=False))
        if len(stated) != values.ndim or sizes_differ:
            got = shape_text(values.shape)
            said = f'{file}: {name} is {got} where zeros are fed, and stated as {shape_text(stated)}'
            yield Violation(file, name, 'shape', said)
        elif not np.isfinite(values).all():
            yield Violation(file, name, 'not-finite', f'{file}: {name} is not finite where zeros are fed')
