"""`quantize.py`: an INT8 file of a float file, calibrated on images, with its size, time and errors."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.commands import command, tool
from mmdeploy_ext.base.errors import UsageError, after_weights
from mmdeploy_ext.base.files import check_outputs, write_json
from mmdeploy_ext.engines.registry import QUANTISED
from mmdeploy_ext.exporting.int8 import DENSE_METHODS, KEEP_RESULTS, PERCENTILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.bench.precision.calibration_sets import CalibrationSet
    from mmdeploy_ext.bench.precision.damage import Difference
    from mmdeploy_ext.bench.precision.dense_target import NncfQuantiser, Target
    from mmdeploy_ext.exporting.int8.dense import DenseGraph, DenseQuantiser
    from mmdeploy_ext.exporting.precision_plan import Plan
    from mmdeploy_ext.spec.metadata import Metadata


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description='Quantise an ONNX file of this project to INT8 (uint8 activations, int8 weights '
        'per channel, Q/DQ) and report its size, time and errors.'
    )
    add = cli.adder(parser)
    add(
        'model',
        f'float32 ONNX file written by {tool("export")}, or an exported folder. In a '
        'folder, one graph is quantised and the others are copied: the image backbone of camera models, the '
        'dense graph of LiDAR models, the frame graph of models with both',
    )
    cli.add(
        parser,
        '--out FILE',
        'file to write (default: MODEL with .int8.onnx); for a folder, a folder (default: MODEL.int8)',
    )
    add(
        '--engine',
        'engine to quantise and measure for; openvino uses NNCF (default: onnxruntime)',
        QUANTISED[0],
        choices=QUANTISED,
    )

    add(
        'config CONFIG',
        'config; with CHECKPOINT, layers that the results need stay in float, as in mm2onnx precision',
        nargs='?',
    )
    add('checkpoint CHECKPOINT', 'checkpoint of the model', nargs='?')
    add(
        '--keep-results SHARE',
        f'with CONFIG: share of the results to keep (default: {KEEP_RESULTS})',
        KEEP_RESULTS,
    )
    add_calibration(parser, '--images N')

    add = cli.adder(parser.add_argument_group('report'))
    add('--rounds N', 'rounds of the time measurement; 0 skips it (default: 10)', 10)
    add('--threads N', "threads within an operator (default: the engine's choice)", 0)
    add('--probe-images N', 'number of images for comparing outputs (default: 4)', 4)
    add('--json FILE', 'write the report as JSON')
    return parser


def add_calibration(
    parser: argparse.ArgumentParser,
    number: str,
    method: str = DENSE_METHODS[0],
    percentile: float = PERCENTILE,
    required: bool = True,
) -> None:
    """Add the options of ranges and layers; `number`: the option of how many images."""
    add = cli.adder(parser.add_argument_group('calibration of int8'))
    add(
        '--calibrate IMAGES|DATASET',
        "folder of images, one image, or annotations in COCO's format (.json); for several cameras "
        'infos (.pkl) or a folder with one folder per camera; for LiDAR sweeps (.bin) or infos',
        required=required,
    )
    add(
        '--data-root DIR',
        'folder of the images of annotations, or of the data set of infos (default: beside them)',
    )
    text = 'number of images or frames, evenly spread; 0 uses all (default: 100)'
    add(number, text, 100)
    add(
        '--method',
        f'ranges of activations: extremes, or clipped by percentile or error (default: {method}; not NNCF)',
        method,
        choices=DENSE_METHODS,
    )
    add('--percentile P', f'for --method percentile (default: {percentile})', percentile)
    add('--reduce-range', '7-bit weights, for CPUs without VNNI')

    add = cli.adder(parser.add_argument_group('layers'))
    add(
        '--keep-float PATTERN...',
        "layers that stay in float, in addition to the last ones, by name ('*', '?'), e.g. '*bbox_head*'",
        [],
    )
    add(
        '--int8-last',
        'also quantise the last layers (logits, deltas, kernels, masks); a backbone has no such layers',
    )


def _check_numbers(args: argparse.Namespace) -> None:
    cli.check_minimums(args, images=0, rounds=0, threads=0, probe_images=1)
    if args.config and (not args.checkpoint or args.engine != QUANTISED[0]):
        raise UsageError(
            'CONFIG requires CHECKPOINT and --engine onnxruntime: NNCF chooses the layers itself'
        )
    if args.rounds and importlib.util.find_spec('torch') is None:
        raise UsageError('--rounds: the benchmark needs PyTorch, which is not installed; give --rounds 0')


def run(args: argparse.Namespace) -> int:
    from mmdeploy_ext.bench.precision.calibration_sets import calibration_set
    from mmdeploy_ext.bench.precision.dense_target import compare_outputs, find_target
    from mmdeploy_ext.exporting.int8.dense import DenseGraph, finish_model, layers_in_int8, record
    from mmdeploy_ext.graphs.io import files
    from mmdeploy_ext.spec.metadata import Metadata

    _check_numbers(args)
    target = find_target(args.model, args.out)
    _check_reports(args, target)
    model = files.load(target.model)
    metadata = Metadata.from_props({entry.key: entry.value for entry in model.metadata_props}, target.model)
    images = calibration_set(target.model, metadata, args.calibrate, args.data_root, args.images)
    graph = DenseGraph(model, target.model)
    layers = int8_layers(graph, args.keep_float, args.int8_last or not images.heads)
    with after_weights():
        quantiser = _quantiser(args, graph, images)
        plan = _plan(args, quantiser, layers) if args.config else None
        if plan:
            layers = plan.layers
        network = quantiser.network(layers)
        layers = layers_in_int8(graph, network, layers)
        probed = images.subset(args.probe_images)
        outputs = compare_outputs(graph, network, probed, args.threads, args.engine)
        facts = quantisation_facts(args, metadata, graph, layers, images)
        result = finish_model(graph, network, facts)
        record(result, quantiser)
        target.save(result)
        measured = measure(args, target, outputs, images)
        show(args, target, facts, measured, plan)
    return 0


def _check_reports(args: argparse.Namespace, target: Target) -> None:
    outputs = [target.output, *(target.output.parent / path.name for path in target.beside)]
    check_outputs({'--out': outputs}, {'the input': [target.model, *target.beside]})


def _quantiser(
    args: argparse.Namespace, graph: DenseGraph, images: CalibrationSet
) -> DenseQuantiser | NncfQuantiser:
    from mmdeploy_ext.bench.precision.dense_target import NncfQuantiser
    from mmdeploy_ext.exporting.int8.dense import DenseQuantiser

    if args.engine == 'openvino':
        return NncfQuantiser(graph, images)
    quantiser = DenseQuantiser(graph, args.reduce_range)
    quantiser.calibrate(images, args.method, args.percentile)
    return quantiser


def _plan(args: argparse.Namespace, quantiser: DenseQuantiser, layers: Sequence[str]) -> Plan:
    """The layers of CONFIG's model that can be INT8."""
    from mmdeploy_ext.api import ProofRequest, plan_read, read_detector

    request = ProofRequest(args.config, args.checkpoint, args.model)
    detector = read_detector(request)
    planner, before = plan_read(detector, request, '', (), quantiser=quantiser, layers=layers)
    return planner.plan(['int8'], args.keep_results, before)


