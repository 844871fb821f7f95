"""`lint.py`: run a model under observation and report what an export of it will get wrong."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import after_weights
from mmdeploy_ext.base.files import write_json
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.detector import resolve
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.upstream import compat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mmdeploy_ext.bench.lint.report import Report
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.spec.options import Options


# The parts that `lint.py` observes: stages of an image model, or graphs of a sequence family.


Feeds = dict[str, torch.Tensor]
"""Tensors by name: inputs of a graph, and outputs of stages that have run."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A stage or a graph that is observed alone; it takes its inputs by position.

    Attributes:
        name: for the report.
        module: is run on the inputs.
        input_names: names of the inputs.
        inputs: tensors of one run.
        other_inputs: tensors of a second run, larger if sizes are dynamic; None: only the example.
        exporters: the only exporters that fit this part; () means the user's choice.
    """

    name: str
    module: torch.nn.Module
    input_names: tuple[str, ...]
    inputs: list[Any]
    other_inputs: list[Any] | None = None
    exporters: tuple[str, ...] = ()


def parts_of(detector: Detector, options: Options, picture: str | None = None) -> Iterator[Part]:
    """Yield the parts in the order of a frame.

    `picture` is the file of an image model's input, by default the demo's.
    """
    options = resolve(options, detector.model, detector.rule)
    device, runs = next(detector.model.parameters()).device, []
    for arrays in kind_of(detector.family).observed(detector, options, picture or DEFAULT_PICTURE):
        runs.append({name: torch.from_numpy(array).to(device) for name, array in arrays.items()})
    yield from _stages(detector, options, runs)


def _stages(detector: Detector, options: Options, runs: Sequence[Feeds]) -> Iterator[Part]:
    family, model = detector.family, detector.model
    family.check(detector.cfg, options)
    contract_of(family, options).check(detector.cfg)
    for graph in contract_of(family, options).graphs(prepared(model), options):
        graph_runs = runs or [dict(graph.example)]
        for stage in graph.stages:
            stage.module.eval().to(next(model.parameters()).device)
            inputs = [[tensors[name] for name in stage.inputs] for tensors in graph_runs]
            exporters = (stage.exporter,) if stage.exporter else ()
            name = f'{family.name}: {stage.name or graph.name}'
            yield Part(name, stage.module, stage.inputs, *inputs, exporters=exporters)
            for tensors, stage_inputs in zip(graph_runs, inputs, strict=True):
                with torch.no_grad():
                    outputs = stage.module(*stage_inputs)
                outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
                tensors.update(zip(stage.outputs, outputs, strict=True))


BOTH = 'both'


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description='Run a model and report the lines of code that an export would get wrong, and what to '
        'write instead. Exit status 1 if there is an error.'
    )
    shared.add_model_arguments(parser)
    add = cli.adder(parser)
    add('--input-img INPUT_IMG', 'input image (default: demo/toy.jpg)')
    add('--shape N...', 'height and width (default: from the test pipeline)', type=int)
    add(
        '--dynamic-export',
        'report code that depends on sizes, with a second, larger image (default: sizes are fixed)',
    )
    add(
        '--postprocess',
        'how much of the post-processing is in the graphs (default: full)',
        'full',
        choices=('full', 'decode', 'raw'),
    )
    add(
        '--exporter',
        'exporter to try; it decides the severities (default: torchscript)',
        'torchscript',
        choices=('torchscript', 'dynamo', BOTH),
    )
    add('--opset-version N', 'opset of the trial export', type=int)
    add('--no-export', 'skip the trial export')
    add('--notes', 'also show findings that the exporter handles')
    add('--json FILE', 'also write the findings as JSON')
    return parser


def run(args: argparse.Namespace) -> int:
    cli.wait_passively()
    compat.apply()
    from mmdeploy_ext.bench.lint.report import print_report
    from mmdeploy_ext.bench.lint.rules import EXPORTERS
    from mmdeploy_ext.exporting.export import check_opset
    from mmdeploy_ext.families.detector import build, load_weights, read_config

    exporters = EXPORTERS if args.exporter == BOTH else (args.exporter,)
    for exporter in exporters if args.opset_version is not None else ():
        check_opset(args.opset_version, exporter)
    height, width = shared.parse_shape(args.shape)
    cfg_options = shared.parse_cfg_options(args.cfg_options)
    detector = read_config(args.config, args.checkpoint, cfg_options, args.device)
    shared.refuse_of_kind(args, build_parser(), 'lint', detector.family)
    build(detector)
    load_weights(detector)
    reports: list[Report] = []
    with after_weights():
        for report in lint(detector, args, exporters, (height, width)):
            print_report(report, cli.stdout(), args.notes)
            reports.append(report)
    failed = any(report.failed for report in reports)
    if args.json:
        write_json(args.json, dict(failed=failed, reports=[report.to_json() for report in reports]))
    return int(failed)


def lint(
    detector: Detector, args: argparse.Namespace, exporters: Sequence[str], shape: tuple[int, int]
) -> Iterator[Report]:
    """Yield a report of each part, see `lint_parts.parts_of`.

    `exporters` give the severities. `shape` is height and width of an image model's input; 0: the test
    pipeline's.
    """
    from mmdeploy_ext.bench.lint import check

    family = detector.family
    options = kind_of(family).observed_options(family, args.postprocess, shape, args.dynamic_export)
    tries_exports = not args.no_export
    for part in parts_of(detector, options, args.input_img):
        part_exporters = part.exporters or exporters
        trials = f', then {" and ".join(part_exporters)}' if tries_exports else ''
        with cli.stderr().status(f'{part.name}: observed run{trials}'):
            report = check(
                part.module,
                part.inputs,
                other_inputs=part.other_inputs,
                input_names=part.input_names,
                dynamic=args.dynamic_export and part.other_inputs is not None,
                exporters=part_exporters,
                opset=args.opset_version,
                try_exports=tries_exports,
                name=part.name,
            )
        yield report


main = cli.program(run, build_parser)
