"""`python projects/driving/train_bevformer_toy.py`: trains BEVFormer's toy on the generated drives.

BEVFormer of this project has no loss; here the toy gets one, so that metrics of its files mean something. The
backbone is that of StreamPETR's toy and is not trained: its maps are computed once. Two scenes run side by
side, each with its last bird's-eye view, through which no gradient goes back in time. The loss is that of
DETR: one-to-one matching, focal loss, L1 distance of box codes.

Source of costs and factors: fundamentalvision/BEVFormer 66b65f3, `projects/configs/bevformer/*.py`.
"""

import argparse
import dataclasses
import itertools
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mm2onnx_driving.common.runtime.bev_frames import frame_with_record
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.runtime.bev_motion import motion_since
from mmdeploy_ext.runtime.infos import read_frames, read_infos
from mmdeploy_ext.upstream import compat

CONFIG = 'projects/configs/BEVFormer/bevformer_toy.py'
BACKBONE = 'demo/checkpoints/stream_petr_toy.pth'
"""Checkpoint with a backbone of the same layers."""
SLOTS = 2
"""Scenes side by side: frames of an iteration."""
CLASS_WEIGHT, BOX_WEIGHT, ALPHA, GAMMA = 2.0, 0.25, 0.25, 2.0
"""Factors of the focal loss and of the L1 distance, in the loss and in the costs of matching; and the focal
loss's own constants."""
RATE, WARMUP, LARGEST_GRADIENT = 1e-3, 50, 10.0
"""Largest learning rate of AdamW, iterations in which it rises to that, and largest norm of the gradients."""


@dataclasses.dataclass
class Moment:
    """One frame as training takes it.

    Attributes:
        maps: feature maps of the backbone, per level (N, C, h, w) float32 of N cameras.
        lidar2img: (N, 4, 4), LiDAR frame to pixels of the network input, times depth.
        record: can_bus (18,) of the frame, with the car's pose in the map, see `bev_motion.can_bus_record`.
        codes: box codes of the objects (n, 10) float32 in the LiDAR frame, metres, m/s: x, y, log width, log
            length, z of the centre, log height, sine and cosine of the yaw of mmdet3d 0.17, velocity in x and
            y.
        labels: (n,) int64 classes of the objects.
    """

    maps: list[Tensor]
    lidar2img: np.ndarray
    record: np.ndarray
    codes: Tensor
    labels: Tensor


def start_values(model: nn.Module, seed: int) -> None:
    """Set the linear layers outside of the backbone and the embeddings, with which training begins.

    torch's seed is set first; convolutions and normalisations stay. Sampling points lie around their
    reference (`point_around`), scores are about 0.01, boxes near their reference.
    """
    torch.manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith('img_backbone'):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    head = model.pts_bbox_head
    for module in head.modules():
        if hasattr(module, 'sampling_offsets'):
            point_around(module)
            nn.init.zeros_(module.attention_weights.weight)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    nn.init.uniform_(head.query_embedding.weight)
    for embedding in (head.transformer.level_embeds, head.transformer.cams_embeds):
        nn.init.normal_(embedding)
    for classes, boxes in zip(head.cls_branches, head.reg_branches, strict=True):
        nn.init.constant_(classes[-1].bias, -math.log(99))  # a score of 0.01
        nn.init.normal_(boxes[-1].weight, std=0.01)


def point_around(attention: nn.Module) -> None:
    """Set the sampling offsets of a deformable attention: a direction for each head, a step for each point.

    The directions are evenly around the reference. Point p of every level is p + 1 steps away; a step is one
    cell along the axis that is nearer to the direction.
    """
    heads = attention.num_heads
    angles = torch.arange(heads) * (2 * math.pi / heads)
    ways = torch.stack([angles.cos(), angles.sin()], -1)
    ways = ways / ways.abs().amax(-1, keepdim=True)
    points = attention.num_points
    queues = attention.sampling_offsets.out_features // (heads * attention.num_levels * points * 2)
    steps = torch.arange(1, points + 1)[:, None]
    offsets = (ways[:, None, None] * steps).expand(heads, queues * attention.num_levels, points, 2)
    with torch.no_grad():
        nn.init.zeros_(attention.sampling_offsets.weight)
        attention.sampling_offsets.bias.copy_(offsets.flatten())


