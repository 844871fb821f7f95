"""SparseDrive: frames, supported configs and models."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mm2onnx_driving.common.camera_data import InstanceData
from mm2onnx_driving.common.camera_models import CameraFamily, CameraModels
from mm2onnx_driving.common.instance_graphs import (
    KEPT_PLACES,
    KEPT_SCORES,
    VALUES,
    camera_steps,
    spread_anchors,
)
from mm2onnx_driving.sparsedrive.facts import (
    BOXES,
    LINES,
    MEMORY,
    MOTION,
    OUTPUTS,
    SparseDriveFacts,
    facts_of,
)
from mm2onnx_driving.sparsedrive.graphs import graphs
from mm2onnx_driving.sparsedrive.reference import SparseDriveReference
from mm2onnx_driving.sparsedrive.runtime import FILES, frame_with_command
from mm2onnx_driving.sparsedrive.upstream import UpstreamReference
from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.common.detector_parts import part_cfg
from mmdeploy_ext.families.common.samples import result
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.runtime.driving import DrivingScene
from mmdeploy_ext.spec.memory import InstanceRows, MemorySpec
from mmdeploy_ext.spec.tensors import ColumnGroup

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
SETTINGS = {
    'use_deformable_func': True,
    'head.det_head.decouple_attn': True,
    'head.det_head.deformable_model.use_deformable_func': True,
    'head.map_head.deformable_model.use_deformable_func': True,
    'head.det_head.refine_layer.with_quality_estimation': True,
    'head.det_head.refine_layer.refine_yaw': True,
}
"""Setting -> its only supported value."""
LINE_M, STEP_M = 15.0, 2.0
"""Half the length of lines without a file, and their trajectory step."""


def check_tasks(cfg: Any) -> None:
    """Raise ConfigError for a missing head, or other settings."""
    wrong = []
    for path, needed in SETTINGS.items():
        *parts, name = path.split('.')
        section = cfg.model
        for part in parts:
            section = section.get(part) or {}
        if section.get(name) != needed:
            wrong.append(f'{path}={section.get(name)!r}, expected {needed!r}')
    tasks = (cfg.model.get('head') or {}).get('task_config') or {}
    wrong += [f'head.task_config.{name}=False, expected True' for name, has in tasks.items() if not has]
    decoder = cfg.model.head.get('det_head', {}).get('decoder') or {}
    if decoder.get('score_threshold') is not None:
        wrong.append(f'head.det_head.decoder.score_threshold={decoder.score_threshold}, expected None')
    if wrong:
        raise ConfigError(
            f'{cfg.filename}: model: {"; ".join(wrong)}: only the second stage of SparseDrive is supported'
        )


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


class SparseDriveFamily(CameraFamily, SequenceFamily):
    name, task = 'sparsedrive', 'driving'
    models = CameraModels(
        detectors=('SparseDrive',),
        heads=('SparseDriveHead',),
        head_key='head',
        check_further=check_tasks,
        camera_settings=lambda cfg: cfg.model.head.det_head.deformable_model,
        camera_steps=camera_steps,
    )
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

    def build(self, cfg: Any) -> nn.Module:
        self.models.check(cfg)
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
