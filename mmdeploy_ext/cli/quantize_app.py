"""`quantize.py`: an INT8 file of a float one, calibrated on images, and what that costs and gains."""

from __future__ import annotations

import argparse
import importlib.util
import math
from typing import TYPE_CHECKING

from mmdeploy_ext.cli import quantize_report
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import UsageError, after_weights
from mmdeploy_ext.core.files import check_outputs, check_writable
from mmdeploy_ext.engines.registry import QUANTISED
from mmdeploy_ext.quantize import DENSE_METHODS, PERCENTILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.quantize.calibration_sets import CalibrationSet
    from mmdeploy_ext.quantize.dense import DenseQuantiser
    from mmdeploy_ext.quantize.dense_layers import DenseGraph
    from mmdeploy_ext.quantize.dense_nncf import NncfQuantiser
    from mmdeploy_ext.quantize.dense_sensitivity import Exclusion, LayerSensitivity, Probe
    from mmdeploy_ext.quantize.dense_target import Target

BUDGET = 10


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Quantise an ONNX file of this project to INT8 (uint8 activations, int8 weights per '
        'channel, Q/DQ) and say what it costs: size, time, outputs, layer by layer where asked for.'
    )
    add = cli.adder(parser)
    add(
        'model',
        f'float32 ONNX file written by {tool("export")}, or the folder of a model of '
        'several graphs, one of which is quantised: of cameras the image backbone, of LiDAR sweeps the one '
        'behind the points, of both that of the frame; the others are copied unchanged',
    )
    add(
        '--output F',
        'file to write (default: MODEL with .int8.onnx), of a folder a folder (default: MODEL.int8)',
        writes='{}',
    )
    add(
        '--engine',
        "whose quantiser: ONNX Runtime's own, or NNCF for OpenVINO (default: onnxruntime); outputs and "
        'times are then of that engine',
        QUANTISED[0],
        choices=QUANTISED,
    )
    _add_calibration(parser.add_argument_group('calibration'))
    _add_layers(parser.add_argument_group('layers'))
    _add_report(parser.add_argument_group('report'))
    cli.add_debug_option(parser)
    return parser


def _add_calibration(group: argparse._ArgumentGroup) -> None:
    add = cli.adder(group)
    add(
        '--calibrate IMAGES|DATASET',
        "folder of images, one image, or annotations in COCO's format (.json); of several cameras "
        'infos (.pkl) or a folder with one folder per camera; of LiDAR sweeps (.bin) or infos',
        required=True,
    )
    add('--data-root DIR', 'where the images of annotations or infos are (default: beside them)')
    add('--images N', 'images or frames, evenly; 0 takes all (default: 100)', 100)
    add(
        '--method',
        'range of activations: least and largest value, or clipped by a histogram (default: minmax); '
        'NNCF has its own',
        DENSE_METHODS[0],
        choices=DENSE_METHODS,
    )
    add('--percentile P', f'for --method percentile (default: {PERCENTILE})', type=float)
    add('--reduce-range', '7-bit weights, for CPUs without VNNI')


def _add_layers(group: argparse._ArgumentGroup) -> None:
    add = cli.adder(group)
    add(
        '--keep-float PATTERN...',
        "layers that stay float, by name ('*', '?'), e.g. '*bbox_head*'; besides the last ones",
        [],
    )
    add(
        '--int8-last',
        'quantise also the last layers (those that give logits, deltas, kernels, masks); a backbone has '
        'none of these, and all its layers are quantised',
    )
    add('--sensitivity', 'quantise one layer at a time and say what each does')
    add(
        '--max-error E',
        'keep the most sensitive layers float until no output of the network has a larger error (norm '
        'of the difference over the norm); exit status 1 when that is not reached',
        type=float,
    )
    add('--budget N', f'layers that --max-error may keep float at most (default: {BUDGET})', BUDGET)
    add('--probe-images N', 'images that outputs are compared on (default: 4)', 4)


def _add_report(group: argparse._ArgumentGroup) -> None:
    add = cli.adder(group)
    add('--rounds N', 'of the time ratio; 0 measures none (default: 10)', 10)
    add('--threads N', "within an operator (default: the engine's choice)", 0)
    add('--all', f'show all layers, not only the {quantize_report.WORST} worst')
    add('--draw PNG', 'draw the layers (with --sensitivity or --max-error)', writes='{}')
    add('--json FILE', 'write what was found as JSON')


