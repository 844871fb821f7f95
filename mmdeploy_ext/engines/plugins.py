"""Plug-ins of TensorRT on a CPU: EfficientNMS_TRT in numpy, and the engine that runs files with plug-ins.

Source: NVIDIA/TensorRT, plugin/efficientNMSPlugin (behaviour in own words).
Glossary: B batch, N boxes, C classes, K results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.base.errors import EngineError, InferenceError
from mmdeploy_ext.engines.base import Backend
from mmdeploy_ext.spec.metadata import read_metadata

NMS = 'EfficientNMS_TRT'
PLAIN = dict(background_class=-1, score_activation=0, box_coding=0)
DENSE, MOST_PAIRS = 0.007, 4096
"""Of EfficientNMS_TRT: the least threshold that filters scores, and the pairs of box and class that enter."""
ENGINE, PROVIDERS = 'OnnxRuntimeBackend', ('CPUExecutionProvider',)
"""Engine and providers between the plug-ins."""


def suppress(
    bboxes: np.ndarray,
    scores: np.ndarray,
    score_threshold: float,
    iou_threshold: float,
    max_output_boxes: int,
    class_agnostic: int,
    **settings: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return EfficientNMS_TRT's counts (B, 1), boxes (B, K, 4), scores and classes (B, K) of boxes (B, N, 4).

    Args:
        bboxes: (B, N, 4) float32 corners.
        scores: (B, N, C) float32.
        score_threshold: of at least `DENSE`, below which the plug-in counts boxes without a score.
        iou_threshold: this overlap or a larger one suppresses.
        max_output_boxes: K.
        class_agnostic: whether boxes suppress boxes of other classes.
        settings: background_class -1, score_activation 0, box_coding 0; others are not written here.
    """
    if settings != PLAIN or score_threshold < DENSE:
        raise InferenceError(
            f'{NMS}: {settings} with score_threshold={score_threshold} are not supported here'
        )
    images = len(bboxes)
    counts, found = np.zeros((images, 1), np.int32), np.zeros((images, max_output_boxes, 4), np.float32)
    best, classes = np.zeros(found.shape[:2], np.float32), np.zeros(found.shape[:2], np.int32)
    for image, (boxes, rows) in enumerate(zip(bboxes, scores, strict=True)):
        kept: list[tuple[int, int]] = []
        pairs = np.argwhere(rows >= np.float32(score_threshold))
        for box, label in pairs[np.argsort(-rows[tuple(pairs.T)], kind='stable')][:MOST_PAIRS]:
            rivals = [row for row, other in kept if class_agnostic or other == label]
            if (
                len(kept) < max_output_boxes
                and not (overlaps(boxes[box], boxes[rivals]) >= iou_threshold).any()
            ):
                kept.append((box, label))
        rows_kept, labels = np.array(kept, int).reshape(-1, 2).T
        counts[image], count = len(kept), len(kept)
        found[image, :count], best[image, :count] = boxes[rows_kept], rows[rows_kept, labels]
        classes[image, :count] = labels
    return counts, found, best, classes


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (n,) of a box (4,) with others (n, 4); 0 without a common area."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = sides.clip(0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return np.divide(shared, areas - shared, out=np.zeros_like(shared), where=shared > 0)


KERNELS = {NMS: suppress}
"""Plug-in -> function of its node's inputs and attributes."""
DTYPES = {NMS: ('int32', 'float32', 'float32', 'int32')}
"""Plug-in -> dtypes of its outputs, if they are not float32 alone."""


class PluginBackend(Backend):
    """A file with plug-ins in numpy, and ONNX Runtime between them; `kernels`: plug-in -> function."""

    engine = 'ONNX Runtime, plug-ins in numpy'

    def __init__(
        self,
        path: str,
        threads: int = 0,
        graph_optimization: str = 'all',
        kernels: Mapping[str, Any] = KERNELS,
    ) -> None:
        self.path, self.threads, self.graph_optimization = path, threads, graph_optimization
        self.kernels = kernels

    def activate(self) -> None:
        import onnx

        from mmdeploy_ext.graphs.custom_steps import SteppedModel

        self.metadata = read_metadata(self.path)
        self.spec = self.metadata.spec
        settings = dict(optimization=self.graph_optimization, threads=self.threads)
        self.model = SteppedModel(onnx.load(self.path), self.kernels, dtypes=DTYPES, **settings)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.model.run(feeds)


def open_with_plugins(
    engine: str,
    path: str,
    threads: int = 0,
    graph_optimization: str = 'all',
    providers: Sequence[str] = PROVIDERS,
    kernels: Mapping[str, Any] = KERNELS,
    **settings: Any,
) -> PluginBackend:
    """Return the inactive engine of a file with plug-ins."""
    if engine != ENGINE or tuple(providers) != PROVIDERS:
        raise EngineError(
            f'{path}: has plug-ins of TensorRT, which run here in numpy and need {ENGINE} on the CPU for '
            'the rest: choose that engine'
        )
    return PluginBackend(path, threads, graph_optimization, kernels)
