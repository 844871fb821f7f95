"""Plug-ins of TensorRT in numpy: those of BEVFormer's deployments, and EfficientNMS_TRT; an engine for them.

Source: DerryHub/BEVFormer_tensorrt 303d314, TensorRT/plugin/{rotate,multi_scale_deformable_attn} (float32
kernels; behaviour in own words), and the copies of autoware_universe, autoware_tensorrt_bevformer c1fe1b8;
NVIDIA/TensorRT, plugin/efficientNMSPlugin.

Glossary: B batch, S values of all maps, M heads, D channels of a head, L maps, Q queries, P points per map, Z
reference points of a query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.engines.base import Backend
from mmdeploy_ext.util.errors import EngineError, InferenceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROTATE, ATTENTION = 'RotateTRT', 'MultiScaleDeformableAttnTRT'
"""Names of the plug-ins, version 1, without a name space."""
NMS = 'EfficientNMS_TRT'
PLAIN = dict(background_class=-1, score_activation=0, box_coding=0)
DENSE, MOST_PAIRS = 0.007, 4096
"""Of EfficientNMS_TRT: the least threshold that filters scores, and the pairs of box and class that enter."""
NEAREST = 1
"""RotateTRT's `interpolation` of BEVFormer; 0 is bilinear."""
ENGINE, PROVIDERS = 'OnnxRuntimeBackend', ('CPUExecutionProvider',)
"""Engine and providers between the plug-ins."""


def rotate(
    image: np.ndarray, angle: np.ndarray, center: np.ndarray, interpolation: int = NEAREST
) -> np.ndarray:
    """Return a picture (C, H, W) float32 turned about a point; 0 without a source.

    Args:
        image: (C, H, W) float32.
        angle: () degrees, counter-clockwise with row 0 on top, as in torchvision.
        center: (2,) x, y in pixels; (0.5, 0.5) is the middle of the first one.
        interpolation: `NEAREST`, else bilinear. Between two pixels `NEAREST` takes the one further from 0,
            torchvision the even one.
    """
    height, width = image.shape[1:]
    radians = np.float32(-float(angle) * np.pi / 180)
    cosine, sine = np.cos(radians), np.sin(radians)
    half = np.float32([width, height]) * np.float32(0.5)
    x0, y0 = center.astype(np.float32) - half
    x = np.arange(width, dtype=np.float32) - half[0] + np.float32(0.5)
    y = (np.arange(height, dtype=np.float32) - half[1] + np.float32(0.5))[:, None]
    shares = (
        (cosine * x + sine * y + (-x0 * cosine - y0 * sine + x0)) / half[0],
        (-sine * x + cosine * y + (x0 * sine - y0 * cosine + y0)) / half[1],
    )
    places = [((share + 1) * size - 1) / 2 for share, size in zip(shares, (width, height), strict=True)]
    if interpolation != NEAREST:
        return bilinear(image.transpose(1, 2, 0), np.stack(places, -1)).transpose(2, 0, 1)
    cells, is_inside = [], True
    for place, size in zip(places, (width, height), strict=True):
        cell = np.trunc(place + np.copysign(np.float32(0.5), place)).astype(np.int64)
        is_inside = is_inside & (cell >= 0) & (cell < size)
        cells.append(cell.clip(0, size - 1))
    return image[:, cells[1], cells[0]] * is_inside


def attend(
    value: np.ndarray, shapes: np.ndarray, references: np.ndarray, offsets: np.ndarray, logits: np.ndarray
) -> np.ndarray:
    """Return the weighted samples of all maps, summed (B, Q, M, D) float32; places outside of a map are 0.

    Args:
        value: (B, S, M, D) float32, map by map, row by row.
        shapes: (L, 2) int64, rows and columns. Autoware's float kernel gets a null pointer for int32;
            TensorRT before version 10 narrows int64 itself.
        references: (B, Q, 1, 2 Z), x and y in shares of a map.
        offsets: (B, Q, M, L P 2), x and y in pixels; point p is around reference p mod Z.
        logits: (B, Q, M, L P), before the softmax over the points of all maps.
    """
    if shapes.dtype != np.int64:
        raise InferenceError(
            f'{ATTENTION}: spatial_shapes are {shapes.dtype}, but the plug-in needs int64; export it again'
        )
    batch, queries, heads, _ = logits.shape
    anchors = references.shape[-1] // 2
    offsets = offsets.reshape(batch, queries, heads, len(shapes), -1, anchors, 2)
    places = references.reshape(batch, queries, 1, 1, anchors, 2)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights = (weights / weights.sum(-1, keepdims=True)).reshape(batch, queries, heads, len(shapes), -1)
    result = np.zeros((batch, queries, *value.shape[2:]), np.float32)
    begin = 0
    for level, (height, width) in enumerate(shapes.tolist()):
        values = value[:, begin : begin + height * width]
        begin += height * width
        size = np.float32([width, height])
        pixels = (places + offsets[:, :, :, level] / size) * size - np.float32(0.5)
        pixels = pixels.reshape(batch, queries, heads, -1, 2)
        for row in range(batch):
            for head in range(heads):
                maps = values[row, :, head].reshape(height, width, -1)
                sampled = bilinear(maps, pixels[row, :, head])
                result[row, :, head] += (weights[row, :, head, level, :, None] * sampled).sum(1)
    return result


def bilinear(values: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return values (H, W, C) at places (a, b, 2), x and y from the middle of the first pixel; 0 outside."""
    height, width = values.shape[:2]
    low = np.floor(pixels)
    share = pixels - low
    total = np.zeros((*pixels.shape[:2], values.shape[2]), np.float32)
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = low[..., 0] + dx, low[..., 1] + dy
            is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            weight = np.where(dx, share[..., 0], 1 - share[..., 0])
            weight = weight * np.where(dy, share[..., 1], 1 - share[..., 1]) * is_inside
            column, row = (np.where(is_inside, axis, 0).astype(np.int64) for axis in (x, y))
            total += values[row, column] * weight[..., None]
    return total


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


KERNELS = {ROTATE: rotate, ATTENTION: attend, NMS: suppress}
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

        from mmdeploy_ext.graph.custom_steps import SteppedModel

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
