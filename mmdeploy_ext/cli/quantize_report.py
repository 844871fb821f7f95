"""What `quantize.py` says about an INT8 file, and keeps in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.files import write_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import onnx

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.quantize.calibration_sets import CalibrationSet
    from mmdeploy_ext.quantize.dense_layers import DenseGraph
    from mmdeploy_ext.quantize.dense_sensitivity import Exclusion, LayerSensitivity, Probe
    from mmdeploy_ext.quantize.dense_target import Target

WORST = 15
"""Layers that the table shows without --all."""


def facts(
    args: argparse.Namespace,
    metadata: Metadata,
    graph: DenseGraph,
    layers: Sequence[str],
    images: CalibrationSet,
) -> dict[str, Any]:
    """Return what the file and the report say about how it was made."""
    chosen, every = (
        sum(layer.parameters for layer in some) for some in (map(graph.layer, layers), graph.layers)
    )
    quantiser, method = _quantiser(args)
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
        weights_share=round(chosen / every, 4),
        float_layers=[layer.name for layer in graph.layers if layer.name not in set(layers)],
    )


def _quantiser(args: argparse.Namespace) -> tuple[str, str]:
    """Return the quantiser with its version, and how it found ranges."""
    if args.engine == 'openvino':
        from mmdeploy_ext.quantize.dense_nncf import require_nncf

        return f'NNCF {require_nncf().__version__}', "NNCF's own"
    import onnxruntime

    method = args.method if args.method != 'percentile' else f'percentile {args.percentile:g}'
    return f'ONNX Runtime {onnxruntime.__version__}', method


def measure(
    args: argparse.Namespace, target: Target, probe: Probe, network: onnx.ModelProto, images: CalibrationSet
) -> dict[str, Any]:
    """Return sizes, the outputs' errors, and the ratio of times of the first image where it is asked for.

    `network` is the part of the INT8 file whose outputs are compared with the float ones of `probe`.
    """
    from mmdeploy_ext.benchmark.measure import time_files

    sizes = [path.stat().st_size for path in (target.model, target.output)]
    found: dict[str, Any] = dict(
        engine=args.engine,
        float_bytes=sizes[0],
        int8_bytes=sizes[1],
        size_ratio=round(sizes[1] / sizes[0], 4),
        outputs=probe.compare(network),
        time=None,
    )
    if args.rounds:
        batches = list(images.first(1))
        paths = str(target.model), str(target.output)
        found['time'] = time_files(*paths, batches, args.rounds, args.threads, args.engine)
    return found


def show(
    args: argparse.Namespace,
    target: Target,
    facts: dict[str, Any],
    found: dict[str, Any],
    ranked: list[LayerSensitivity],
    exclusion: Exclusion | None,
) -> None:
    """Draw, write the JSON, and print the tables."""
    from mmdeploy_ext.quantize import views

    console = cli.stdout()
    kept = exclusion.kept if exclusion else ()
    if args.draw:
        title = f'{target.model.name}, {facts["images"]} {facts["images_are"]}, ranges by {facts["method"]}'
        views.draw_layers(ranked, kept, args.draw, title)
    if args.json:
        content = dict(model=str(target.model), output=str(target.output), **facts, **found)
        content['outputs'] = found['outputs'].to_json()
        content['sensitivity'] = [one.to_json() for one in ranked]
        content['exclusion'] = exclusion.to_json() if exclusion else None
        write_json(args.json, content)
    if ranked:
        console.print(views.layer_table(ranked, kept, None if args.all else WORST))
    console.print(views.output_table(found['outputs']))
    if exclusion:
        cli.say(console, _exclusion_text(exclusion, args.max_error))
    for line in _lines(target, facts, found):
        cli.say(console, line)


def _lines(target: Target, facts: dict[str, Any], found: dict[str, Any]) -> list[str]:
    from mmdeploy_ext.quantize.views import time_text

    beside = f'; as they were: {", ".join(path.name for path in target.beside)}' if target.beside else ''
    lines = [
        f'{target.shown}: {facts["layers"]} layers in INT8 ({facts["weights_share"]:.1%} of the weights) by '
        f'{facts["quantiser"]}, {len(facts["float_layers"])} stay float; {facts["images"]} '
        f'{facts["images_are"]}, ranges by {facts["method"]}{beside}',
        f'size{f" of {target.output.name}" if beside else ""}: {found["size_ratio"]:.3f} of float32 '
        f'({found["int8_bytes"]:,} of {found["float_bytes"]:,} B)',
    ]
    if found['time']:
        lines.append(time_text(found['time']))
    lines.append(
        'NOT PROVEN by these figures: evaluate it (docs/int8-images.md, "The metric before and after")'
    )
    return lines


def _exclusion_text(exclusion: Exclusion, bar: float) -> str:
    first, last = exclusion.errors[0], exclusion.errors[-1]
    text = f'error of the worst output: {first:.4g}'
    if exclusion.kept:
        text += f' -> {last:.4g} by keeping float: {", ".join(exclusion.kept)}'
    if exclusion.reached:
        return f'{text}; within --max-error {bar:g}'
    return f'{text}; --max-error {bar:g} is NOT reached: raise --budget, or see --method and --images'
