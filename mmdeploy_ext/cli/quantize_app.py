"""`quantize.py`: an INT8 file of a float file, calibrated on images, with its size, time and errors."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.engines.registry import QUANTISED
from mmdeploy_ext.quantize import DENSE_METHODS, PERCENTILE
from mmdeploy_ext.util import cli
from mmdeploy_ext.util.commands import command, tool
from mmdeploy_ext.util.errors import UsageError, after_weights
from mmdeploy_ext.util.files import check_outputs, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.quantize.calibration_sets import CalibrationSet
    from mmdeploy_ext.quantize.dense import DenseQuantiser
    from mmdeploy_ext.quantize.dense_layers import DenseGraph
    from mmdeploy_ext.quantize.dense_nncf import NncfQuantiser
    from mmdeploy_ext.quantize.dense_sensitivity import Exclusion, LayerSensitivity, Probe
    from mmdeploy_ext.quantize.dense_target import Target

BUDGET = 10
WORST = 15
"""Layers that the table shows without --all."""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description='Quantise an ONNX file of this project to INT8 (uint8 activations, int8 weights '
        'per channel, Q/DQ) and report its size, time and errors.'
    )
    add = cli.adder(parser)
    add(
        'model',
        f'float32 ONNX file written by {tool("export")}, or the folder of a model of '
        'several graphs, one of which is quantised: of cameras the image backbone, of LiDAR sweeps the one '
        'behind the points, of both that of the frame; the others are copied unchanged',
    )
    cli.add_output(
        parser,
        '--out FILE',
        'file to write (default: MODEL with .int8.onnx), of a folder a folder (default: MODEL.int8)',
    )
    add(
        '--engine',
        'engine for which to quantise and measure: openvino uses NNCF (default: onnxruntime)',
        QUANTISED[0],
        choices=QUANTISED,
    )

    add = cli.adder(parser.add_argument_group('calibration'))
    add(
        '--calibrate IMAGES|DATASET',
        "folder of images, one image, or annotations in COCO's format (.json); of several cameras "
        'infos (.pkl) or a folder with one folder per camera; of LiDAR sweeps (.bin) or infos',
        required=True,
    )
    add(
        '--data-root DIR',
        'folder of the images of annotations, or of the data set of infos (default: beside them)',
    )
    add('--images N', 'number of images or frames, evenly spread; 0 uses all (default: 100)', 100)
    add(
        '--method',
        'range of activations: minmax, or clipped by percentile or error (default: minmax); NNCF ignores it',
        DENSE_METHODS[0],
        choices=DENSE_METHODS,
    )
    add('--percentile P', f'for --method percentile (default: {PERCENTILE})', PERCENTILE)
    add('--reduce-range', '7-bit weights, for CPUs without VNNI')

    add = cli.adder(parser.add_argument_group('layers'))
    add(
        '--keep-float PATTERN...',
        "layers that stay float, by name ('*', '?'), e.g. '*bbox_head*'; besides the last ones",
        [],
    )
    add(
        '--int8-last',
        'also quantise the last layers (logits, deltas, kernels, masks); a backbone has no such layers',
    )
    add('--sensitivity', 'quantise one layer at a time and report the error of each')
    add(
        '--max-error E',
        'keep the most sensitive layers float until no output has a larger error (norm of the difference '
        'over the norm); exit status 1 if --budget does not suffice',
        type=float,
    )
    add('--budget N', f'layers that --max-error may keep float at most (default: {BUDGET})', BUDGET)
    add('--probe-images N', 'number of images for comparing outputs (default: 4)', 4)

    add = cli.adder(parser.add_argument_group('report'))
    add('--rounds N', 'rounds that measure the time; 0 measures none (default: 10)', 10)
    add('--threads N', "threads within an operator (default: the engine's choice)", 0)
    add('--all', f'show all layers, not only the {WORST} worst')
    add('--json FILE', 'write the report as JSON')
    return parser


def _check_numbers(args: argparse.Namespace) -> None:
    cli.check_minimums(args, images=0, budget=0, rounds=0, threads=0, probe_images=1)
    if args.max_error is not None and not args.max_error > 0:
        raise UsageError(f'--max-error {args.max_error}: expected a positive number, e.g. 0.05')
    if args.rounds and importlib.util.find_spec('torch') is None:
        raise UsageError('--rounds: the benchmark needs PyTorch, which is not here; give --rounds 0')


def run(args: argparse.Namespace) -> int:
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.graph.io import files
    from mmdeploy_ext.quantize.calibration_sets import calibration_set
    from mmdeploy_ext.quantize.dense import finish_model, layers_in_int8, record
    from mmdeploy_ext.quantize.dense_layers import DenseGraph
    from mmdeploy_ext.quantize.dense_sensitivity import Probe
    from mmdeploy_ext.quantize.dense_target import find_target

    _check_numbers(args)
    target = find_target(args.model, args.out)
    _check_reports(args, target)
    model = files.load(target.model)
    metadata = Metadata.from_props({entry.key: entry.value for entry in model.metadata_props}, target.model)
    images = calibration_set(target.model, metadata, args.calibrate, args.data_root, args.images)
    graph = DenseGraph(model, target.model)
    layers = int8_layers(graph, args.keep_float, args.int8_last or not images.heads)
    with after_weights():
        quantiser, ranker = _quantisers(args, graph, images)
        probe = Probe(graph, images.subset(args.probe_images), args.threads, args.engine)
        ranked, exclusion = _rank_layers(args, quantiser, ranker, probe, layers)
        if exclusion:
            layers = [name for name in layers if name not in exclusion.kept]
        network = quantiser.network(layers)
        layers = layers_in_int8(graph, network, layers)
        facts = quantisation_facts(args, metadata, graph, layers, images)
        result = finish_model(graph, network, facts)
        record(result, quantiser)
        target.save(result)
        measured = measure(args, target, probe, network, images)
        show(args, target, facts, measured, ranked, exclusion)
    return 1 if exclusion and not exclusion.reached else 0


def _check_reports(args: argparse.Namespace, target: Target) -> None:
    outputs = [target.output, *(target.output.parent / path.name for path in target.beside)]
    check_outputs({'--out': outputs}, {'the input': [target.model, *target.beside]})


def _quantisers(
    args: argparse.Namespace, graph: DenseGraph, images: CalibrationSet
) -> tuple[DenseQuantiser | NncfQuantiser, DenseQuantiser]:
    from mmdeploy_ext.quantize.dense import DenseQuantiser
    from mmdeploy_ext.quantize.dense_nncf import NncfQuantiser

    nncf = NncfQuantiser(graph, images) if args.engine == 'openvino' else None
    ranker = DenseQuantiser(graph, args.reduce_range)
    if nncf is None or args.sensitivity or args.max_error is not None:
        ranker.calibrate(images, args.method, args.percentile)
    return nncf or ranker, ranker


def int8_layers(graph: DenseGraph, keep_float: Sequence[str], last: bool) -> list[str]:
    """Names of the layers to quantise, without --keep-float and, unless `last`, the last ones."""
    float_layers = set(graph.matching(keep_float))
    if not last:
        float_layers |= set(graph.last)
    layers = [layer.name for layer in graph.layers if layer.name not in float_layers]
    if not layers:
        raise UsageError(f'all {len(graph.layers)} layers stay float: nothing to quantise; see --keep-float')
    return layers


def _rank_layers(
    args: argparse.Namespace,
    quantiser: DenseQuantiser | NncfQuantiser,
    ranker: DenseQuantiser,
    probe: Probe,
    layers: Sequence[str],
) -> tuple[list[LayerSensitivity], Exclusion | None]:
    from mmdeploy_ext.quantize import dense_sensitivity

    if not args.sensitivity and args.max_error is None:
        return [], None
    ranked = dense_sensitivity.rank(ranker, probe, layers)
    if args.max_error is None:
        return ranked, None
    return ranked, dense_sensitivity.exclude(quantiser, probe, ranked, args.max_error, args.budget)


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
        from mmdeploy_ext.quantize.dense_nncf import require_nncf

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
    args: argparse.Namespace, target: Target, probe: Probe, network: onnx.ModelProto, images: CalibrationSet
) -> dict[str, Any]:
    """Sizes of both files, errors of the outputs, and the time of the first item (None with --rounds 0)."""
    from mmdeploy_ext.benchmark.measure import time_files

    sizes = [path.stat().st_size for path in (target.model, target.output)]
    measured: dict[str, Any] = dict(
        engine=args.engine,
        float_bytes=sizes[0],
        int8_bytes=sizes[1],
        size_ratio=round(sizes[1] / sizes[0], 4),
        outputs=probe.compare(network),
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
    ranked: list[LayerSensitivity],
    exclusion: Exclusion | None,
) -> None:
    from mmdeploy_ext.quantize import views

    console = cli.stdout()
    float_layers = exclusion.kept if exclusion else ()
    if args.json:
        content = dict(model=str(target.model), output=str(target.output), **facts, **measured)
        content['outputs'] = measured['outputs'].to_json()
        content['sensitivity'] = [layer.to_json() for layer in ranked]
        content['exclusion'] = exclusion.to_json() if exclusion else None
        write_json(args.json, content)
    if ranked:
        console.print(views.layer_table(ranked, float_layers, None if args.all else WORST))
    console.print(views.output_table(measured['outputs']))
    if exclusion:
        text = f'error of the worst output: {exclusion.errors[0]:.4g}'
        if exclusion.kept:
            text += f' -> {exclusion.errors[-1]:.4g} by keeping float: {", ".join(exclusion.kept)}'
        end = f'within --max-error {args.max_error:g}'
        if not exclusion.reached:
            end = (
                f'--max-error {args.max_error:g} is NOT reached: raise --budget, or see --method and --images'
            )
        cli.say(console, f'{text}; {end}')
    beside = f'; as they were: {", ".join(path.name for path in target.beside)}' if target.beside else ''
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
        'NOT PROVEN by these figures; metrics of both on the data set of the config: '
        f'{command("verify")} CONFIG CHECKPOINT {shlex.quote(str(target.shown))} --eval bbox'
        '   # of masks alone: --eval segm',
    )


main = cli.program(run, build_parser)