def _check_numbers(args: argparse.Namespace) -> None:
    cli.check_least(args, images=0, budget=0, rounds=0, threads=0, probe_images=1)
    if args.max_error is not None and not 0 < args.max_error < math.inf:
        raise UsageError(f'--max-error {args.max_error}: expected a positive number, e.g. 0.05')
    if args.rounds and importlib.util.find_spec('torch') is None:
        raise UsageError('--rounds: the benchmark needs PyTorch, which is not here; give --rounds 0')
    if args.percentile is not None and args.method != 'percentile':
        raise UsageError(f'--percentile {args.percentile:g} goes with --method percentile')
    if args.draw and not (args.sensitivity or args.max_error is not None):
        raise UsageError('--draw shows what --sensitivity or --max-error finds: give one of them too')
    if args.engine == 'openvino' and (args.method != DENSE_METHODS[0] or args.reduce_range):
        raise UsageError(
            '--engine openvino: NNCF finds its own ranges; leave --method and --reduce-range away'
        )


def run(args: argparse.Namespace) -> int:
    """Quantise; 1 where `--max-error` was not reached within `--budget`."""
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.graph.io import files
    from mmdeploy_ext.quantize.calibration_sets import calibration_set
    from mmdeploy_ext.quantize.calibrators import make_calibrator
    from mmdeploy_ext.quantize.dense import check_weights, finish_model, layers_in_int8, record
    from mmdeploy_ext.quantize.dense_layers import DenseGraph
    from mmdeploy_ext.quantize.dense_sensitivity import Probe
    from mmdeploy_ext.quantize.dense_target import find_target

    _check_numbers(args)
    args.percentile = PERCENTILE if args.percentile is None else args.percentile
    make_calibrator('percentile', args.percentile)
    target = find_target(args.model, args.output)
    _check_reports(args, target)
    model = files.load(target.model)
    metadata = Metadata.from_props({entry.key: entry.value for entry in model.metadata_props}, target.model)
    images = calibration_set(target.model, metadata, args.calibrate, args.data_root, args.images)
    graph = DenseGraph(model, target.model)
    check_weights(graph, target.model)
    layers = int8_layers(graph, args.keep_float, args.int8_last or not images.heads)
    with after_weights():
        quantiser, ranker = _quantisers(args, graph, images)
        probe = Probe(graph, images.first(args.probe_images), args.threads, args.engine)
        ranked, exclusion = _rank_layers(args, quantiser, ranker, probe, layers)
        kept = exclusion.kept if exclusion else ()
        layers = [name for name in layers if name not in kept]
        network = quantiser.network(layers)
        layers = layers_in_int8(graph, network, layers)
        facts = quantize_report.facts(args, metadata, graph, layers, images)
        result = finish_model(graph, network, facts)
        record(result, quantiser, layers)
        target.save(result)
        found = quantize_report.measure(args, target, probe, network, images)
        quantize_report.show(args, target, facts, found, ranked, exclusion)
    return 1 if exclusion and not exclusion.reached else 0


def _check_reports(args: argparse.Namespace, target: Target) -> None:
    """Refuse a picture or report that would replace what is read or made, or cannot be written."""
    reports = {option: [path] for option, path in (('--draw', args.draw), ('--json', args.json)) if path}
    made = [target.output, *(target.output.parent / path.name for path in target.beside)]
    read = [target.model, *target.beside]
    check_outputs(
        {'--output': [*made, *(f'{path}.data' for path in made)], **reports},
        {
            'what --calibrate names': [args.calibrate],
            'the input': read,
            'the weights of the input': [f'{path}.data' for path in read],
        },
    )
    for (path,) in reports.values():
        check_writable(path)


def _quantisers(
    args: argparse.Namespace, graph: DenseGraph, images: CalibrationSet
) -> tuple[DenseQuantiser | NncfQuantiser, DenseQuantiser]:
    """Return what makes the file, and what makes the networks with one layer in INT8.

    NNCF goes through all images for every network, so that layers are ranked by ONNX Runtime's quantiser.
    """
    from mmdeploy_ext.quantize.dense import DenseQuantiser
    from mmdeploy_ext.quantize.dense_nncf import NncfQuantiser

    nncf = NncfQuantiser(graph, images) if args.engine == 'openvino' else None
    ranker = DenseQuantiser(graph, args.reduce_range)
    if nncf is None or args.sensitivity or args.max_error is not None:
        ranker.calibrate(images, args.method, args.percentile)
    return nncf or ranker, ranker


def int8_layers(graph: DenseGraph, keep_float: Sequence[str], last: bool) -> list[str]:
    """Return the layers to quantise: none that fits `keep_float`; the last ones only with `last`."""
    kept = set(graph.matching(keep_float)) | (set() if last else set(graph.last))
    layers = [layer.name for layer in graph.layers if layer.name not in kept]
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    return cli.run(run, build_parser(), argv)
