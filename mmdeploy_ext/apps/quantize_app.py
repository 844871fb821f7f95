"""`quantize.py`: an INT8 file of a float one, calibrated on images, and what that costs and gains."""

from __future__ import annotations

import argparse
import importlib.util
import math
from typing import TYPE_CHECKING

from mmdeploy_ext.apps.quantize_report import WORST
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError, after_weights
from mmdeploy_ext.engines.registry import QUANTISED
from mmdeploy_ext.quantize import DENSE_METHODS, PERCENTILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.quantize.dense import DenseQuantiser
    from mmdeploy_ext.quantize.dense_layers import DenseGraph
    from mmdeploy_ext.quantize.dense_nncf import NncfQuantiser
    from mmdeploy_ext.quantize.dense_sensitivity import Exclusion, LayerSensitivity, Probe
    from mmdeploy_ext.quantize.dense_target import Target
    from mmdeploy_ext.quantize.images import CalibrationSet

BUDGET = 10


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Quantise an ONNX file of this project to INT8 (uint8 activations, int8 weights per '
        'channel, Q/DQ) and say what it costs: size, time, outputs, layer by layer where asked for.'
    )
    parser.add_argument(
        'model',
        help='float32 ONNX file written by tools/deployment/pytorch2onnx.py, or the folder of a model of '
        'several graphs, one of which is quantised: of cameras the image backbone, of LiDAR sweeps the one '
        'behind the points, of both that of the frame; the others are copied unchanged',
    )
    cli.writes(
        parser.add_argument(
            '--output',
            metavar='F',
            help='file to write (default: MODEL with .int8.onnx), of a folder a folder (default: MODEL.int8)',
        )
    )
    parser.add_argument(
        '--engine',
        choices=QUANTISED,
        default=QUANTISED[0],
        help="whose quantiser: ONNX Runtime's own, or NNCF for OpenVINO (default: onnxruntime); outputs and "
        'times are then of that engine',
    )
    _add_calibration(parser.add_argument_group('calibration'))
    _add_layers(parser.add_argument_group('layers'))
    _add_report(parser.add_argument_group('report'))
    cli.add_debug_option(parser)
    return parser


def _add_calibration(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--calibrate',
        required=True,
        metavar='IMAGES|DATASET',
        help="folder of images, one image, or annotations in COCO's format (.json); of several cameras "
        'infos (.pkl) or a folder with one folder per camera; of LiDAR sweeps (.bin) or infos',
    )
    group.add_argument(
        '--data-root',
        metavar='DIR',
        help='where the images of annotations or infos are (default: beside them)',
    )
    group.add_argument(
        '--images',
        type=int,
        default=100,
        metavar='N',
        help='images or frames, evenly; 0 takes all (default: 100)',
    )
    group.add_argument(
        '--method',
        choices=DENSE_METHODS,
        default=DENSE_METHODS[0],
        help='range of activations: least and largest value, or clipped by a histogram (default: minmax); '
        'NNCF has its own',
    )
    group.add_argument(
        '--percentile',
        type=float,
        metavar='P',
        help=f'for --method percentile (default: {PERCENTILE})',
    )
    group.add_argument('--reduce-range', action='store_true', help='7-bit weights, for CPUs without VNNI')


def _add_layers(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--keep-float',
        nargs='+',
        default=[],
        metavar='PATTERN',
        help="layers that stay float, by name ('*', '?'), e.g. '*bbox_head*'; besides the last ones",
    )
    group.add_argument(
        '--int8-last',
        action='store_true',
        help='quantise also the last layers (those that give logits, deltas, kernels, masks); a backbone has '
        'none of these, and all its layers are quantised',
    )
    group.add_argument(
        '--sensitivity', action='store_true', help='quantise one layer at a time and say what each does'
    )
    group.add_argument(
        '--max-error',
        type=float,
        metavar='E',
        help='keep the most sensitive layers float until no output of the network has a larger error (norm '
        'of the difference over the norm); exit status 1 when that is not reached',
    )
    group.add_argument(
        '--budget',
        type=int,
        default=BUDGET,
        metavar='N',
        help=f'layers that --max-error may keep float at most (default: {BUDGET})',
    )
    group.add_argument(
        '--probe-images',
        type=int,
        default=4,
        metavar='N',
        help='images that outputs are compared on (default: 4)',
    )


def _add_report(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--rounds', type=int, default=10, metavar='N', help='of the time ratio; 0 measures none (default: 10)'
    )
    group.add_argument(
        '--threads',
        type=int,
        default=0,
        metavar='N',
        help="within an operator (default: the engine's choice)",
    )
    group.add_argument('--all', action='store_true', help=f'show all layers, not only the {WORST} worst')
    cli.writes(
        group.add_argument(
            '--draw', metavar='PNG', help='draw the layers (with --sensitivity or --max-error)'
        )
    )
    group.add_argument('--json', metavar='FILE', help='write what was found as JSON')


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
    """Quantise.

    Returns:
        0 done, 1 when `--max-error` was not reached within `--budget`.
    """
    from mmdeploy_ext.apps import quantize_report
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.graph.io import files
    from mmdeploy_ext.quantize.calibrators import calibrator
    from mmdeploy_ext.quantize.cameras import calibration_set
    from mmdeploy_ext.quantize.dense import check_weights, finished, layers_in_int8, record
    from mmdeploy_ext.quantize.dense_layers import DenseGraph
    from mmdeploy_ext.quantize.dense_sensitivity import Probe
    from mmdeploy_ext.quantize.dense_target import find_target

    _check_numbers(args)
    args.percentile = PERCENTILE if args.percentile is None else args.percentile
    calibrator('percentile', args.percentile)
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
        result = finished(graph, network, facts)
        record(result, quantiser, layers)
        target.save(result)
        found = quantize_report.measure(args, target, probe, network, images)
        quantize_report.show(args, target, facts, found, ranked, exclusion)
    return 1 if exclusion and not exclusion.reached else 0


def _check_reports(args: argparse.Namespace, target: Target) -> None:
    """Refuse a picture or report that would replace what is read or made, or cannot be written."""
    from mmdeploy_ext.core.files import check_outputs, check_writable

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
    """Return the layers to quantise.

    Args:
        graph: the float graph.
        keep_float: patterns of layers that stay float.
        last: quantise also the last layers.

    Raises:
        UsageError: a pattern fits no layer, or nothing is left.
    """
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
