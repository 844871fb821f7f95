"""SparseDrive: frames, supported configs and models."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera import (
    CameraFamily,
    InstanceData,
    camera_graphs,
    feature_maps,
    map_shapes,
)
from mm2onnx_driving.common.instances import (
    ANCHOR_COLUMNS,
    ANCHORS,
    KEPT_PLACES,
    KEPT_SCORES,
    VALUES,
    InstanceNetwork,
    camera_steps,
    interval_spec,
    near_spec,
    spread_anchors,
)
from mm2onnx_driving.layers.sparse_instances import NUMBERS, feature_rows
from mm2onnx_driving.sparsedrive.reference import SparseDriveReference, UpstreamReference
from mm2onnx_driving.sparsedrive.runtime import (
    BOXES,
    FILES,
    LINES,
    MEMORY,
    MOTION,
    OUTPUTS,
    SparseDriveFacts,
    facts_of,
    frame_with_command,
)
from mm2onnx_driving.sparsedrive.steps import Moment, ego_feature, run_frame
from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.families.base import ABSENT
from mmdeploy_ext.families.common.detector_parts import part_cfg
from mmdeploy_ext.families.common.samples import result
from mmdeploy_ext.runtime.driving import DrivingScene
from mmdeploy_ext.spec.memory import InstanceRows, MemorySpec
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

# SparseDrive's graphs: image features, heads of a first frame, heads of later frames.


FEATURES = ColumnGroup(rtol=1e-5, atol=5e-5)
INTEGERS = ('instance_id', 'prev_id', 'queue_period', 'ego_period')


class Features(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, img: Tensor) -> tuple[Tensor, Tensor]:
        maps = feature_maps(self.model, img)
        queue = self.model.head.motion_plan_head.instance_queue
        return feature_rows(maps), ego_feature(queue, maps[-1][:1])


class FirstFrame(InstanceNetwork):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head = model.head

    def run(
        self, feature: Tensor, ego: Tensor, lidar2img: Tensor, command: Tensor, *past: object
    ) -> tuple[Tensor, ...]:
        outputs, post = run_frame(self.head, self.pictures(feature, lidar2img), ego, command, *past)
        return (*(outputs[name] for name in OUTPUTS), *(post[name] for name in MEMORY))

    def forward(
        self, feature: Tensor, ego_feature: Tensor, lidar2img: Tensor, command: Tensor
    ) -> tuple[Tensor, ...]:
        return self.run(feature, ego_feature, lidar2img, command, None, None)


class NextFrame(FirstFrame):
    def forward(
        self,
        feature: Tensor,
        ego_feature: Tensor,
        lidar2img: Tensor,
        command: Tensor,
        gap: Tensor,
        time_interval: Tensor,
        near: Tensor,
        motion: Tensor,
        *memory: Tensor,
    ) -> tuple[Tensor, ...]:
        moment = Moment(time_interval, near > 0.5, motion, gap)
        return self.run(
            feature, ego_feature, lidar2img, command, dict(zip(MEMORY, memory, strict=True)), moment
        )


def memory_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    bank, lines = (part.instance_bank for part in (model.head.det_head, model.head.map_head))
    channels, slots = bank.embed_dims, model.head.motion_plan_head.instance_queue.queue_length - 1
    rows, line_rows = (1, bank.num_temp_instances), (1, lines.num_temp_instances)
    return dict(
        feature=(*rows, channels),
        anchor=(*rows, NUMBERS),
        confidence=rows,
        instance_id=rows,
        prev_id=(1,),
        queue_feature=(*rows, slots, channels),
        queue_anchor=(*rows, slots, NUMBERS),
        queue_period=rows,
        map_feature=(*line_rows, channels),
        map_anchor=(*line_rows, lines.anchor.shape[1]),
        map_confidence=line_rows,
        ego_feature=(1, slots, channels),
        ego_anchor=(1, slots, NUMBERS),
        ego_period=(1,),
        ego_status=(1, 1, model.head.motion_plan_head.layers[-1].plan_status_branch[-1].out_features),
    )


def memory_specs(model: nn.Module, prefix: str) -> tuple[TensorSpec, ...]:
    """Return the memory before (`pre`), with meanings, or after a frame (`post`)."""
    specs = []
    for name, shape in memory_shapes(model).items():
        dtype, meaning = 'int64' if name in INTEGERS else 'float32', MEMORY[name] if prefix == 'pre' else ''
        specs.append(TensorSpec(f'{prefix}_{name}', dtype, shape, meaning, single=True))
    return tuple(specs)


def specs(model: nn.Module) -> list[GraphSpec]:
    (cameras, height, width), head = model.input_sizes, model.head
    bank, lines, planner = head.det_head.instance_bank, head.map_head.instance_bank, head.motion_plan_head
    rows, line_rows = (1, bank.num_anchor), (1, lines.num_anchor)
    cells = cameras * sum(h * w for _, h, w in map_shapes(model, height, width))
    classes, line_classes = (
        part.layers[-1].cls_layers[-1].out_features for part in (head.det_head, head.map_head)
    )

    def tensor(
        name: str, axes: tuple[int, ...], meaning: str, *groups: ColumnGroup, dtype: str = 'float32'
    ) -> TensorSpec:
        return TensorSpec(name, dtype, axes, meaning, groups=groups, single=True)

    images = TensorSpec('img', 'float32', (cameras, 3, height, width), 'normalised images')
    features = (
        tensor('feature', (1, cells, bank.embed_dims), 'features by camera, level, row, column', FEATURES),
        tensor('ego_feature', (1, 1, bank.embed_dims), 'feature map of the front camera', FEATURES),
    )
    frame = (
        *features,
        tensor('lidar2img', (cameras, 4, 4), 'LiDAR frame to pixels times depth'),
        tensor('command', (1,), 'command: 0 right, 1 left, 2 straight', dtype='int64'),
    )
    past = (
        tensor('gap', (1,), 'seconds since the last frame'),
        interval_spec(bank),
        near_spec('near', bank),
        tensor('motion', (1, 4, 4), 'LiDAR frame of the last frame to the current LiDAR frame'),
    )
    modes, plans = planner.fut_mode, planner.ego_fut_mode
    outputs = (
        tensor('pred_anchor', (*rows, NUMBERS), ANCHOR_COLUMNS, *ANCHORS),
        tensor('pred_class_score', (*rows, classes), 'class logits', VALUES),
        tensor('pred_quality_score', (*rows, 2), 'logits of centerness and yawness', VALUES),
        tensor('map_points', (*line_rows, lines.anchor.shape[1]), 'x y of the points of lines (m)', VALUES),
        tensor('map_scores', (*line_rows, line_classes), 'class logits of lines', VALUES),
        tensor('motion_scores', (*rows, modes), "mode logits of the instances' trajectories", VALUES),
        tensor(
            'motion_steps',
            (*rows, modes * planner.fut_ts * 2),
            "x y of the trajectories' steps, mode by mode (m)",
            VALUES,
        ),
        tensor('plan_scores', (1, plans), 'mode logits of the plans for the command', VALUES),
        tensor('plan_steps', (1, plans, planner.ego_fut_ts * 2), "x y of the plans' steps (m)", VALUES),
        tensor('instance_id', rows, 'track ids', dtype='int64'),
        tensor('confidence', rows, 'scores that select the instances to keep', VALUES),
        tensor('line_confidence', line_rows, 'scores that select the lines to keep', VALUES),
    )
    post = *outputs, *memory_specs(model, 'post')
    pairs = tuple((f'post_{name}', f'pre_{name}') for name in MEMORY)
    return [
        GraphSpec('sparsedrive/features', (images,), features),
        GraphSpec('sparsedrive/first', frame, post),
        GraphSpec('sparsedrive/next', (*frame, *past, *memory_specs(model, 'pre')), post, state=pairs),
    ]


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    modules = Features(model), FirstFrame(model), NextFrame(model)
    return camera_graphs(model, options, list(zip(FILES, modules, specs(model), strict=True)))


# ---- frames, with the driver's command


def entries(rng: np.random.Generator) -> dict[str, Any]:
    """Return an info's entries for SparseDrive's data set."""
    return dict(
        map_location='generated',
        map_annos={},
        ego_status=rng.uniform(-1, 1, 10),
        gt_ego_fut_cmd=np.eye(3)[rng.integers(3)],
        gt_ego_fut_trajs=np.zeros((6, 2)),
        gt_ego_fut_masks=np.zeros(6),
        gt_boxes=np.zeros((0, 7)),
        gt_names=np.zeros(0, str),
        gt_velocity=np.zeros((0, 2)),
        num_lidar_pts=np.zeros(0, int),
    )


class SparseDriveData(InstanceData):
    compared = OUTPUTS[:-3]
    needed = (*InstanceData.needed, 'command')
    frame_of = staticmethod(frame_with_command)
    entries = staticmethod(entries)


# ---- family

EXACT = ColumnGroup(rtol=0.0, atol=0.0)
OF_INSTANCES = dict(
    feature=VALUES,
    anchor=KEPT_PLACES,
    confidence=KEPT_SCORES,
    queue_feature=VALUES,
    queue_anchor=KEPT_PLACES,
    queue_period=EXACT,
)
FURTHER = dict(
    prev_id=EXACT, ego_feature=VALUES, ego_anchor=KEPT_PLACES, ego_period=EXACT, ego_status=VALUES,
    map_feature=VALUES, map_anchor=KEPT_PLACES, map_confidence=KEPT_SCORES,
)  # fmt: skip
ROWS = InstanceRows(
    tensors=(*OF_INSTANCES, 'instance_id'),
    place=('anchor', 'pred_anchor'),
    per_query=(*BOXES, *MOTION),
    confidence='confidence',
    first_scores='first_scores',
    ids=('instance_id', 'instance_id', 'prev_id'),
)
LINE_ROWS = InstanceRows(
    tensors=('map_feature', 'map_anchor', 'map_confidence'),
    place=('map_anchor', 'map_points'),
    per_query=LINES,
    confidence='line_confidence',
    first_scores='first_line_scores',
)
LINE_M, STEP_M = 15.0, 2.0
"""Half the length of lines without a file, and their trajectory step."""


def anchors_of(head: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, np.ndarray]]:
    """Yield section and key of each anchor file, and substitute anchors."""
    bank, lines, planner = (
        head['det_head']['instance_bank'],
        head['map_head']['instance_bank'],
        head['motion_plan_head'],
    )
    yield bank, 'anchor', spread_anchors(int(bank['num_anchor']))
    count = int(head['map_head']['anchor_encoder'].get('num_sample', 20))
    centres = spread_anchors(int(lines['num_anchor']))
    along = np.linspace(-LINE_M, LINE_M, count)[:, None] * centres[:, None, 7:5:-1]
    yield lines, 'anchor', centres[:, None, :2] + along
    for key, steps, shape in (
        ('motion_anchor', planner['fut_ts'], (10, planner['fut_mode'])),
        ('plan_anchor', planner['ego_fut_ts'], (3, planner['ego_fut_mode'])),
    ):
        turns = np.linspace(-1.0, 1.0, shape[0] * shape[1]).reshape(*shape, 1) + np.pi / 2 * (
            key == 'plan_anchor'
        )
        ways = STEP_M * np.arange(1, steps + 1) * np.exp(1j * turns)
        yield planner, key, np.stack([ways.real, ways.imag], -1)


@contextlib.contextmanager
def with_files(cfg: Any) -> Iterator[bool]:
    """Substitute missing anchor files: every checkpoint has the anchors."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, (section, key, values) in enumerate(anchors_of(part_cfg(cfg.model, 'head'))):
            if not Path(section[key]).is_file():
                np.save(path := folder / f'{number}.npy', values)
                stack.enter_context(replaced_entry(section, key, str(path)))
        yield


