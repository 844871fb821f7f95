"""The toy StreamPETR's model, its frames for the runtime, and its results in PyTorch."""

from __future__ import annotations

import copy
import dataclasses
import functools
import shutil
from typing import TYPE_CHECKING

import numpy as np
import torch

import toy_streampetr as toy
from mm2onnx_driving.streampetr.runtime import StreamPetrFacts
from mmdeploy_ext.runtime.frames import Frame

if TYPE_CHECKING:
    from pathlib import Path

FACTS = StreamPetrFacts(
    num_classes=toy.NUM_CLASSES,
    max_num=20,
    post_center_range=tuple(toy.POSITION_RANGE),
    score_threshold=None,
    memory_len=toy.MEMORY_LEN,
    topk_proposals=toy.NUM_PROPAGATED,
    num_propagated=toy.NUM_PROPAGATED,
)


@functools.cache
def model(seed: int = 0):
    """Return a seeded toy in evaluation mode whose scores are spread, so that its top-k has no near-ties."""
    built = toy.build(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in built.pts_bbox_head.named_parameters():
            if name.endswith(('gamma.weight', 'beta.weight')):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
            if name.startswith(('cls_branches', 'reg_branches')) and value.dim() > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / value.shape[1]) ** 0.5)
            if name.startswith('cls_branches') and name.endswith('.6.bias'):
                value.fill_(-1.5)
    return built


def write(folder: Path) -> None:
    """Copy the toy's files of the deploy contract into a folder."""
    import toy_streampetr_deploy

    for path in toy_streampetr_deploy.files():
        shutil.copy(path, folder)


def frame(index: int, scene: str = 'scene0', seed: int | None = None) -> Frame:
    """Return the frame that `toy_streampetr.test_inputs(index, ...)` is."""
    data = toy.test_inputs(index, index if seed is None else seed, scene)
    one = {key: data[key][0][0].numpy() for key in ('lidar2img', 'intrinsics', 'ego_pose', 'ego_pose_inv')}
    return Frame(
        images=data['img'][0][0].numpy(),
        timestamp_s=float(data['timestamp'][0][0]),
        scene_token=scene,
        name=f'{scene}_{index}',
        **{key: value.astype(np.float64) for key, value in one.items()},
    )


def far(frame: Frame, metres: float, seconds: float) -> Frame:
    """Return a frame of the same drive elsewhere on the map and at another time."""
    pose = frame.ego_pose.copy()
    pose[:2, 3] += metres
    return dataclasses.replace(
        frame, ego_pose=pose, ego_pose_inv=None, timestamp_s=frame.timestamp_s + seconds
    )


def eager(frames: list[Frame], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[dict]:
    """Run the unpatched model over frames; per frame its outputs and the state after it, global, in numpy."""
    detector = model(seed) if dtype == torch.float32 else copy.deepcopy(model(seed)).to(dtype)
    detector.prev_scene_token = None
    detector.pts_bbox_head.reset_memory()
    results = []
    meta = toy.test_inputs()['img_metas'][0][0]
    with torch.no_grad():
        for item in frames:
            keys = ('lidar2img', 'intrinsics', 'ego_pose', 'ego_pose_inv')
            data = {key: torch.from_numpy(getattr(item, key)).to(dtype)[None] for key in keys}
            data['timestamp'] = torch.tensor([item.timestamp_s], dtype=torch.float64)
            image = torch.from_numpy(item.images).to(dtype)[None]
            metas = [dict(meta, scene_token=item.scene_token)]
            outputs = detector.run_frame(metas, image, **data)
            state = {key: value.numpy() for key, value in detector.pts_bbox_head.memory._asdict().items()}
            bboxes, scores, labels = detector.pts_bbox_head.get_bboxes(outputs, metas)[0]
            results.append(
                dict(
                    all_cls_scores=outputs['all_cls_scores'].numpy(),
                    all_bbox_preds=outputs['all_bbox_preds'].numpy(),
                    state=state,
                    boxes=bboxes.tensor.numpy(),
                    scores=scores.numpy(),
                    labels=labels.numpy(),
                )
            )
    return results
