"""A small PETRv2 that finds objects of a few generated frames, without a training.

Its backbone is that of the trained StreamPETR toy, its queries stand where the objects of these frames are,
and the last layers of its last branches are fitted by least squares to classes and boxes. It has seen nothing
else, so that its metrics say nothing about PETRv2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from projects.configs.nuscenes_stream import IMG_NORM
from toy_atss import REPO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.families.model import Model

TRAINED, PREFIX = REPO / 'demo/checkpoints/stream_petr_toy.pth', 'img_backbone.'
STD = IMG_NORM['std']
RIDGE = 1e-2
GAP_S = 0.5
"""Seconds between the frames of the data set."""
PRESENT, ABSENT, NOTHING = 1.0, -1.5, -5.0
"""Logits of an object in its own frame, in others, and of queries without an object."""
GROUPS = ((0, 1), (2,), (3, 4, 5), (6, 7), (8, 9))
"""Columns of a box code that each branch of a box gives."""


def objects_of(info: dict[str, Any], classes: Sequence[str], reach: float) -> list[tuple[int, np.ndarray]]:
    """Return class and box code (10,), in the model's columns, of an info's objects within a reach, m."""
    objects = []
    for name, box, velocity in zip(info['gt_names'], info['gt_boxes'], info['gt_velocity'], strict=True):
        if name not in classes or np.abs(box[:2]).max() > reach or abs(box[2] + 1) > 3.5:
            continue
        x, y, z, length, width, height, yaw = box[:7]
        old = -yaw - np.pi / 2
        code = [x, y, np.log(width), np.log(length), z, np.log(height), np.sin(old), np.cos(old)]
        objects.append((list(classes).index(name), np.array([*code, *np.nan_to_num(velocity)])))
    return objects


def take_backbone(model: torch.nn.Module) -> None:
    """Load the backbone of the StreamPETR toy, whose pictures are RGB over `STD`, into a toy of plain BGR."""
    state = torch.load(TRAINED, map_location='cpu', weights_only=False)['state_dict']
    state = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    stem = state['conv1.weight']
    state['conv1.weight'] = stem.flip(1) / stem.new_tensor(STD[::-1])[None, :, None, None]
    model.img_backbone.load_state_dict(state)


def solve(features: np.ndarray, goals: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias of the linear layer that is nearest to the goals."""
    features = np.column_stack([features, np.ones(len(features))]).astype(np.float64)
    square = features.T @ features + RIDGE * np.eye(features.shape[1])
    weights = np.linalg.solve(square, features.T @ goals)
    return torch.from_numpy(weights[:-1].T), torch.from_numpy(weights[-1])


def fit(deployment: Model, infos: Sequence[dict[str, Any]], frames: Sequence[Any]) -> None:
    """Fit the last branches of a toy with seeded weights to the frames of a data set and their infos."""
    take_backbone(deployment.model)
    head, classes = deployment.model.pts_bbox_head, list(deployment.classes)
    low, high = np.split(np.array(head.pc_range), 2)
    listed = [
        (number, label, code)
        for number, info in enumerate(infos)
        for label, code in objects_of(info, classes, 0.95 * high[0])
    ][: head.num_query]
    places = np.random.default_rng(0).uniform(0.05, 0.95, (head.num_query, 3))
    codes = np.zeros((head.num_query, 10))
    for query, (_, _, code) in enumerate(listed):
        places[query], codes[query] = (code[[0, 1, 4]] - low) / (high - low), code
    codes[:, [0, 1, 4]] = 0  # an object is where its query is
    codes[:, 8:] *= GAP_S
    with torch.no_grad():
        head.reference_points.weight.copy_(torch.from_numpy(places))
    layers = [head.cls_branches[-1][-1], *(branch[-1] for branch in head.reg_branches[-1].task_heads)]
    seen: list[list[np.ndarray]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, rows=rows: rows.append(inputs[0][0].numpy()))
        for layer, rows in zip(layers, seen, strict=True)
    ]
    stepper, goals = deployment.family.reference(deployment.model), []
    for number, frame in enumerate(frames):
        stepper.step(frame)
        logits = np.full((head.num_query, len(classes)), NOTHING)
        for query, (of_frame, label, _) in enumerate(listed):
            logits[query, label] = PRESENT + 0.01 * query if of_frame == number else ABSENT
        goals.append(logits)
    for hook in hooks:
        hook.remove()
    columns = [np.concatenate(goals), *(np.tile(codes[:, group], (len(frames), 1)) for group in GROUPS)]
    with torch.no_grad():
        for layer, rows, goal in zip(layers, seen, columns, strict=True):
            weight, bias = solve(np.concatenate(rows), goal)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
