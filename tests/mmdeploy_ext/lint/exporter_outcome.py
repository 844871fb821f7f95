"""What an exporter does with an example of a rule: export it, run it on inputs that the export never saw.

`python tests/mmdeploy_ext/lint/exporter_outcome.py RULE {failing,passing} {torchscript,dynamo}` prints it.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[3]
RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Tolerance of outputs: float32 sums in another order."""
SEGMENTATION_FAULT = -11


def measure(rule, which, exporter):
    """Return the outcome of an example now; one that is known to kill the process runs in one of its own.

    Raises:
        RuntimeError: the process of its own failed in another way.
    """
    from docs._pages.lint.example import CRASHES
    from docs._pages.lint.examples import EXAMPLES

    example = getattr(EXAMPLES[rule.id], which)
    if expected(rule, which, exporter) != CRASHES:
        return outcome(example, exporter)
    command = [sys.executable, __file__, rule.id, which, exporter]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode in (SEGMENTATION_FAULT, 128 - SEGMENTATION_FAULT):
        return CRASHES
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)}: exit status {done.returncode}: {done.stderr}')
    return done.stdout.strip().splitlines()[-1]


def expected(rule, which, exporter):
    """Return the recorded outcome of an example: every exporter gets the passing one right."""
    from mmdeploy_ext.lint.rules import RIGHT

    return rule.outcomes[exporter] if which == 'failing' else RIGHT


def outcome(example, exporter):
    """Export an example and run it on the traced and on unseen inputs."""
    import onnxruntime

    from mmdeploy_ext.core.errors import ExportError
    from mmdeploy_ext.exporting.export import export_module
    from mmdeploy_ext.lint.rules import REFUSED, UNRUNNABLE

    args = example.traced()
    module = example.build(args)
    names = [f'input_{index}' for index in range(len(args))]
    dynamic = {names[index]: axes for index, axes in example.dynamic.items()}
    opset = example.opset if exporter == 'torchscript' else None
    torch.manual_seed(0)
    try:
        model = export_module(module, args, exporter=exporter, opset=opset, dynamic=dynamic)
    except ExportError:
        return REFUSED
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=['CPUExecutionProvider']
        )
    except Exception:  # ONNX Runtime's errors have no common class
        return UNRUNNABLE
    return _compare(example, session)


def _compare(example, session):
    """Run the traced inputs, then the unseen ones, through a new module and through the file."""
    from mmdeploy_ext.lint.nested import tensors_in
    from mmdeploy_ext.lint.rules import FAILS, RIGHT, WRONG, WRONG_AT_ONCE

    module = example.build(example.traced())
    known = {tensor.name for tensor in session.get_inputs()}
    for args, difference in ((example.traced(), WRONG_AT_ONCE), (example.unseen(), WRONG)):
        feeds = {f'input_{index}': tensor.numpy().copy() for index, tensor in enumerate(args)}
        example.make_ready(module, args)
        torch.manual_seed(0)
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in tensors_in(module(*args))]
        try:
            got = session.run(None, {name: array for name, array in feeds.items() if name in known})
        except Exception:  # ONNX Runtime's errors have no common class
            return FAILS
        if not _same(got, expected):
            return difference
    return RIGHT


def _same(got, expected):
    return len(got) == len(expected) and all(
        ours.shape == theirs.shape and np.allclose(ours, theirs, RELATIVE, ABSOLUTE, equal_nan=True)
        for ours, theirs in zip(got, expected, strict=True)
    )


if __name__ == '__main__':
    sys.path.insert(0, str(REPOSITORY))
    from docs._pages.lint.examples import EXAMPLES
    from mmdeploy_ext import compat

    compat.apply()
    print(outcome(getattr(EXAMPLES[sys.argv[1]], sys.argv[2]), sys.argv[3]))
