"""FlashOcc's graph of plain operators.

Glossary: C channels, X, Y, Z voxels along x, y, z of the key ego frame, K classes.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from mm2onnx_driving.common.lift_graphs import (
    LiftFrame,
    frame_inputs,
    lift_facts,
    lift_graphs,
    view_axes,
)
from mm2onnx_driving.flashocc.instances import CENTER_MAPS, CenterFacts, FlashOccFacts
from mm2onnx_driving.flashocc.runtime import FORM, LABELS, LOGITS
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

HEAD = 'aux_centerness_head'
"""Part of models that give instances."""
MEANINGS = dict(
    reg=('place of a centre in its cell, x, y', 'cell'),
    height=('z of the centre', 'm'),
    heatmap=('classes of centres', 'logit'),
)
LOGIT = ColumnGroup(unit='logit', rtol=0.0, atol=5e-4)


class OccupancyFrame(LiftFrame):
    """One frame: images and poses to logits (1, X, Y, Z, K), classes (X, Y, Z), and maps of centres."""

    def forward(self, img: Tensor, sensor2keyego: Tensor, intrinsics: Tensor) -> tuple[Tensor, ...]:
        view = self.encoded(self.view_of(img, sensor2keyego, intrinsics))
        logits = self.model.occ_head(view)
        labels = logits[0].argmax(-1).byte()  # softmax keeps the order
        if (centers := centers_of(self.model)) is None:
            return logits, labels
        shared = centers.shared_conv(view)
        return logits, labels, *(branch(shared) for branch in center_branches(centers))


def centers_of(model: nn.Module) -> nn.Module | None:
    """Return the head of centres."""
    return getattr(model, HEAD, None)


def center_branches(centers: nn.Module) -> list[nn.Module]:
    return [getattr(centers.task_heads[0], name) for name in CENTER_MAPS]


def output_specs(model: nn.Module) -> tuple[TensorSpec, TensorSpec]:
    """Return the contracts of logits and classes."""
    (_, rows, columns), head = view_axes(model), model.occ_head
    voxels, meaning = (columns, rows, head.Dz), 'class logits of voxels along x, y, z'
    logits = TensorSpec(LOGITS, 'float32', (1, *voxels, head.num_classes), meaning, 'logit', (LOGIT,))
    return logits, TensorSpec(LABELS, 'uint8', voxels, 'class of each voxel', compare='detections')


def center_specs(model: nn.Module) -> Iterator[TensorSpec]:
    """Yield the contracts of the maps of centres."""
    centers, axes = centers_of(model), view_axes(model)[1:]
    channels = (2, 1, centers.num_classes[0]) if centers is not None else ()
    for (name, (meaning, unit)), count in zip(MEANINGS.items(), channels, strict=False):
        group = ColumnGroup(unit=unit, rtol=0.0, atol=LOGIT.atol)
        yield TensorSpec(name, 'float32', (1, count, *axes), meaning, unit, (group,))


def facts_of(model: nn.Module) -> FlashOccFacts:
    if (head := centers_of(model)) is None:
        return FlashOccFacts(**lift_facts(model))
    coder = head.bbox_coder
    centers = CenterFacts(
        pc_origin=tuple(map(float, coder.pc_range[:2])),
        voxel_size=tuple(map(float, coder.voxel_size[:2])),
        out_size_factor=int(coder.out_size_factor),
        max_num=int(coder.max_num),
        score_threshold=float(coder.score_threshold),
        post_center_range=tuple(map(float, coder.post_center_range)),
        voxel_low=tuple(model.st.tolist()),
        voxel_step=tuple(model.sx.tolist()),
    )
    return FlashOccFacts(**lift_facts(model), centers=centers)


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    outputs = (*output_specs(model), *center_specs(model))
    spec = GraphSpec('flashocc/portable', tuple(frame_inputs(model)), outputs)
    return lift_graphs(model, options, FORM, OccupancyFrame(model), spec)