class SparseDriveFamily(CameraFamily):
    name, task = 'sparsedrive', 'driving'
    detectors, heads, head_key = ('SparseDrive',), ('SparseDriveHead',), 'head'
    cameras_at = 'head.det_head.deformable_model'
    expects: ClassVar = {  # the second stage alone
        'use_deformable_func': (True,),
        'head.task_config.with_det': (ABSENT, True),
        'head.task_config.with_map': (ABSENT, True),
        'head.task_config.with_motion_plan': (ABSENT, True),
        'head.det_head.decouple_attn': (True,),
        'head.det_head.decoder.score_threshold': (ABSENT, None),
        'head.det_head.deformable_model.use_deformable_func': (True,),
        'head.map_head.deformable_model.use_deformable_func': (True,),
        'head.det_head.refine_layer.with_quality_estimation': (True,),
        'head.det_head.refine_layer.refine_yaw': (True,),
    }
    untraced = ()
    files = FILES
    ignores_places = True
    ignored_prefixes = (
        'depth_branch.',
        'head.det_head.instance_bank.anchor_handler.',
        'head.map_head.instance_bank.anchor_handler.',
    )
    data = SparseDriveData()
    graphs = staticmethod(graphs)

    def camera_steps(self, cfg: Any) -> list[Mapping[str, Any]]:
        return camera_steps(cfg)

    def build(self, cfg: Any) -> nn.Module:
        self.check_model(cfg)
        with with_files(cfg):
            return super().build(cfg)

    def reference(self, model: nn.Module) -> SparseDriveReference:
        ours = hasattr(model.head, 'memory')
        return SparseDriveReference(model) if ours else UpstreamReference(model)

    def num_classes(self, model: nn.Module) -> int:
        return self.facts(model).num_classes

    def facts(self, model: nn.Module) -> SparseDriveFacts:
        return facts_of(model.head)

    def memory_spec(self, facts: SparseDriveFacts) -> MemorySpec:
        return MemorySpec(
            tensors={**OF_INSTANCES, **FURTHER},
            outputs={name: f'post_{name}' for name in MEMORY},
            needed=OUTPUTS[:-3],
            per_query=(*ROWS.per_query, *LINE_ROWS.per_query),
            instances=(ROWS, LINE_ROWS),
        )

    def result(self, detections: DrivingScene) -> dict[str, Any]:
        (entry,) = result(detections).values()
        return entry | dict(
            trajs_3d=torch.from_numpy(detections.trajectories),
            trajs_score=torch.from_numpy(detections.mode_scores),
            vectors=[*detections.lines.points],
            scores=detections.lines.scores,
            labels=detections.lines.labels,
            final_planning=torch.from_numpy(detections.plan.final),
        )