def targets_of(info: Mapping[str, Any], classes: Sequence[str], pc_range: Sequence[float]) -> tuple:
    """Return box codes (n, 10) and labels (n,) of the objects of a frame, see `Moment`.

    Objects whose centre is outside of the range in x or y, as upstream whatever their z, objects without a
    LiDAR point and those of other classes are left out. (In generated drives all have one.)

    Args:
        info: with `gt_boxes` (m, 7): centre x, y, z, length, width, height in metres and the yaw of mmdet3d
            1.x; `gt_names`, `num_lidar_pts` (m,), `gt_velocity` (m, 2), m/s; in the LiDAR frame. A velocity
            that is NaN counts as 0.
        classes: names, in the order of the labels.
        pc_range: lowest x, y, z and highest x, y, z, in metres.
    """
    boxes, names = np.asarray(info['gt_boxes'], np.float64), info['gt_names']
    low, high = np.array(pc_range[:2]), np.array(pc_range[3:5])
    inside = ((boxes[:, :2] > low) & (boxes[:, :2] < high)).all(1) & (np.asarray(info['num_lidar_pts']) > 0)
    keep = inside & np.isin(names, classes)
    x, y, z, length, width, height, yaw = boxes[keep].T
    yaw = -yaw - np.pi / 2
    speed = np.nan_to_num(np.asarray(info['gt_velocity'], np.float64)[keep])
    codes = [x, y, np.log(width), np.log(length), z, np.log(height), np.sin(yaw), np.cos(yaw), *speed.T]
    labels = [classes.index(name) for name in np.asarray(names)[keep]]
    return torch.tensor(np.stack(codes, 1), dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)


def read_scenes(model: nn.Module, infos: Path, rule: Any, classes: Sequence[str]) -> list[list[Moment]]:
    """Return the frames of every scene in the order of time; scenes are in the order of the infos.

    Args:
        model: detector on the CPU, whose backbone computes the maps.
        infos: the info file, a pickle.
        rule: the rig's rule of preprocessing, `BevFormerFamily.preprocess_rule`.
        classes: names, in the order of the labels.
    """
    scenes: dict[str, list[Moment]] = {}
    contents = {info['token']: info for info in read_infos(infos)}
    for rig in read_frames(infos, rule):
        frame = frame_with_record(rig.read_pictures(), rig, rule)
        with torch.no_grad():
            maps = list(model.img_backbone(torch.from_numpy(frame.images)))
        codes, labels = targets_of(contents[rig.name], classes, model.pts_bbox_head.pc_range)
        moment = Moment(maps, frame.lidar2img, frame.can_bus, codes, labels)
        scenes.setdefault(rig.scene_token, []).append(moment)
    return list(scenes.values())


