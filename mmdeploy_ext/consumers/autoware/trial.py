"""Loads the graphs of a folder in ONNX Runtime and sends probes through them, in a process with a time limit.

Needs onnx and ONNX Runtime.
"""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.consumers.autoware.nodes import CONVENTION, LOAD
from mmdeploy_ext.consumers.autoware.probes import convention_rules, memory_rules
from mmdeploy_ext.consumers.graph_tensors import graph_tensors, shape_text
from mmdeploy_ext.core.errors import Mm2OnnxError, one_line
from mmdeploy_ext.core.violations import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

    import onnx

SECONDS = 300
"""Limit of the process that tries all files of a folder."""


def trial_rules(graphs: Sequence[tuple[Path, onnx.ModelProto, str]]) -> list[Violation]:
    """Return the violations that ONNX Runtime and the probes reveal in files without an error so far.

    A process that dies or meets the limit is one violation, of the file that it tried last. `graphs` are
    path, model, and `LOAD` or a probe; files with operators of plug-ins are left out.
    """
    from mmdeploy_ext.graph.io.files import DEFAULT_DOMAINS
    from mmdeploy_ext.graph.io.index import all_nodes

    trials = [
        (path, probe)
        for path, model, probe in graphs
        if all(node.domain in DEFAULT_DOMAINS for node in all_nodes(model))
    ]
    if not trials:
        return []
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=try_files, args=(trials, sender), daemon=True)
    process.start()
    sender.close()
    file, end, deadline = '', f'it did not end within {SECONDS} s', time.monotonic() + SECONDS
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            message = receiver.recv()
            if isinstance(message, list):
                return message
            file = message
    except EOFError:
        process.join()
        end = f'its process died with status {process.exitcode}'
    finally:
        process.kill()
    return [Violation(file, '', 'load', f'{file}: ONNX Runtime could not load and run it: {end}')]


def try_files(trials: Sequence[tuple[Path, str]], sender: Connection) -> None:
    """Send the name of each file, before it is tried, and at last the list of all violations."""
    violations: list[Violation] = []
    for path, probe in trials:
        sender.send(path.name)
        violations += try_file(path, probe)
    sender.send(violations)


def try_file(path: Path, probe: str) -> list[Violation]:
    """Return the violations of one file, tried in this process."""
    from mmdeploy_ext.graph.io.files import load

    file, model = path.name, load(path)
    try:
        violations = list(_run_on_zeros(file, model))
    except Mm2OnnxError as error:
        return [Violation(file, '', 'load', f'{file}: {one_line(error)[:300]}')]
    if violations or probe == LOAD:
        return violations
    if probe == CONVENTION:
        return list(convention_rules(file, model, [value.name for value in model.graph.output]))
    return list(memory_rules(file, model, graph_tensors(model)))


def _run_on_zeros(file: str, model: onnx.ModelProto) -> Iterator[Violation]:
    """Yield outputs that are not finite or not of the stated shape if all inputs are zeros."""
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    from mmdeploy_ext.graph.run import run

    tensors, feeds = graph_tensors(model), {}
    for name, shape in tensors.inputs.items():
        dtype = tensor_dtype_to_np_dtype(TensorProto.DataType.Value(tensors.types[name]))
        feeds[name] = np.zeros([size or 1 for size in shape], dtype)
    for name, values in run(model, feeds).items():
        stated = tensors.outputs[name]
        sizes = zip(stated, values.shape, strict=False)
        if len(stated) != values.ndim or any(size not in (None, got) for size, got in sizes):
            text = f'{file}: {name} is {shape_text(values.shape)} where zeros are fed, and stated as '
            yield Violation(file, name, 'shape', text + shape_text(stated))
        elif not np.isfinite(values).all():
            yield Violation(file, name, 'not-finite', f'{file}: {name} is not finite where zeros are fed')
