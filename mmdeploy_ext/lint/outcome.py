"""What an exporter really does with an example: export it, run it on inputs that the export never saw.

`python -m mmdeploy_ext.lint.outcome RULE {failing,passing} {torchscript,dynamo}` prints the outcome.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import ExportError, ModelFileError, UsageError
from mmdeploy_ext.lint.marks import tensors_in
from mmdeploy_ext.lint.rule import (
    CRASHES,
    EXPORTERS,
    FAILS,
    REFUSED,
    RIGHT,
    UNRUNNABLE,
    WRONG,
    WRONG_AT_ONCE,
    Example,
    Rule,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    import onnxruntime

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Tolerance of outputs: float32 sums in another order."""
SEGMENTATION_FAULT = -11


def measure(rule: Rule, which: str, exporter: str) -> str:
    """Return the outcome of an example now; one that is known to kill the process runs in one of its own.

    Raises:
        ModelFileError: the process of its own failed in another way.
    """
    example: Example = getattr(rule, which)
    if rule.expected(which, exporter) != CRASHES:
        return outcome(example, exporter)
    command = [sys.executable, '-m', 'mmdeploy_ext.lint.outcome', rule.id, which, exporter]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode in (SEGMENTATION_FAULT, 128 - SEGMENTATION_FAULT):
        return CRASHES
    if done.returncode:
        raise ModelFileError(
            f'{rule.id}: {" ".join(command[1:])}: exit status {done.returncode}: {done.stderr}'
        )
    return done.stdout.strip().splitlines()[-1]


def outcome(example: Example, exporter: str) -> str:
    """Export an example and run it on the traced and on unseen inputs."""
    import onnxruntime

    from mmdeploy_ext.exporting.export import export_module

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


def _compare(example: Example, session: onnxruntime.InferenceSession) -> str:
    """Run the traced inputs, then the unseen ones, through a new module and through the file."""
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


def _same(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    return len(got) == len(expected) and all(
        ours.shape == theirs.shape and np.allclose(ours, theirs, RELATIVE, ABSOLUTE, equal_nan=True)
        for ours, theirs in zip(got, expected, strict=True)
    )


def operators_of(model: onnx.ModelProto) -> list[str]:
    """Return the operators of a graph in order."""
    return [node.op_type for node in model.graph.node]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(description='Print what an exporter does with an example of a rule.')
    parser.add_argument('rule', help='id of the rule')
    parser.add_argument('which', choices=('failing', 'passing'), help='example')
    parser.add_argument('exporter', choices=EXPORTERS)
    cli.add_debug_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print one outcome."""
    from mmdeploy_ext.lint.rules import RULES

    if args.rule not in RULES:
        raise UsageError(f'rule {args.rule!r}: expected one of {", ".join(RULES)}')
    print(outcome(getattr(RULES[args.rule], args.which), args.exporter))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    from mmdeploy_ext.stack import compat

    compat.apply()
    return cli.run(run, build_parser(), argv)


if __name__ == '__main__':
    sys.exit(main())