def focal_terms(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return two focal losses of every logit, in its shape: if its class is the right one, and if not."""
    scores = logits.sigmoid()
    right = -nn.functional.logsigmoid(logits) * ALPHA * (1 - scores) ** GAMMA
    wrong = -nn.functional.logsigmoid(-logits) * (1 - ALPHA) * scores**GAMMA
    return right, wrong


def layer_loss(logits: Tensor, boxes: Tensor, moment: Moment, weights: Tensor) -> Tensor:
    """Return the loss of a decoder layer, a number: the sum over all queries over the number of objects.

    Without an object that counts as 1.

    Args:
        logits: (R, K) of R queries and K classes.
        boxes: box codes (R, 10) of the queries, see `Moment`.
        moment: the frame, whose objects are matched with the queries one to one.
        weights: (10,) of the numbers of a box code.
    """
    right, wrong = focal_terms(logits)
    labels, count = moment.labels, max(len(moment.labels), 1)
    distance = torch.cdist(boxes * weights, moment.codes * weights, p=1)
    costs = CLASS_WEIGHT * (right - wrong)[:, labels] + BOX_WEIGHT * distance
    rows, columns = linear_sum_assignment(costs.detach().numpy())
    rows, columns = torch.from_numpy(rows), torch.from_numpy(columns)
    classes = wrong.sum() + (right - wrong)[rows, labels[columns]].sum()
    return (CLASS_WEIGHT * classes + BOX_WEIGHT * distance[rows, columns].sum()) / count


def frame_loss(model: nn.Module, moment: Moment, last: tuple | None, size: tuple[int, int]) -> tuple:
    """Return the loss of a frame, summed over the layers, and what the next frame takes as `last`.

    Args:
        model: the detector.
        moment: the frame.
        last: can_bus record (18,) and bird's-eye view of the frame before; None in a scene's first frame.
        size: height and width of the network input, pixels.
    """
    head = model.pts_bbox_head
    before, view = last or (None, None)
    meta = dict(
        can_bus=motion_since(moment.record, before),
        lidar2img=moment.lidar2img,
        pad_shape=[(*size, 3)] * len(moment.lidar2img),
    )
    outputs = head([level[None] for level in model.img_neck(moment.maps)], [meta], view)
    layers = zip(outputs['all_cls_scores'][:, 0], outputs['all_bbox_preds'][:, 0], strict=True)
    loss = sum(layer_loss(logits, boxes, moment, head.code_weights) for logits, boxes in layers)
    return loss, (moment.record, outputs['bev_embed'].detach())


def endless(scenes: list[list[Moment]], seed: int) -> Iterator[tuple[Moment, bool]]:
    """Yield the frames of one random scene after the other, each with whether it begins a scene."""
    rng = random.Random(seed)
    for _ in itertools.count():
        for number, moment in enumerate(rng.choice(scenes)):
            yield moment, number == 0


def train(
    model: nn.Module, scenes: list[list[Moment]], size: tuple[int, int], iterations: int, seed: int
) -> None:
    """Train neck and head of a model in place.

    Args:
        model: the detector; its backbone stays as it is.
        scenes: frames of each scene, of `read_scenes`.
        size: height and width of the network input, pixels.
        iterations: number of steps of the optimiser, each of `SLOTS` frames.
        seed: of the order of the scenes.

    After every 50 iterations their mean loss is printed. Dropout is on if the model is in training mode.
    """
    parameters = [value for name, value in model.named_parameters() if not name.startswith('img_backbone')]
    parameters = [value for value in parameters if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (1 + math.cos(math.pi * step / iterations)) / 2)
    )
    slots = [endless(scenes, seed + slot) for slot in range(SLOTS)]
    memories: list[tuple | None] = [None] * SLOTS
    start, total = time.monotonic(), 0.0
    for iteration in range(1, iterations + 1):
        optimizer.zero_grad()
        for slot, frames in enumerate(slots):
            moment, is_first = next(frames)
            loss, memories[slot] = frame_loss(model, moment, None if is_first else memories[slot], size)
            (loss / SLOTS).backward()
            total += float(loss.detach()) / SLOTS
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        if iteration % 50 == 0:
            print(f'{iteration}: loss {total / 50:.3f}, {time.monotonic() - start:.0f} s', flush=True)
            total = 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Train the toy, write its checkpoint, and return 0; `argv` are the words of the command line.

    It reads `CONFIG` and `BACKBONE`, paths in the repository, which has to be the working directory.

    Raises:
        ConfigError: it is another directory.
        FileNotFoundError: there is no checkpoint `--begin-with`.
        DataError: the infos are missing, or damaged.
        SystemExit: an option is invalid.
    """
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--infos', default='data/toy_nuscenes/toy_nuscenes2d_temporal_infos_train.pkl')
    parser.add_argument('--out', required=True, type=Path, help='checkpoint to write')
    parser.add_argument('--iterations', type=int, default=420)
    parser.add_argument('--seed', type=int, default=0)
    text = 'checkpoint whose weights this run starts with; the optimiser starts fresh'
    parser.add_argument('--begin-with', help=text)
    args = parser.parse_args(argv)
    if args.iterations < 1:
        parser.error(f'--iterations {args.iterations}: expected 1 or more')
    args.out.parent.mkdir(parents=True, exist_ok=True)  # now, not after the training
    compat.apply()
    cfg = load_config(CONFIG)
    family = find_family(cfg)
    torch.manual_seed(args.seed)  # the neck begins with what PyTorch draws
    model, rule = family.build(cfg).eval(), family.preprocess_rule(cfg)
    start_values(model, args.seed)
    weights = torch.load(BACKBONE, weights_only=True)['state_dict']
    prefix = 'img_backbone.'
    model.img_backbone.load_state_dict(
        {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    )
    if args.begin_with:
        model.load_state_dict(torch.load(args.begin_with, weights_only=True)['state_dict'])
    scenes = read_scenes(model, Path(args.infos), rule, list(cfg.data.test.classes))
    train(model, scenes, rule.input_size, args.iterations, args.seed)
    classes = tuple(cfg.data.test.classes)
    torch.save(dict(meta=dict(CLASSES=classes), state_dict=model.state_dict()), args.out)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
