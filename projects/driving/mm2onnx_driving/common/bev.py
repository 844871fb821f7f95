"""Frames to a bird's-eye view and predictions, of plain operators, with the motion of the car as inputs.

Glossary: N cameras, H, W network input in pixels, Q cells of the bird's-eye view, row by row, C channels, L
decoder layers, R queries of objects, K classes.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from mm2onnx_driving.common.camera import BevData, CameraFamily, feature_maps
from mm2onnx_driving.common.camera_reference import CameraReference, array
from mm2onnx_driving.common.runtime.bev_frames import RECORDED, record_of
from mm2onnx_driving.common.runtime.query_boxes import output_specs
from mm2onnx_driving.layers import bev_sampling
from mm2onnx_driving.layers.bev_steps import LastView, decode_objects, encode_view, rotate_view
from mm2onnx_driving.layers.bev_view import BEVFormerLayer, BevHead
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.source_code import users_method
from mmdeploy_ext.families.base import ABSENT
from mmdeploy_ext.families.common.box_conventions import (
    CODER,
    check_coder,
    note_convention,
    state_convention,
    stated,
)
from mmdeploy_ext.families.common.options import CONVENTIONS
from mmdeploy_ext.families.synthetic.moments import changed_drive, record_drive
from mmdeploy_ext.graphs.passes.grid_sample import replace_grid_sample
from mmdeploy_ext.runtime.bev_motion import CAN_BUS, TIE_CELLS, YAW_DEG, rotation_ties
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.preparation import MultiViewRule
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint

BEV = ColumnGroup(rtol=0.0, atol=1e-4)
LOGITS = ColumnGroup('logits', unit='logit', rtol=0.0, atol=5e-4)
BOXES = (
    ColumnGroup('xyz', (0, 1, 4), 'm', 0.0, 2e-3),
    ColumnGroup('log size', (2, 3, 5), '', 0.0, 5e-4),
    ColumnGroup('sin cos yaw', (6, 7), '', 0.0, 5e-4),
    ColumnGroup('velocity', (8, 9), 'm/s', 0.0, 5e-4),
)
"""Tolerances of float32. Source: "Suggested tolerances" of the reference data of BEVFormer; the view has
twice the bar of its slices, as all of its numbers are compared."""


class BevFrame(nn.Module):
    """Pictures, rig, motion and last view to the present view and predictions; `size` is (H, W)."""

    shifts_present = False

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(
        self,
        img: Tensor,
        lidar2img: Tensor,
        can_bus: Tensor,
        bev_shift: Tensor,
        bev_rotation: Tensor,
        prev_bev: Tensor,
        use_prev_bev: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the bird's-eye view (Q, 1, C) and `predictions`.

        Args:
            img: (N, 3, H, W), normalised pictures, padded at the bottom and on the right.
            lidar2img: (N, 4, 4), LiDAR frame, m, to pixels times depth.
            can_bus: (18,) of `bev_motion.motion_since`: this frame's record, with position (m, axes of the
                map) and heading (degrees) relative to the frame before.
            bev_shift: (2,) of `bev_motion.bev_shift`: motion of the car, x right and y ahead, relative to
                the sides of the view.
            bev_rotation: (2, 3) of `bev_motion.bev_rotation`: cell centre (x, y, 1), in cells from the
                middle, to its source x, y in -1..1 of the last view.
            prev_bev: (Q, 1, C), `bev_embed` of the frame before, neither turned nor moved.
            use_prev_bev: (1,) 1; 0 at the first frame of a scene, where `prev_bev` may hold any finite
                numbers.
        """
        head, cells = self.model.pts_bbox_head, prev_bev[:, 0]
        if head.transformer.rotate_prev_bev:
            cells = rotate_view(cells, bev_rotation, head.bev_h, head.bev_w)
        last = LastView(cells[None], bev_shift, use_prev_bev, self.shifts_present)
        return self.detect(img, lidar2img, can_bus, last)

    def detect(
        self,
        img: Tensor,
        lidar2img: Tensor,
        can_bus: Tensor,
        last: LastView,
        operators: ModuleType = bev_sampling,
    ) -> tuple[Tensor, ...]:
        head = self.model.pts_bbox_head
        maps = feature_maps(self.model, img)
        view = encode_view(head, maps, can_bus, lidar2img, self.size, last, operators)
        return view.transpose(0, 1), *self.predictions(view, operators)

    def predictions(self, view: Tensor, operators: ModuleType) -> tuple[Tensor, ...]:
        """Return logits (L, 1, R, K), boxes (L, 1, R, 10) of `steps.decode_objects`, and further outputs."""
        found = decode_objects(self.model.pts_bbox_head, view, operators)
        return found.logits, found.boxes


