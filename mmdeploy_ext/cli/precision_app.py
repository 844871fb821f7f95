"""`precision`: float16, bfloat16 or INT8 where the results allow it, float32 where they need it, and why."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.api import ProofRequest, plan_read, read_detector
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.commands import command
from mmdeploy_ext.base.errors import UsageError, after_weights
from mmdeploy_ext.base.files import check_outputs, write_json
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.cli.quantize_app import add_calibration, int8_layers
from mmdeploy_ext.exporting.int8 import KEEP_RESULTS

if TYPE_CHECKING:
    import argparse

    import onnx

    from mmdeploy_ext.families.detector import Detector

PRECISIONS = ('int8', 'fp16', 'bf16')
"""Choices of --to, the lowest first."""


def build_parser() -> cli.ArgumentParser:
    parser = cli.ArgumentParser(
        description="Write a file in lower precision that keeps PyTorch's results (simulated on a CPU), "
        'and report which modules stay float32 and why.'
    )
    add = cli.adder(parser)
    cli.add_fields(parser, ProofRequest, shared.MODEL)
    add('onnx_file m.onnx', 'float32 file, or folder of graphs, that mm2onnx exported')
    add(
        '--to PRECISION...',
        'fp16, bf16 or int8; int8 fp16: INT8, with float16 for the rest',
        choices=PRECISIONS,
        required=True,
    )
    cli.add(parser, '--out --output FILE', 'file or folder to write (default: m.fp16.onnx ...)')
    add('--dry-run', 'only find the plan, write no file')
    add('--json FILE', 'write the plan as JSON', writes='{}')
    add('--keep-results SHARE', f'share of the results to keep (default: {KEEP_RESULTS})', KEEP_RESULTS)
    add(
        '--keep-metric NAME DROP',
        'instead of --keep-results: a metric of the data set and its largest drop, e.g. bbox_mAP 0.001',
        nargs=2,
    )
    add(
        '--keep-fp32 PATTERN...',
        "nodes that stay in float32, by name, operator or module ('*', '?')",
        [],
    )
    cli.add_fields(parser, ProofRequest, 'samples frames ignored_keys')
    add_calibration(parser, '--calibration-images N', 'percentile', 99.999, required=False)
    return parser


def run(args: argparse.Namespace) -> int:
    from mmdeploy_ext.bench.precision.plan import show_plan
    from mmdeploy_ext.engines.precision_rules import rule_lines
    from mmdeploy_ext.exporting.int8.dense import store_ranges
    from mmdeploy_ext.exporting.precision_plan import with_plan

    cli.wait_passively()
    shared.take_file_first(args)
    precisions = [name for name in PRECISIONS if name in args.to]
    if {'fp16', 'bf16'} <= {*precisions}:
        raise UsageError('--to fp16 bf16: a file can have only one of them; omit one')
    if 'int8' in precisions and not args.calibrate:
        raise UsageError('--to int8: pass images for the ranges with --calibrate')
    cli.check_minimums(args, calibration_images=0)
    least = args.keep_results if args.keep_metric is None else 1 - drop_of(*args.keep_metric)
    if not 0 < least <= 1:
        raise UsageError(
            f'--keep-results {least:g}: expected a share above 0 and up to 1, e.g. {KEEP_RESULTS}'
        )
    source = Path(args.onnx_file)
    output = Path(
        args.out or source.with_name(f'{source.name.removesuffix(".onnx")}.{precisions[0]}{source.suffix}')
    )
    inputs = sorted(source.iterdir()) if source.is_dir() else [source]
    if not args.dry_run:
        check_outputs(
            {'--out': [output / path.name for path in inputs] if source.is_dir() else [output]},
            {'the input': inputs},
        )
    request = shared.request_of(ProofRequest, args)
    detector = read_detector(request)
    quantiser = calibrated(args) if 'int8' in precisions else {}
    metric = args.keep_metric[0] if args.keep_metric else ''
    with after_weights():
        planner, before = plan_read(detector, request, metric, args.keep_fp32, **quantiser)
        plan = planner.plan(precisions, least, before)
        written = {}
        if not args.dry_run:
            lower = next((name for name in precisions if name != 'int8'), 'fp32')
            models = planner.written(lower, plan.patterns, plan.layers)
            written = {path: with_plan(model, plan) for path, model in models.items()}
            if plan.layers:
                store_ranges(written[planner.quantiser.graph.path], planner.quantiser)
            written = {path: with_tolerances(model, detector) for path, model in written.items()}
            write(output, source, written)
    console = cli.stdout()
    if args.json:
        write_json(args.json, plan.to_json())
    show_plan(plan)
    lines = (line for model in written.values() for line in rule_lines(model))
    for line in dict.fromkeys(lines):
        cli.say(console, line)
    if not args.dry_run:
        cli.say(
            console,
            f'NOT PROVEN by these figures; next: {command("verify")} CONFIG CHECKPOINT {output}',
        )
    return 0


def drop_of(name: str, drop: str) -> float:
    try:
        number = float(drop)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1:
        raise UsageError(f'--keep-metric {name} {drop}: expected a name, and a number from 0 to below 1')
    return number


def calibrated(args: argparse.Namespace) -> dict[str, Any]:
    """The calibrated quantiser of the graph that can be INT8, as arguments of `Planner`."""
    from mmdeploy_ext.bench.precision.calibration_sets import calibration_set
    from mmdeploy_ext.bench.precision.dense_target import find_graph
    from mmdeploy_ext.exporting.int8.dense import DenseGraph, DenseQuantiser
    from mmdeploy_ext.graphs.io import files
    from mmdeploy_ext.graphs.passes.fp16 import of_opset
    from mmdeploy_ext.spec.metadata import read_metadata

    path = find_graph(Path(args.onnx_file))
    images = calibration_set(
        path, read_metadata(str(path)), args.calibrate, args.data_root, args.calibration_images
    )
    model = of_opset(files.load(path), 'bf16' if 'bf16' in args.to else 'fp32')
    quantiser = DenseQuantiser(DenseGraph(model, path), args.reduce_range, outputs=False)
    quantiser.calibrate(images, args.method, args.percentile)
    layers = int8_layers(quantiser.graph, args.keep_float, last=True)
    return dict(quantiser=quantiser, layers=layers)


def with_tolerances(model: onnx.ModelProto, detector: Detector) -> onnx.ModelProto:
    """Return a planned graph with the tolerances that its family states in its precision."""
    from mmdeploy_ext.families.base import exported_options
    from mmdeploy_ext.families.contracts import contract_of
    from mmdeploy_ext.graphs.passes.precision import with_groups
    from mmdeploy_ext.spec.metadata import Metadata

    metadata = Metadata.from_props({entry.key: entry.value for entry in model.metadata_props})
    options = exported_options(detector.family, metadata.options)
    graphs = contract_of(detector.family, options).graphs(detector.model, options)
    specs = [graph.spec for graph in graphs if graph.name == metadata.form]
    groups = {tensor.name: tensor.groups for spec in specs for tensor in (*spec.inputs, *spec.outputs)}
    return with_groups(model, metadata, groups)


def write(output: Path, source: Path, models: dict[str, Any]) -> None:
    """Write a file, or a folder with the other files of `source`."""
    from mmdeploy_ext.base.files import replaced_folder
    from mmdeploy_ext.graphs.io import files
    from mmdeploy_ext.runtime.exported import files_of_family
    from mmdeploy_ext.spec.metadata import read_metadata

    if not source.is_dir():
        files.save(models[str(source)], output, inputs=[source])
        return
    family = read_metadata(next(iter(models))).family
    with replaced_folder(output, files_of_family(output, family)) as staging:
        for path in source.iterdir():
            if path.is_file() and str(path) not in models and not path.name.endswith('.onnx.data'):
                shutil.copy(path, staging)
        for path, model in models.items():
            files.save(model, staging / Path(path).name, inputs=[path])


main = cli.program(run, build_parser)
