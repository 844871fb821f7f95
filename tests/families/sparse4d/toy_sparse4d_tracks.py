"""A small Sparse4D that follows the objects of a generated data set, without a training.

Its anchors are the boxes of each scene's first frame, and the last layers of the scores are fitted by least
squares. What appears later it does not find. Its results move with its pictures, but little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.families.model import Model

FAR_M = 62.0
"""Metres; anchors that are no object stand here, beyond the ranges of the evaluation."""
DAMPED = {'.output_proj.weight': 0.3, '.out_proj.weight': 0.02, '.out_proj.bias': 0.0, '.scale': 0.02}
"""End of a key in the head -> factor: an instance stays what it is from layer to layer."""
LEARNED_FRAMES = 6
"""Frames of each scene to which the scores are fitted."""
RIDGE = 1e-3


def follow(deployment: Model, infos: Sequence[dict[str, Any]], frames: Sequence[Any]) -> None:
    """Change the weights of a toy so that it follows what it sees in the first frame of each scene.

    Args:
        deployment: the toy with seeded weights.
        infos: of the data set, in the order of time.
        frames: the prepared frames of these infos.
    """
    model, classes = deployment.model, list(deployment.classes)
    head, bank = model.head, model.head.instance_bank
    firsts = [
        number
        for number, info in enumerate(infos)
        if not number or info['scene_token'] != infos[number - 1]['scene_token']
    ]
    anchors = np.concatenate([anchors_of(infos[number]) for number in firsts])
    names = np.concatenate([infos[number]['gt_names'] for number in firsts])
    labels = np.full(bank.num_anchor, len(classes))  # the last one stands for no object
    labels[: len(names)] = [classes.index(name) for name in names]
    rng = np.random.default_rng(0)
    with torch.no_grad():
        bank.anchor.copy_(torch.from_numpy(with_far_anchors(anchors, bank.num_anchor)))
        kinds = 4 * np.linalg.qr(rng.standard_normal((bank.embed_dims, len(classes) + 1)))[0].T
        bank.instance_feature.copy_(torch.from_numpy(kinds[labels]))
        for key, value in head.state_dict().items():
            for end, factor in DAMPED.items():
                if key.endswith(end):
                    value *= factor
        head.fc_after.weight.copy_(torch.eye(*head.fc_after.weight.shape))
        for kind, layer in zip(head.operation_order, head.layers, strict=True):
            if kind == 'norm':
                layer.reset_parameters()
            if kind == 'ffn':
                pass_through(layer)
    refinements = [
        layer for kind, layer in zip(head.operation_order, head.layers, strict=True) if kind == 'refine'
    ]
    is_object, worth = labels < len(classes), rng.uniform(0, 1.5, bank.num_anchor)
    # what is no object has the free rows of a frame, so that none is seen twice
    first = np.repeat(np.where(is_object, -6.0, 1.0 + worth)[:, None], len(classes), 1)
    fit(deployment, frames, firsts, refinements[0], first, is_first=True)
    last = np.full((bank.num_anchor, len(classes)), -6.0)
    last[is_object, labels[is_object]] = 0.5 + worth[is_object]
    fit(deployment, frames, firsts, refinements[-1], last)


def fit(
    deployment: Model,
    frames: Sequence[Any],
    firsts: Sequence[int],
    refinement: Any,
    goal: np.ndarray,
    is_first: bool = False,
) -> None:
    """Fit the last layer of the classes of a refinement to logits (A, K) of the anchors."""
    stepper, layer, seen, goals = (
        deployment.family.reference(deployment.model),
        refinement.cls_layers[-1],
        [],
        [],
    )
    inputs: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        for first in firsts:
            stepper.reset()
            for frame in frames[first : first + LEARNED_FRAMES]:
                inputs.clear()
                ids = stepper.step(frame).outputs['instance_id'][0]
                if not inputs:  # after a reset the first refinement computes no classes
                    continue
                # the ids of the frame after a reset are its rows
                rows = np.arange(len(ids)) if is_first else ids
                known = rows < len(goal)
                seen.append(inputs[-1][0].double().numpy()[known])
                goals.append(goal[rows[known]])
    finally:
        handle.remove()
    features = np.concatenate(seen)
    features = np.column_stack([features, np.ones(len(features))])
    square = features.T @ features + RIDGE * np.eye(features.shape[1])
    weights = np.linalg.solve(square, features.T @ np.concatenate(goals))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights[:-1].T))
        layer.bias.copy_(torch.from_numpy(weights[-1]))


def pass_through(network: Any) -> None:
    """Let a feed-forward network give the instance that it gets, and a little of what it sees."""
    channels = len(network.identity_fc.weight)
    network.pre_norm.reset_parameters()
    network.identity_fc.bias.zero_()
    network.identity_fc.weight.copy_(torch.cat([torch.zeros(channels, channels), torch.eye(channels)], 1))
    last = network.layers[1]
    last.weight *= 0.05
    last.bias.zero_()


def anchors_of(info: dict[str, Any]) -> np.ndarray:
    """Return the annotations of an info as anchors (n, 11), see the bank."""
    boxes, velocity = info['gt_boxes'], np.nan_to_num(info['gt_velocity'])
    yaw = boxes[:, 6]
    columns = boxes[:, :3], np.log(boxes[:, 3:6]), np.sin(yaw)[:, None], np.cos(yaw)[:, None], velocity
    return np.concatenate([*columns, np.zeros((len(boxes), 1))], 1)


def with_far_anchors(anchors: np.ndarray, count: int) -> np.ndarray:
    """Return `count` anchors float32: those given, and others on a circle."""
    angles = np.linspace(0, 2 * np.pi, count - len(anchors), endpoint=False)
    far = np.zeros((len(angles), anchors.shape[1]))
    far[:, 0], far[:, 1] = FAR_M * np.cos(angles), FAR_M * np.sin(angles)
    far[:, 3:6], far[:, 7] = np.log([4.0, 1.8, 1.7]), 1.0
    return np.concatenate([anchors, far]).astype(np.float32)
