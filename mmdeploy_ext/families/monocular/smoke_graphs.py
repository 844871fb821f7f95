"""The graph of SMOKE: scores and values of boxes in cells, peaks, boxes of the peaks.

Source: mmdet3d 1.0.0rc6, models/dense_heads/smoke_mono3d_head.py `get_bboxes`,
core/bbox/coders/smoke_bbox_coder.py.
Glossary: B batch, C classes, K peaks, n results of the fullest picture, H, W network input in pixels, h, w
size of the maps.
"""

import torch
from torch import nn

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.suppression import gather_rows, rows_of
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.common.image_graphs import image_input
from mmdeploy_ext.families.common.suppression3d import result_specs
from mmdeploy_ext.families.monocular.facts import SmokeFacts
from mmdeploy_ext.families.monocular.graphs import BOX, camera_input
from mmdeploy_ext.families.monocular.networks import SMOKE_NAMES, PeaksNetwork
from mmdeploy_ext.families.monocular.runtime import decoding
from mmdeploy_ext.runtime.box_coders import peaks_of
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec
from mmdeploy_ext.upstream.operators.operator import hw

FULL_NAMES = ('boxes', 'scores', 'labels')
PEAKS, WINDOW, SCORE_THR = 100, 3, 0.25
"""Number of peaks, side of a peak's square, exclusive score threshold."""
STRIDE = 4
"""Pixels of a cell: the `down_ratio` of the test pipeline."""


def facts_of(model: nn.Module) -> SmokeFacts:
    head, coder = model.bbox_head, model.bbox_head.bbox_coder
    return SmokeFacts(
        num_classes=int(head.num_classes),
        code_size=int(head.bbox_code_size),
        base_depth=[float(value) for value in coder.base_depth],
        base_dims=[[float(value) for value in sizes] for sizes in coder.base_dims],
        window=WINDOW,
        max_per_img=PEAKS,
        score_thr=SCORE_THR,
    )


def smallest(model: nn.Module) -> int:
    """Return the smallest side of an input, pixels; `spec` also asks for a multiple of 32."""
    classes = int(model.bbox_head.num_classes)
    cells = next(side for side in range(1, PEAKS + 1) if side * side * classes >= PEAKS)
    return cells * STRIDE


def spec(model: nn.Module, options: Options) -> GraphSpec:
    image = image_input(options, smallest(model), 32)
    batch, classes = image.axes[0], int(model.bbox_head.num_classes)
    if options.form == 'raw':
        size = ('h', 'w')
        if not options.dynamic:
            (size,) = detector_parts.map_sizes(
                model, lambda detector, pictures: detector.extract_feat(pictures), 1, options
            )
        values = 'offset of the depth, of the centre (cells), logarithms of sizes, sine and cosine'
        outputs = (
            TensorSpec('heat', 'float32', (batch, classes, *size), 'scores of centres, 0..1'),
            TensorSpec('bbox_pred', 'float32', (batch, 8, *size), values),
        )
        return GraphSpec('smoke/raw', (image,), outputs)
    inputs, outputs = (image, camera_input(batch)), result_specs(batch, 7, BOX)
    return GraphSpec('smoke/full', inputs, outputs)


def stages(model: nn.Module, options: Options) -> list[Stage]:
    chain = [Stage('network', PeaksNetwork(model), ('input',), SMOKE_NAMES)]
    if options.form == 'full':
        inputs = ('input', 'cam2img', *SMOKE_NAMES)
        chain.append(Stage('postprocess', SmokeFullForm(model), inputs, FULL_NAMES))
    return chain


class SmokeFullForm(nn.Module):
    """The form 'full'."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.facts = facts_of(model)

    def forward(
        self, image: torch.Tensor, cam2img: torch.Tensor, heat: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return boxes (B, n, 7), scores and labels (B, n), best first; padding is zero, label -1.

        Boxes are x y z of the middle of the bottom, length, height, width, m, yaw, rad, in the camera's
        frame.

        Args:
            image: (B, 3, H, W); only its size is used.
            cam2img: (B, 4, 4), pixels of the network input.
            heat: (B, C, h, w) scores 0..1 of all cells.
            values: (B, 8, h, w), see `decoding.smoke_boxes`.
        """
        peaks = peaks_of(torch, heat, self.facts.window)
        scores, indices = peaks.flatten(1).topk(self.facts.max_per_img, 1)
        size = hw(heat)
        height, width = size.unbind()
        cells = height * width
        labels, cell = torch.div(indices, cells, rounding_mode='floor'), indices % cells
        places = torch.stack([cell % width, torch.div(cell, width, rounding_mode='floor')], 2).to(values)
        stride = (hw(image).to(values) / size.to(values)).flip(0)
        rows = gather_rows(rows_of(values, values.shape[1]), cell)
        boxes = decoding.smoke_boxes(torch, rows, places, labels, cam2img, stride, self.facts)
        present = scores > self.facts.score_thr
        count = present.sum(1).max()
        boxes, scores, labels, present = (part[:, :count] for part in (boxes, scores, labels, present))
        results = (
            torch.where(present[..., None], boxes, torch.zeros_like(boxes)),
            torch.where(present, scores, torch.zeros_like(scores)),
            torch.where(present, labels, torch.full_like(labels, -1)),
        )
        return tuple(tap(name, tensor) for name, tensor in zip(FULL_NAMES, results, strict=True))
