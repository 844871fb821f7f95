"""The family of FlashOcc: claimed and refused configs, and the models."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mm2onnx_driving.common.camera import is_one_of
from mm2onnx_driving.common.camera_reference import array
from mm2onnx_driving.common.lift import (
    EXPECTED,
    LiftFamily,
    LiftFrame,
    LiftReference,
    frame_inputs,
    lift_facts,
    lift_graphs,
    view_axes,
)
from mm2onnx_driving.flashocc.runtime import (
    CENTER_MAPS,
    FIRST_ID,
    FORM,
    LABELS,
    LOGITS,
    CenterFacts,
    FlashOccFacts,
)
from mm2onnx_driving.plugin_pooling import REPLACED, PooledNetwork, pooled_graph
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import ABSENT
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.families.contracts import PUBLISHED, Contract
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.runtime.occupancy import Instances, Occupancy
from mmdeploy_ext.runtime.tasks.occupancy import PLACE_BAR, SCORE_BAR
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

# FlashOcc's graph of plain operators.
#
# Glossary: C channels, X, Y, Z voxels along x, y, z of the key ego frame, K classes.


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


# FlashOcc in PyTorch, with the detector's own test path.


class FlashOccReference(LiftReference):
    head_name, outputs = 'occ_head', (LOGITS,)

    def __init__(self, model: nn.Module, notes: Sequence[str] = ()) -> None:
        super().__init__(model, notes)
        self.parts = {LOGITS: self.head}
        self.centers = centers_of(model)
        if self.centers is not None:
            self.parts |= zip(CENTER_MAPS, center_branches(self.centers), strict=True)
            self.outputs = tuple(self.parts)

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
        return {part: lambda inputs, output, name=name: {name: output} for name, part in self.parts.items()}

    def tensors(self, values: Mapping[str, torch.Tensor], was_reset: bool) -> dict[str, np.ndarray]:
        self._tensors = values
        return super().tensors(values, was_reset)

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Occupancy | None:
        return super().boxes_of(outputs) if LOGITS in outputs else None  # a file with only classes

    def substitutes(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        self._tensors = tensors
        names = {part: name for name, part in self.model.named_modules()}
        return {f'{names[part]}.forward': tensors[name] for name, part in self.parts.items()}

    def results(self, results: Sequence[Any]) -> Occupancy:
        best, second = self._tensors[LOGITS][0].softmax(-1).topk(2).values.unbind(-1)
        labels = results[0] if self.centers is None else results[0]['pred_occ']
        labels = torch.as_tensor(labels).cpu().numpy().astype(np.uint8)
        occupancy = Occupancy(labels, (best - second).float().cpu().numpy(), self.head.num_classes - 1)
        if self.centers is None:
            return occupancy
        return occupancy.with_instances(self.instances_of(results[0]['pano_inst']))

    def instances_of(self, ids: torch.Tensor) -> Instances:
        """Return the instances of voxels (X, Y, Z); upstream's ids are the order of their classes."""
        maps = {name: self._tensors[name] for name in CENTER_MAPS}
        (places,), (scores,), (classes,) = self.centers.get_centers(([maps],), None)
        row_of = classes.int().sort().indices.argsort()
        is_object = ids >= FIRST_ID
        rows = torch.full_like(ids, -1, dtype=torch.int32)
        rows[is_object] = row_of[ids[is_object].long() - FIRST_ID].int()
        found = dict(places=places, scores=scores, labels=classes.long())
        centers, sure = with_unsure(found, possible_centers(maps, self.centers.bbox_coder))
        around = centers['places'][:, None] + PLACE_BAR * places.new_tensor([[-1.0], [1.0]])
        cells = ((around - self.model.st.to(places)) / self.model.sx.to(places)).int()
        arrays = {name: array(value) for name, value in centers.items()}
        return Instances(array(rows), **arrays, sure=array(sure), cells=array(cells))


def possible_centers(maps: Mapping[str, torch.Tensor], coder: Any) -> dict[str, torch.Tensor]:
    """Return the centres that maps may have with scores off by `SCORE_BAR` and places by `PLACE_BAR`.

    `sure` (n,) says which ones they have in any case. A centre is at least as high as the 8 cells around it,
    above the threshold, in range, and one of the best `max_num`.
    """
    heat = maps['heatmap'][0].sigmoid()
    rows, columns = heat.shape[1:]
    padded = functional.pad(heat, (1, 1, 1, 1))
    beside = torch.zeros_like(heat)
    for row, column in itertools.product(range(3), repeat=2):
        if (row, column) != (1, 1):
            beside = beside.maximum(padded[:, row : row + rows, column : column + columns])
    lead = torch.minimum(heat - beside, heat - coder.score_threshold)
    labels, rows, columns = (lead >= -SCORE_BAR).nonzero(as_tuple=True)
    scores, lead = heat[labels, rows, columns], lead[labels, rows, columns]
    shift, height = (maps[name][0, :, rows, columns].T for name in ('reg', 'height'))
    cells = torch.stack([columns, rows], 1) + shift
    xy = cells * coder.out_size_factor * cells.new_tensor(coder.voxel_size[:2])
    places = torch.cat([xy + cells.new_tensor(coder.pc_range[:2]), height], 1)
    low, high = places.new_tensor(coder.post_center_range).split(3)
    margin = torch.minimum(places - low, high - places).amin(1)
    before = counted(scores, scores - SCORE_BAR) - 1  # without itself
    surely_before = counted(scores[lead > SCORE_BAR], scores + SCORE_BAR)
    sure = (lead > SCORE_BAR) & (margin > PLACE_BAR) & (before < coder.max_num)
    kept = (margin >= -PLACE_BAR) & (surely_before < coder.max_num)
    return dict(places=places[kept], scores=scores[kept], labels=labels[kept], sure=sure[kept])