def frame_spec(model: nn.Module, name: str, further: Sequence[TensorSpec] = ()) -> GraphSpec:
    """Return the contract of a `BevFrame`; `further` are outputs after boxes."""
    head, (cameras, height, width) = model.pts_bbox_head, model.input_sizes
    view = (head.bev_h * head.bev_w, 1, head.transformer.embed_dims)
    layers, queries = len(head.transformer.decoder.layers), head.query_embedding.num_embeddings
    classes = int(head.cls_branches[-1][-1].out_features)
    images = 'normalised images, padded bottom and right'
    before = 'bev_embed of the last frame; any finite values at the first frame'
    record = 'can_bus record; position and heading relative to the last frame'
    shift = 'shift of each cell in the last view: x, y relative to the sides'
    rotation = 'cell centres to their positions in the last view'
    exists = '0 at the first frame of a scene, 1 otherwise'
    cells = "bird's-eye view (BEV), row by row from the smallest y, x"
    inputs = (
        TensorSpec('img', 'float32', (cameras, 3, height, width), images),
        TensorSpec('lidar2img', 'float32', (cameras, 4, 4), 'LiDAR frame to pixels times depth', single=True),
        TensorSpec('can_bus', 'float32', (CAN_BUS,), record, single=True),
        TensorSpec('bev_shift', 'float32', (2,), shift, single=True),
        TensorSpec('bev_rotation', 'float32', (2, 3), rotation, single=True),
        TensorSpec('prev_bev', 'float32', view, before),
        TensorSpec('use_prev_bev', 'float32', (1,), exists, single=True),
    )
    predictions = output_specs((layers, 1, queries), classes, (LOGITS,), BOXES)
    outputs = (TensorSpec('bev_embed', 'float32', view, cells, groups=(BEV,)), *predictions, *further)
    return GraphSpec(name, inputs, outputs, (('bev_embed', 'prev_bev'),))


def with_sampling(graph: Graph, options: Options) -> Graph:
    if options.grid_sample == 'operator':
        return graph
    stages = [dataclasses.replace(stage, passes=(replace_grid_sample,)) for stage in graph.stages]
    return dataclasses.replace(graph, make=lambda: stages)


# Families that keep their bird's-eye view: supported configs, and the models.


MEMORY = dict(
    bev_embed=BEV,
    position=ColumnGroup(unit='m', rtol=0.0, atol=1e-6),
    heading=ColumnGroup(unit='degree', rtol=0.0, atol=1e-6),
)
EXPECTED = {
    'video_test_mode': (ABSENT, True),  # without it the model forgets the last view before every frame
    'pts_bbox_head.as_two_stage': (ABSENT, False),
    'pts_bbox_head.with_box_refine': (ABSENT, True),
}
"""`expects` of families that keep their view."""
LOOPED = (
    ('', ('forward', 'get_bev_features')),
    ('encoder', ('forward', 'get_reference_points', 'point_sampling')),
    ('encoder.layers.?', ('forward',)),
    ('decoder', ('forward',)),
)
"""Parts of the transformer -> methods that our head replaces by its own loop."""


def check_parts(filename: str, model: nn.Module) -> None:
    if not isinstance(model.pts_bbox_head, BevHead):
        return
    for path, part in model.pts_bbox_head.transformer.named_modules():
        for place, methods in LOOPED:
            for found in (users_method(type(part), method) for method in methods if fnmatch(path, place)):
                if found:
                    head = type(model.pts_bbox_head).__name__
                    raise ConfigError(
                        f"{filename}: {found} would never be called, since mm2onnx's {head} loops over the "
                        'layers of encoder and decoder itself; use your own head with custom_imports'
                    )


def check_encoder(filename: str, transformer: Mapping[str, Any]) -> None:
    layers = transformer['encoder']['transformerlayers']
    for layer in layers if isinstance(layers, list | tuple) else [layers]:
        differs = dict(
            act_cfg=(layer.get('act_cfg') or dict(type='ReLU'))['type'] != 'ReLU',  # upstream ignores it
            ffn_cfgs=bool(layer.get('ffn_cfgs')),
            operation_order=layer['operation_order'][0] == 'norm',
        )
        if wrong := [f'{key}={layer[key]}' for key, is_other in differs.items() if is_other]:
            raise ConfigError(
                f'{filename}: model.pts_bbox_head.transformer.encoder.transformerlayers: '
                f'{", ".join(wrong)}; expected the values of the published configs, or your own layers '
                'with custom_imports'
            )


