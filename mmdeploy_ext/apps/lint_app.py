"""`lint.py`: run a model once under observation and say what an export will trip over."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext import cli
from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.errors import UsageError, after_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from mmdeploy_ext.deploy import Deployment
    from mmdeploy_ext.family import ExportOptions
    from mmdeploy_ext.lint.report import Report

BOTH = 'both'
LARGER = 64
"""Pixels that the second picture has more of, so that sizes differ; a multiple of every family's stride."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Run a model once under observation and say, with lines of code, what an export of it '
        'will trip over and what to write instead. Exit status 1 when there is an error among it.'
    )
    shared.add_model_arguments(parser)
    parser.add_argument('--input-img', help='image that is run (default: demo/toy.jpg)')
    parser.add_argument(
        '--shape', type=int, nargs='+', metavar='N', help='height and width (default: from the test pipeline)'
    )
    parser.add_argument(
        '--dynamic-export',
        action='store_true',
        help='sizes will differ: traps about sizes count (default: sizes stay those of the example)',
    )
    parser.add_argument(
        '--postprocess', choices=('full', 'decode', 'raw'), default='full', help='form (default: full)'
    )
    parser.add_argument(
        '--exporter',
        choices=('torchscript', 'dynamo', BOTH),
        default='torchscript',
        help='exporter that severities are for, and that is tried (default: torchscript)',
    )
    parser.add_argument('--opset-version', type=int, metavar='N', help='opset of the trial export')
    parser.add_argument('--no-export', action='store_true', help='observe only; try no export')
    parser.add_argument('--notes', action='store_true', help='show what the exporter gets right, too')
    parser.add_argument('--json', metavar='FILE', help='also write what was found as JSON')
    cli.add_debug_option(parser)
    return parser


def run(args: argparse.Namespace, register: Callable[[], None]) -> int:
    """Observe every stage or graph of a model, print, write."""
    cli.wait_passively()
    from mmdeploy_ext import compat

    compat.apply()
    from mmdeploy_ext import deploy
    from mmdeploy_ext.export import check_opset
    from mmdeploy_ext.files import check_writable, write_json
    from mmdeploy_ext.lint.report import print_report
    from mmdeploy_ext.lint.rule import EXPORTERS

    if args.json:
        check_writable(args.json)
    exporters = EXPORTERS if args.exporter == BOTH else (args.exporter,)
    for exporter in exporters if args.opset_version is not None else ():
        check_opset(args.opset_version, exporter)
    height, width = shared.parse_shape(args.shape)
    cfg_options = shared.parse_cfg_options(args.cfg_options)
    register()
    deployment = deploy.load(args.config, args.checkpoint, cfg_options, args.device)
    reports: list[Report] = []
    with after_weights():
        for report in lint(deployment, args, exporters, (height, width)):
            print_report(report, cli.stdout(), args.notes)
            reports.append(report)
    failed = any(report.failed for report in reports)
    if args.json:
        write_json(args.json, dict(failed=failed, reports=[report.to_json() for report in reports]))
    return int(failed)


def lint(
    deployment: Deployment, args: argparse.Namespace, exporters: Sequence[str], shape: tuple[int, int]
) -> Iterator[Report]:
    """Yield a report per stage or graph."""
    from mmdeploy_ext.family import Family
    from mmdeploy_ext.lint import check
    from mmdeploy_ext.sequence.family import SequenceFamily

    if isinstance(deployment.family, Family):
        parts = _stages(deployment, args, shape)
    elif isinstance(deployment.family, SequenceFamily):
        parts = _graphs(deployment)
    else:
        raise UsageError(f'{deployment.config}: family {deployment.family.name!r} has no torch graph to lint')
    for part in parts:
        with cli.stderr().status(f'{part.name}: one observed run, then {" and ".join(exporters)}'):
            report = check(
                part.module,
                part.inputs,
                other_inputs=part.other_inputs,
                input_names=part.input_names,
                dynamic=args.dynamic_export and part.other_inputs is not None,
                exporters=part.exporters or exporters,
                opset=args.opset_version,
                try_exports=not args.no_export,
                name=part.name,
            )
        yield report


@dataclasses.dataclass(frozen=True)
class Part:
    """What is observed alone: a stage or a graph.

    Attributes:
        name: in the report.
        module: takes its inputs by position.
        input_names: of them.
        inputs: of the observed run.
        other_inputs: that it meets later; None where sizes are fixed.
        exporters: that it is pinned to; empty follows the option.
    """

    name: str
    module: torch.nn.Module
    input_names: tuple[str, ...]
    inputs: list[Any]
    other_inputs: list[Any] | None = None
    exporters: tuple[str, ...] = ()


def _stages(deployment: Deployment, args: argparse.Namespace, shape: tuple[int, int]) -> Iterator[Part]:
    """Yield the stages of a model of single images, on a picture and on another one."""
    import torch

    from mmdeploy_ext import deploy
    from mmdeploy_ext.family import ExportOptions

    family, model = deployment.family, deployment.model
    options = ExportOptions(args.postprocess, 0, *shape, dynamic=args.dynamic_export)
    options = deploy.resolve(options, model, deployment.rule)
    family.check(deployment.cfg, options)
    runs = _feeds(deployment, args.input_img, options)
    for stage in family.stages(model, options):
        stage.module.eval().to(next(model.parameters()).device)
        inputs = [[tensors[name] for name in stage.inputs] for tensors in runs]
        exporters = (stage.exporter,) if stage.exporter else ()
        yield Part(f'{family.name}: {stage.name}', stage.module, stage.inputs, *inputs, exporters)
        for tensors, given in zip(runs, inputs, strict=True):
            with torch.no_grad():
                outputs = stage.module(*given)
            outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
            tensors.update(zip(stage.outputs, outputs, strict=True))


def _feeds(
    deployment: Deployment, picture: str | None, options: ExportOptions
) -> list[dict[str, torch.Tensor]]:
    """Return the inputs of two runs: a picture, and another one, larger where sizes are dynamic."""
    import torch

    from mmdeploy_ext import deploy
    from mmdeploy_ext.apps import proof
    from mmdeploy_ext.verify.inputs import other_view

    ((_, image),) = proof.read_images([picture or proof.DEFAULT_IMAGE], 1)
    more = LARGER if options.dynamic else 0
    device = next(deployment.model.parameters()).device
    found = []
    for view, extra in ((image, 0), (other_view(image), more)):
        prepared = deploy.prepare_fixed(
            deployment.rule, view, options.height + extra, options.width + 2 * extra
        )
        feeds = deployment.family.feeds([prepared], True)
        found.append({name: torch.from_numpy(array).to(device) for name, array in feeds.items()})
    return found


def _graphs(deployment: Deployment) -> Iterator[Part]:
    """Yield the graphs of a model of frames; their sizes are fixed."""
    from mmdeploy_ext.sequence.family import SequenceOptions

    family = deployment.family
    options = SequenceOptions()
    family.check(deployment.cfg, options)
    for graph in family.graphs(deployment.model, options):
        if graph.module is not None:
            names = tuple(graph.spec.input_names)
            inputs = [graph.example[name] for name in names]
            yield Part(f'{family.name}: {graph.name}', graph.module, names, inputs)


def main(register: Callable[[], None], argv: Sequence[str] | None = None) -> int:
    """Run the tool.

    Returns:
        0 clean, 1 findings of severity error or an export that is refused, 2 usage.
    """
    return cli.run(lambda args: run(args, register), build_parser(), argv)
