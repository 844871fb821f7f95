"""`quantize.py`: an INT8 file of a float one, calibrated on images, and what that costs and gains."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext import cli
from mmdeploy_ext.errors import UsageError, after_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.metadata import Metadata
    from mmdeploy_ext.quantize.dense import DenseQuantiser
    from mmdeploy_ext.quantize.dense_layers import DenseGraph
    from mmdeploy_ext.quantize.dense_sensitivity import Exclusion, LayerHarm, Probe
    from mmdeploy_ext.quantize.images import CalibrationImages

METHODS = ('minmax', 'percentile', 'mse')
BUDGET = 10
WORST = 15


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Quantise an ONNX file of this project to INT8 (uint8 activations, int8 weights per '
        'channel, Q/DQ) and say what it costs: size, time, outputs, layer by layer where asked for.'
    )
    parser.add_argument('model', help='float32 ONNX file written by tools/deployment/pytorch2onnx.py')
    parser.add_argument('--output', metavar='F', help='file to write (default: MODEL with .int8.onnx)')
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
        help="folder of images, one image, or annotations in COCO's format (.json)",
    )
    group.add_argument(
        '--data-root', metavar='DIR', help='where the images of annotations are (default: beside them)'
    )
    group.add_argument(
        '--images', type=int, default=100, metavar='N', help='images, evenly; 0 takes all (default: 100)'
    )
    group.add_argument(
        '--method',
        choices=METHODS,
        default='minmax',
        help='range of activations: least and largest value, or clipped by a histogram (default: minmax)',
    )
    group.add_argument(
        '--percentile',
        type=float,
        default=99.99,
        metavar='P',
        help='for --method percentile (default: 99.99)',
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
        help='quantise also the last layers (those that give logits, deltas, kernels, masks)',
    )
    group.add_argument(
        '--sensitivity', action='store_true', help='quantise one layer at a time and say what each does'
    )
    group.add_argument(
        '--max-error',
        type=float,
        metavar='E',
        help='keep the most harmful layers float until no output of the network has a larger error (norm of '
        'the difference over the norm); exit status 1 when that is not reached',
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
        help="within an operator (default: ONNX Runtime's choice)",
    )
    group.add_argument('--all', action='store_true', help=f'show all layers, not only the {WORST} worst')
    group.add_argument('--draw', metavar='PNG', help='draw the layers (with --sensitivity or --max-error)')
    group.add_argument('--json', metavar='FILE', help='write what was found as JSON')


def _check_numbers(args: argparse.Namespace) -> None:
    for option, least in (('images', 0), ('budget', 0), ('rounds', 0), ('threads', 0), ('probe_images', 1)):
        value = getattr(args, option)
        if value < least:
            raise UsageError(f'--{option.replace("_", "-")} {value}: expected {least} or more')
    if args.max_error is not None and args.max_error <= 0:
        raise UsageError(f'--max-error {args.max_error}: expected a positive number, e.g. 0.05')
    if args.rounds and importlib.util.find_spec('torch') is None:
        raise UsageError('--rounds: the benchmark needs PyTorch, which is not here; give --rounds 0')
    if args.draw and not (args.sensitivity or args.max_error is not None):
        raise UsageError('--draw shows what --sensitivity or --max-error finds: give one of them too')


def _targets(args: argparse.Namespace) -> str:
    """Return the file to write, after a look at whether everything asked for can be written."""
    from mmdeploy_ext.files import check_writable
    from mmdeploy_ext.graph.files import check_targets

    output = args.output or str(Path(args.model).with_suffix('.int8.onnx'))
    check_targets([output], [args.model])
    for path in filter(None, (args.draw, args.json)):
        check_writable(path)
    return output


def run(args: argparse.Namespace) -> int:
    """Quantise.

    Returns:
        0 done, 1 when `--max-error` was not reached.
    """
    from mmdeploy_ext.graph import files
    from mmdeploy_ext.metadata import Metadata
    from mmdeploy_ext.quantize.calibrators import calibrator
    from mmdeploy_ext.quantize.dense import DenseQuantiser
    from mmdeploy_ext.quantize.dense_layers import DenseGraph
    from mmdeploy_ext.quantize.dense_sensitivity import Probe
    from mmdeploy_ext.quantize.images import CalibrationImages, evenly, image_files

    _check_numbers(args)
    calibrator('percentile', args.percentile)
    model = files.load(args.model)
    metadata = Metadata.from_props({entry.key: entry.value for entry in model.metadata_props}, args.model)
    output = _targets(args)
    paths = evenly(image_files(args.calibrate, args.data_root), args.images)
    images = CalibrationImages(metadata, paths)
    graph = DenseGraph(model, args.model)
    layers = int8_layers(graph, args.keep_float, args.int8_last)
    with after_weights():
        quantiser = DenseQuantiser(graph, args.reduce_range)
        quantiser.calibrate(images, args.method, args.percentile, progress=True)
        probe = Probe(graph, images.first(args.probe_images), args.threads)
        ranked, exclusion = _harm(args, quantiser, probe, layers)
        kept = exclusion.kept if exclusion else ()
        layers = [name for name in layers if name not in kept]
        facts = _facts(args, metadata, graph, layers, len(paths))
        files.save(quantiser.whole(layers, facts), output, inputs=[args.model])
        found = _measure(args, output, probe, quantiser, layers, images)
        _show(args, output, facts, found, ranked, exclusion)
    return 1 if exclusion and not exclusion.reached else 0


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


def _harm(
    args: argparse.Namespace, quantiser: DenseQuantiser, probe: Probe, layers: Sequence[str]
) -> tuple[list[LayerHarm], Exclusion | None]:
    from mmdeploy_ext.quantize import dense_sensitivity

    if not args.sensitivity and args.max_error is None:
        return [], None
    ranked = dense_sensitivity.rank(quantiser, probe, layers, progress=True)
    if args.max_error is None:
        return ranked, None
    return ranked, dense_sensitivity.exclude(
        quantiser, probe, ranked, args.max_error, args.budget, progress=True
    )


def _facts(
    args: argparse.Namespace, metadata: Metadata, graph: DenseGraph, layers: Sequence[str], images: int
) -> dict[str, Any]:
    """Return what the file and the report say about how it was made."""
    import onnxruntime

    from mmdeploy_ext.quantize.dense_layers import parameters

    chosen = [graph.layer(name) for name in layers]
    return dict(
        family=metadata.family,
        form=metadata.form,
        activations='uint8',
        weights='int8 per channel' + (' (7 bits)' if args.reduce_range else ''),
        method=args.method if args.method != 'percentile' else f'percentile {args.percentile:g}',
        images=images,
        source=Path(args.calibrate).name,
        layers=len(layers),
        weights_share=round(parameters(chosen) / parameters(graph.layers), 4),
        float_layers=[layer.name for layer in graph.layers if layer.name not in set(layers)],
        onnxruntime=onnxruntime.__version__,
    )


def _measure(
    args: argparse.Namespace,
    output: str,
    probe: Probe,
    quantiser: DenseQuantiser,
    layers: Sequence[str],
    images: CalibrationImages,
) -> dict[str, Any]:
    from mmdeploy_ext.quantize.dense_time import time_ratio

    sizes = [Path(path).stat().st_size for path in (args.model, output)]
    found: dict[str, Any] = dict(
        float_bytes=sizes[0],
        int8_bytes=sizes[1],
        size_ratio=round(sizes[1] / sizes[0], 4),
        outputs=probe.compare(quantiser.network(layers)),
        time=None,
    )
    if args.rounds:
        found['time'] = time_ratio(args.model, output, list(images.first(1)), args.rounds, args.threads)
    return found


def _show(
    args: argparse.Namespace,
    output: str,
    facts: dict[str, Any],
    found: dict[str, Any],
    ranked: list[LayerHarm],
    exclusion: Exclusion | None,
) -> None:
    from mmdeploy_ext.files import write_json
    from mmdeploy_ext.quantize import dense_views

    console = cli.stdout()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    kept = exclusion.kept if exclusion else ()
    if ranked:
        console.print(dense_views.layer_table(ranked, kept, None if args.all else WORST))
    console.print(dense_views.output_table(found['outputs']))
    if exclusion:
        say(_exclusion_text(exclusion, args.max_error))
    say(
        f'{output}: {facts["layers"]} layers in INT8 ({facts["weights_share"]:.1%} of the weights), '
        f'{len(facts["float_layers"])} stay float; {facts["images"]} images, ranges by {facts["method"]}'
    )
    say(f'size: {found["size_ratio"]:.3f} of float32 ({found["int8_bytes"]:,} of {found["float_bytes"]:,} B)')
    if found['time']:
        say(dense_views.time_text(found['time']))
    say('NOT PROVEN by these figures: evaluate it (docs/int8-images.md, "The metric before and after")')
    if args.draw:
        title = f'{Path(args.model).name}, {facts["images"]} images, ranges by {facts["method"]}'
        dense_views.draw(ranked, kept, args.draw, title)
    if args.json:
        content = dict(model=args.model, output=output, **facts, **found)
        content['outputs'] = found['outputs'].to_json()
        content['sensitivity'] = [harm.to_json() for harm in ranked]
        content['exclusion'] = exclusion.to_json() if exclusion else None
        write_json(args.json, content)


def _exclusion_text(exclusion: Exclusion, bar: float) -> str:
    first, last = exclusion.errors[0], exclusion.errors[-1]
    text = f'error of the worst output: {first:.4g}'
    if exclusion.kept:
        text += f' -> {last:.4g} by keeping float: {", ".join(exclusion.kept)}'
    if exclusion.reached:
        return f'{text}; within --max-error {bar:g}'
    return f'{text}; --max-error {bar:g} is NOT reached: raise --budget, or see --method and --images'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    return cli.run(run, build_parser(), argv)