def int8_layers(graph: DenseGraph, keep_float: Sequence[str], last: bool) -> list[str]:
    """Names of the layers to quantise, without --keep-float and, unless `last`, the last ones."""
    float_layers = set(graph.matching(keep_float))
    if not last:
        float_layers |= set(graph.last)
    layers = [layer.name for layer in graph.layers if layer.name not in float_layers]
    if not layers:
        raise UsageError(
            f'all {len(graph.layers)} layers stay in float, so nothing is quantised; see --keep-float'
        )
    return layers


def quantisation_facts(
    args: argparse.Namespace,
    metadata: Metadata,
    graph: DenseGraph,
    layers: Sequence[str],
    images: CalibrationSet,
) -> dict[str, Any]:
    """Facts of file and JSON: quantiser, types, images, layers in INT8 and in float."""
    quantised = sum(graph.layer(name).parameters for name in layers)
    parameters = sum(layer.parameters for layer in graph.layers)
    if args.engine == 'openvino':
        from mmdeploy_ext.bench.precision.dense_target import require_nncf

        quantiser, method = f'NNCF {require_nncf().__version__}', "NNCF's own"
    else:
        import onnxruntime

        quantiser, method = f'ONNX Runtime {onnxruntime.__version__}', args.method
        if method == 'percentile':
            method = f'percentile {args.percentile:g}'
    return dict(
        family=metadata.family,
        form=metadata.form,
        quantiser=quantiser,
        activations='uint8',
        weights='int8 per channel' + (' (7 bits)' if args.reduce_range else ''),
        method=method,
        images=len(images),
        images_are=images.title,
        source=Path(args.calibrate).name,
        layers=len(layers),
        weights_share=round(quantised / parameters, 4),
        float_layers=[layer.name for layer in graph.layers if layer.name not in set(layers)],
    )