def counted(scores: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Return how many scores are at least as high as each limit (n,)."""
    return len(scores) - torch.searchsorted(scores.sort().values, limits)


def with_unsure(
    found: Mapping[str, torch.Tensor], possible: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the found centres, then the other possible ones, and which are sure."""
    apart = (found['places'][:, None] - possible['places']).abs().amax(-1)
    is_same = (apart <= PLACE_BAR) & (found['labels'][:, None] == possible['labels'])
    sure = ~(is_same & ~possible['sure']).any(1)
    others = ~is_same.any(0)
    centers = {name: torch.cat([values, possible[name][others]]) for name, values in found.items()}
    return centers, torch.cat([sure, sure.new_zeros(int(others.sum()))])


# Graphs of FlashOcc's own TensorRT converter, with logits or classes.
#
# Source of names, shapes and order: Yzichen/FlashOCC 4084861, tools/convert_bevdet_to_TRT.py.


class PooledLogits(PooledNetwork):
    """A frame, pooled by the plug-in, to logits (1, X, Y, Z, K)."""

    def forward(self, img: Tensor, *tables: Tensor) -> tuple[Tensor]:
        return (self.model.occ_head(self.encoded(self.view_of(img, *tables))),)


class PooledLabels(PooledLogits):
    """The same, to classes (1, X, Y, Z)."""

    def forward(self, img: Tensor, *tables: Tensor) -> tuple[Tensor]:
        (logits,) = super().forward(img, *tables)
        return (logits.argmax(-1),)


class PooledFiles(Contract):
    settings, replaces = PUBLISHED, REPLACED

    def check(self, cfg: Any) -> None:
        if (kind := cfg.model.img_view_transformer.type) != 'LSSViewTransformer':
            raise ConfigError(
                f'{cfg.filename}: model.img_view_transformer.type={kind!r}: this contract has no depth '
                'network; expected LSSViewTransformer, or use --contract portable'
            )

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        logits, labels = output_specs(model)
        module, output = PooledLogits(model), dataclasses.replace(logits, name='output_0')
        if options.contract == 'trt-argmax':
            given = dict(name='cls_occ_label', dtype='int64', axes=(1, *labels.axes))
            module, output = PooledLabels(model), dataclasses.replace(labels, **given)
        return [pooled_graph(model, FORM, module, f'flashocc/{options.contract}', [output])]

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        return output_specs(model)[options.contract == 'trt-argmax' :][:1]


CLASSES = (
    'others', 'barrier', 'bicycle', 'bus', 'car', 'construction_vehicle', 'motorcycle', 'pedestrian',
    'traffic_cone', 'trailer', 'truck', 'driveable_surface', 'other_flat', 'sidewalk', 'terrain', 'manmade',
    'vegetation', 'free',
)  # fmt: skip
"""Classes of Occ3D-nuScenes by label."""
OF_SEVERAL_FRAMES = 'BEVDepth4DOCC', 'BEVDepth4DPano', 'BEVStereo4DOCC'
PARTS = '--parts img_backbone+img_neck img_bev_encoder_backbone+img_bev_encoder_neck occ_head'


class FlashOccFamily(LiftFamily):
    name, task = 'flashocc', 'occupancy'
    detectors = ('BEVDetOCC', 'BEVDepthOCC', 'BEVDepthPano')
    heads, head_key = ('BEVOCCHead2D', 'BEVOCCHead2D_V2'), 'occ_head'
    expects = EXPECTED | {'occ_head.use_predicter': (ABSENT, True)}
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'simple_test_occ', '.extract_feat', '.extract_img_feat',
        'image_encoder', 'bev_encoder', 'prepare_inputs', 'img_view_transformer.forward', 'get_occ',
        'get_occ_gpu', 'simple_test_aux_centerness', 'aux_centerness_head.get_centers',
    )  # fmt: skip
    files = (FORM,)
    class_names = CLASSES
    reference, graphs, facts = staticmethod(FlashOccReference), staticmethod(graphs), staticmethod(facts_of)

    def check_model(self, cfg: Any) -> None:
        if is_one_of(OF_SEVERAL_FRAMES, cfg.model):
            raise ConfigError(
                f'{cfg.filename}: model.type={cfg.model.type!r} reads past frames; the graph has no input '
                f'for them; expected {" or ".join(self.detectors)}; or export its parts: {PARTS}'
            )
        super().check_model(cfg)

    def check_further(self, cfg: Any) -> None:
        """Raise ConfigError for heads of centres that are not exported."""
        head = cfg.model.get(HEAD)
        if head and (len(head.tasks) != 1 or not head.bbox_coder.get('score_threshold')):
            raise ConfigError(
                f'{cfg.filename}: model.{HEAD}: {len(head.tasks)} tasks, bbox_coder.score_threshold='
                f'{head.bbox_coder.get("score_threshold")}; expected one task and a threshold'
            )

    def num_classes(self, model: nn.Module) -> int:
        return int(model.occ_head.num_classes)

    def memory_spec(self, facts: FlashOccFacts) -> MemorySpec:
        return MemorySpec(needed=(LOGITS, *(CENTER_MAPS if facts.centers else ())))

    def result(self, detections: Occupancy) -> Any:
        return detections.labels
