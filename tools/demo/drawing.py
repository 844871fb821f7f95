"""Shared by the tools that draw boxes in 3D: both engines, their options, pictures and films."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.api import ModelRequest
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.engines.registry import BASELINE, DEFAULT, title_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    import numpy as np

    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.spec.results import Pair

ENGINES = {'torch': title_of(BASELINE), 'onnx': DEFAULT.title}
"""Value of --engine, but for 'both' -> title."""


def add_options(parser: argparse.ArgumentParser, engine: str | None, engine_text: str) -> None:
    """Add --engine, --score-thr, --cfg-options and --threads."""
    add = cli.adder(parser)
    add('--engine', f'engine to run (default: {engine_text})', engine, choices=(*ENGINES, 'both'))
    add('--score-thr S', 'draw boxes of at least this score, 0..1 (default: %(default)s)', 0.3)
    cli.add_fields(parser, ModelRequest, 'cfg_options')
    add('--threads N', 'threads of ONNX Runtime', 0)


def check_options(args: argparse.Namespace) -> None:
    """Raise UsageError for `args.score_thr` outside of 0..1, or `args.threads` below 0."""
    if not 0 <= args.score_thr <= 1:
        raise UsageError(f'--score-thr {args.score_thr}: expected a value in 0..1')
    cli.check_minimums(args, threads=0)


def draw_boxes(
    pair: Pair, detections: Mapping[str, Detections3D], classes: Sequence[str], score_thr: float
) -> np.ndarray:
    """Pictures of a sample in one, (h, w, 3) uint8 BGR, with the boxes of one or both engines."""
    from mmdeploy_ext.runtime.bird_eye import BoxLayer
    from mmdeploy_ext.runtime.tasks import bbox3d

    if len(detections) == 2:
        return bbox3d.draw_pair(pair, classes, score_thr)
    layers = [BoxLayer(ENGINES[name], boxes.above(score_thr)) for name, boxes in detections.items()]
    return bbox3d.draw_layers(pair, layers, classes)