def measure(
    args: argparse.Namespace, target: Target, outputs: dict[str, Difference], images: CalibrationSet
) -> dict[str, Any]:
    """Sizes of both files, errors of the outputs, and the time of the first item (None with --rounds 0)."""
    from mmdeploy_ext.bench.benchmark.measure import time_files

    sizes = [path.stat().st_size for path in (target.model, target.output)]
    measured: dict[str, Any] = dict(
        engine=args.engine,
        float_bytes=sizes[0],
        int8_bytes=sizes[1],
        size_ratio=round(sizes[1] / sizes[0], 4),
        outputs=outputs,
        time=None,
    )
    if args.rounds:
        batches = list(images.subset(1))
        paths = str(target.model), str(target.output)
        measured['time'] = time_files(*paths, batches, args.rounds, args.threads, args.engine)
    return measured


def show(
    args: argparse.Namespace,
    target: Target,
    facts: dict[str, Any],
    measured: dict[str, Any],
    plan: Plan | None,
) -> None:
    from mmdeploy_ext.bench.precision import views
    from mmdeploy_ext.bench.precision.plan import show_plan

    console = cli.stdout()
    if args.json:
        content = dict(model=str(target.model), output=str(target.output), **facts, **measured)
        content['outputs'] = {name: one.to_json() for name, one in measured['outputs'].items()}
        content['plan'] = plan.to_json() if plan else None
        write_json(args.json, content)
    if plan:
        show_plan(plan)
    console.print(views.output_table(measured['outputs']))
    beside = f'; unchanged: {", ".join(path.name for path in target.beside)}' if target.beside else ''
    cli.say(
        console,
        f'{target.shown}: {facts["layers"]} layers in INT8 ({facts["weights_share"]:.1%} of the weights) by '
        f'{facts["quantiser"]}, {len(facts["float_layers"])} stay float; {facts["images"]} '
        f'{facts["images_are"]}, ranges by {facts["method"]}{beside}',
    )
    cli.say(
        console,
        f'size{f" of {target.output.name}" if beside else ""}: {measured["size_ratio"]:.3f} of float32 '
        f'({measured["int8_bytes"]:,} of {measured["float_bytes"]:,} B)',
    )
    if measured['time']:
        cli.say(console, views.time_text(measured['time']))
    cli.say(
        console,
        f"NOT PROVEN by these figures; to compare metrics on the config's data set: {command('verify')} "
        f'CONFIG CHECKPOINT {shlex.quote(str(target.shown))} --eval bbox   # for masks only: --eval segm',
    )


main = cli.program(run, build_parser)