class BevFamily(CameraFamily):
    """`coder` is the only supported type of the box coder."""

    coder = CODER
    cameras_at, expects = 'pts_bbox_head.transformer', EXPECTED
    data = BevData()

    def build(self, cfg: Any) -> nn.Module:
        model = super().build(cfg)
        check_coder(model, cfg, self.coder)
        state_convention(model, cfg, CONVENTIONS[0])
        if not getattr(model, 'video_test_mode', True):  # the default of BEVFormer's class
            raise ConfigError(
                f'{cfg.filename}: model.video_test_mode is missing, and its default False makes the model '
                'forget the last view before every frame; expected True'
            )
        check_parts(cfg.filename, model)
        if isinstance(model.pts_bbox_head.transformer.encoder.layers[0], BEVFormerLayer):
            check_encoder(cfg.filename, self.head_of(cfg)['transformer'])
        model.rule = self.preprocess_rule(cfg)  # for contracts of other programs
        model.can_bus_orientation = stated(cfg, 'can_bus_orientation', RECORDED) or RECORDED[0]
        return model

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        super().load_weights(model, checkpoint)
        note_convention(model, checkpoint)

    def view_facts(self, model: nn.Module) -> dict[str, Any]:
        """Return the fields of `BevFacts`."""
        head, transformer = model.pts_bbox_head, model.pts_bbox_head.transformer
        low, high = head.pc_range[:2], head.pc_range[3:5]
        return dict(
            self.box_facts(model),
            bev_h=int(head.bev_h),
            bev_w=int(head.bev_w),
            extent=tuple(float(end) - float(start) for start, end in zip(low, high, strict=True)),
            rotate_center=tuple(float(value) for value in transformer.rotate_center),
            rotate_prev_bev=bool(transformer.rotate_prev_bev),
            use_shift=bool(transformer.use_shift),
            can_bus_orientation=model.can_bus_orientation,
        )


# Detectors that keep their bird's-eye view, in PyTorch as steppers.


def given_record(frame: Frame) -> np.ndarray:
    """Return the record (18,) float64 of a frame as upstream's data set makes it; no code of the runtime."""
    if frame.can_bus is not None:
        return np.array(frame.can_bus, np.float64)
    from scipy.spatial.transform import Rotation  # takes half a second to import

    axes = np.array(frame.ego_pose, np.float64)[:3, :3]
    car = Rotation.from_matrix(np.stack([axes[:, 1], -axes[:, 0], axes[:, 2]], 1))
    heading = np.arctan2(axes[1, 1], axes[0, 1]) % (2 * np.pi)
    record = np.zeros(CAN_BUS)
    record[:3], record[3:7] = frame.ego_pose[:3, 3], np.cos(car.magnitude() / 2)
    record[16:] = heading, np.rad2deg(heading)
    return record


class BevReference(CameraReference):
    reads, outputs = ('lidar2img',), ('bev_embed', 'all_cls_scores', 'all_bbox_preds')

    def __init__(self, model: nn.Module, notes: Sequence[str] = ()) -> None:
        self._ties: dict[str, int] = {}
        super().__init__(model, notes)

    @property
    def notes(self) -> list[str]:
        notes = super().notes
        if not self._ties:
            return notes
        frames = ', '.join(f'{count} cells of {name}' for name, count in self._ties.items())
        return [
            *notes,
            f'rotation of the last view: {frames} are within {TIE_CELLS:g} cells of a tie, where rounding '
            'decides',
        ]

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        frames = list(changed_drive(sample))
        yield from frames
        yield from record_drive(
            dataclasses.replace(frames[-1], images=sample.images), given_record(frames[-1])
        )

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        return dict(network=[(self.model, 'forward_test')])

    def forget(self) -> None:
        self.model.prev_frame_info = dict(prev_bev=None, scene_token=None, prev_pos=0, prev_angle=0)

    def memory(self) -> dict[str, np.ndarray]:
        last = self.model.prev_frame_info
        place = dict(position=last['prev_pos'], heading=[last['prev_angle']])
        place = {name: np.array(values, np.float64) for name, values in place.items()}
        return dict(place, bev_embed=array(last['prev_bev']))

    def remember(self, state: StreamState) -> None:
        self.model.prev_frame_info = dict(
            prev_bev=self.tensor(state.tensors['bev_embed']),
            scene_token=state.scene_token,
            prev_pos=np.array(state.tensors['position']),
            prev_angle=float(state.tensors['heading'][0]),
        )

    def record(self, frame: Frame) -> np.ndarray:
        record_of(frame, self.model.can_bus_orientation)
        return given_record(frame)

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        record, transformer = self.record(frame), self.head.transformer
        if not is_first and transformer.rotate_prev_bev:
            degrees = record[YAW_DEG] - self.model.prev_frame_info['prev_angle']
            size = self.head.bev_h, self.head.bev_w
            if ties := rotation_ties(degrees, transformer.rotate_center, size):
                self._ties[frame.name] = ties
        data = super().data(frame, is_first)
        data['img_metas'][0][0]['can_bus'] = record
        return data
