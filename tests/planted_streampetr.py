"""Faults of StreamPETR: its memory, what depends on the rig, decoding, and the preparation of frames."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from planting import arguments, planted, result, settings, traced, when_traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmdeploy_ext.runtime.frames import Frame

PETR, RUNTIME = 'mmdeploy_ext.families.streampetr', 'mmdeploy_ext.families.streampetr.runtime'
STEP, MEMORY, STEPS = (
    f'{PETR}.graphs:PtsHeadMemory.forward',
    'mmdeploy_ext.models.streampetr.memory',
    'mmdeploy_ext.models.streampetr.steps:FrameSteps',
)
STEP_ON_ENGINE, DEPLOY = f'{RUNTIME}.model:StreamPetrOnnx.step', f'{RUNTIME}.deploy:DeployContract.run'
MOTION = 'mmdeploy_ext.runtime.frames:relative_motion'
DECODE = f'{RUNTIME}.model:decode'
BOXES = 'mmdeploy_ext.families.parts.runtime.query_boxes:boxes_of_predictions'
VIEWS, PIPELINE = (
    'mmdeploy_ext.preprocess.cameras:MultiViewRule',
    'mmdeploy_ext.preprocess.cameras:multiview_rule',
)
INFOS, SAMPLE = 'mmdeploy_ext.runtime.infos', f'{PETR}.family:StreamPetrFamily.frame'
INPUTS = dict(ego_motion=9, delta_t_s=10, prev_exists=11)
"""Argument of `STEP` -> its place."""
FAMILY, PADDED = 'streampetr', 'streampetr_padded'  # the pictures of the first fill its input


# ---- the step that is exported


def _step(name: str, change: Callable) -> tuple[str, Callable]:
    place = INPUTS[name]
    return STEP, arguments(lambda *args: (*args[:place], change(args[place]), *args[place + 1 :]))


def _without_translation(motion: torch.Tensor) -> torch.Tensor:
    return torch.cat([motion[..., :3], motion[..., 3:] * 0 + torch.eye(4)[:, 3:]], -1)


planted('the time difference has the other sign', FAMILY, _step('delta_t_s', lambda value: -value))
planted('the ego motion has no translation', FAMILY, _step('ego_motion', _without_translation))
planted(
    'the rotation of the ego motion is transposed',
    FAMILY,
    _step(
        'ego_motion',
        lambda motion: torch.cat(
            [torch.cat([motion[:, :3, :3].transpose(1, 2), motion[:, :3, 3:]], 2), motion[:, 3:]], 1
        ),
    ),
)
planted('a new scene keeps the memory', FAMILY, _step('prev_exists', torch.ones_like))
planted('a time difference is 1 s at most', FAMILY, _step('delta_t_s', lambda value: value.clamp(max=1.0)))
planted(
    'the velocity of the memory is lost',
    FAMILY,
    (STEP, result(lambda outputs, *_: (*outputs[:-1], outputs[-1] * 0))),
)
planted(
    'new rows of the memory in the reverse order',
    FAMILY,
    (
        f'{MEMORY}:push',
        when_traced(
            lambda original, memory, new: original(memory, type(new)(*(rows.flip(1) for rows in new)))
        ),
    ),
)
planted(
    'new rows of the memory behind the old ones',
    FAMILY,
    (f'{MEMORY}:push', when_traced(lambda original, memory, new: original(new, memory))),
)
planted(
    'poses of the memory are moved from the other side',
    FAMILY,
    (
        f'{MEMORY}:move',
        when_traced(
            lambda original, memory, transform, seconds: original(memory, transform, seconds)._replace(
                egopose=memory.egopose @ transform.unsqueeze(1)
            )
        ),
    ),
)
planted(
    'a fresh memory has no poses',
    FAMILY,
    (
        f'{MEMORY}:pre_update',
        when_traced(
            lambda original, memory, transform, seconds, there, *rest: (
                rows := original(memory, transform, seconds, there, *rest)
            )._replace(egopose=rows.egopose * (there > 0).float().view(-1, 1, 1, 1))
        ),
    ),
)
planted(
    'a fresh memory has no pseudo points',
    FAMILY,
    (
        f'{MEMORY}:pre_update',
        traced(arguments(lambda *args: (*args[:4], args[4] * 0, args[5]))),
    ),
)
planted(
    'a row of the memory less is used',
    FAMILY,
    (
        f'{MEMORY}:pre_update',
        traced(
            result(lambda rows, *_: type(rows)(*(torch.cat([one[:, :-1], one[:, -2:-1]], 1) for one in rows)))
        ),
    ),
)
planted(
    'ages are 0.8 s at most',
    FAMILY,
    (
        f'{STEPS}.encode_memory',
        traced(
            arguments(lambda self, memory: (self, memory._replace(timestamp=memory.timestamp.clamp(max=0.8))))
        ),
    ),
)
planted(
    'the velocities of rows are turned',
    FAMILY,
    (
        'mmdeploy_ext.models.streampetr.steps:motion_code',
        traced(arguments(lambda velo, age, pose: (velo.flip(-1), age, pose))),
    ),
)
planted(
    'memory of the best queries by their first class',
    FAMILY,
    (
        f'{STEPS}.select_topk',
        traced(arguments(lambda self, scores, *rest: (self, scores[..., :1], *rest))),
    ),
)
planted(
    'all cameras have the focal length of the first',
    FAMILY,
    (
        f'{PETR}.graphs:RigEmbedding.forward',
        arguments(lambda self, img2lidar, focal: (self, img2lidar, focal[:, :1].expand_as(focal))),
    ),
)
planted(
    'tokens get the focal length of their own camera, other than in training',
    FAMILY,
    (
        'mmdeploy_ext.models.streampetr.steps:focal_per_token',
        traced(
            lambda original: lambda intrinsics, tokens: original(intrinsics, 1).repeat_interleave(tokens, 1)
        ),
    ),
)


def _moved_centres(original: Callable) -> Callable:
    def init(self: Any, *args: Any) -> None:
        original(self, *args)
        self.frustum.add_(torch.tensor([0.5, 0.5, 0, 0]))

    return init


planted(
    'token centres a half pixel off',
    FAMILY,
    (f'{PETR}.graphs:RigEmbedding.__init__', _moved_centres),
)


def _later_queries(original: Callable) -> Callable:
    def init(self: Any, model: Any, *args: Any) -> None:
        import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
        from mmdeploy_ext.models.rays import sine_encoding

        original(self, model, *args)
        head = model.pts_bbox_head
        now, later = (
            head.time_embedding(sine_encoding(torch.full((1, 1, 1), age), head.embed_dims)).detach()
            for age in (0.0, 0.5)
        )
        self.query_pos.add_(later - now)

    return init


planted(
    'learned queries of half a second later',
    FAMILY,
    (f'{PETR}.graphs:PtsHeadMemory.__init__', _later_queries),
)

# ---- the runtime around the graphs


def _with(change: Callable[[Frame], Frame]) -> tuple[str, Callable]:
    return STEP_ON_ENGINE, arguments(lambda self, frame: (self, change(frame)))


planted(
    'a change of the scene is not seen',
    FAMILY,
    _with(lambda frame: dataclasses.replace(frame, scene_token=None)),
)
planted(
    'times are rounded to float32',
    FAMILY,
    _with(lambda frame: dataclasses.replace(frame, timestamp_s=float(np.float32(frame.timestamp_s)))),
)
planted(
    'the ego motion goes from this frame to the last one',
    FAMILY,
    (MOTION, arguments(lambda last, pose: (pose, last))),
)
planted(
    'the ego motion is computed in float32',
    FAMILY,
    (MOTION, lambda original: lambda last, pose: _float32_motion(last, pose)),
)


def _float32_motion(last: np.ndarray, pose: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(np.float32(pose))
    return (inverse @ np.float32(last)).astype(np.float64)


planted(
    'milliseconds between frames',
    FAMILY,
    (
        DEPLOY,
        arguments(
            lambda self, images, rig, moment: (
                self,
                images,
                rig,
                dataclasses.replace(moment, delta_t_s=1e3 * moment.delta_t_s),
            )
        ),
    ),
)
planted(
    'a frame after a scene change gets the memory of the one before it',
    FAMILY,
    (
        DEPLOY,
        arguments(
            lambda self, images, rig, moment: (
                self,
                images,
                rig,
                dataclasses.replace(moment, prev_exists=True),
            )
        ),
    ),
)


def _of_first_rig(original: Callable) -> Callable:
    def run(self: Any, images: Any, calibration: Any, moment: Any) -> Any:
        self.first_rig = getattr(self, 'first_rig', calibration)
        return original(self, images, self.first_rig, moment)

    return run


def _of_first(name: str) -> Callable:
    """Return what keeps one matrix of the first calibration until the other one changes, too."""

    def make(original: Callable) -> Callable:
        def run(self: Any, images: Any, calibration: Any, moment: Any) -> Any:
            other = next(field for field in calibration._fields if field != name)
            key = getattr(calibration, other).tobytes()
            rigs = self.__dict__.setdefault('rigs', {})
            return original(self, images, rigs.setdefault(key, calibration), moment)

        return run

    return make


planted('the position embedding of the first rig stays', FAMILY, (DEPLOY, _of_first_rig))
planted("the rig's cache ignores lidar2img", FAMILY, (DEPLOY, _of_first('lidar2img')))
planted("the rig's cache ignores the intrinsics", FAMILY, (DEPLOY, _of_first('intrinsics')))
planted(
    'lidar2img is not inverted',
    FAMILY,
    (
        DEPLOY,
        arguments(
            lambda self, images, rig, moment: (
                self,
                images,
                rig._replace(lidar2img=np.linalg.inv(rig.lidar2img)),
                moment,
            )
        ),
    ),
)
planted(
    'the second and the third camera have changed places in the rig',
    FAMILY,
    (
        DEPLOY,
        arguments(
            lambda self, images, rig, moment: (
                self,
                images,
                rig._replace(lidar2img=rig.lidar2img[[0, 2, 1, 3, 4, 5]]),
                moment,
            )
        ),
    ),
)

# ---- decoding

planted(
    'scores are a softmax of the classes',
    FAMILY,
    (
        DECODE,
        arguments(
            lambda scores, boxes, facts: (
                scores - np.log(np.exp(scores).sum(-1, keepdims=True)),
                boxes,
                facts,
            )
        ),
    ),
)
planted(
    'one box per query',
    FAMILY,
    (
        DECODE,
        arguments(
            lambda scores, boxes, facts: (
                np.where(scores == scores.max(-1, keepdims=True), scores, -np.inf),
                boxes,
                facts,
            )
        ),
    ),
)
planted(
    'results in the order of x',
    FAMILY,
    (DECODE, result(lambda found, *_: found[np.argsort(found.boxes[:, 0], kind='stable')])),
)
planted(
    'boxes of the decoder layer before the last one',
    FAMILY,
    (DECODE, arguments(lambda scores, boxes, facts: (scores, boxes[:-1], facts))),
)
planted(
    'a result less',
    FAMILY,
    (
        DECODE,
        arguments(lambda scores, boxes, facts: (scores, boxes, {**facts, 'max_num': facts['max_num'] - 1})),
    ),
)
planted(
    'at most 20 results, whatever the config says',
    FAMILY,
    (
        DECODE,
        arguments(
            lambda scores, boxes, facts: (scores, boxes, {**facts, 'max_num': min(facts['max_num'], 20)})
        ),
    ),
)


def _range(change: Callable[[np.ndarray], Any]) -> tuple[str, Callable]:
    return DECODE, arguments(
        lambda scores, boxes, facts: (
            scores,
            boxes,
            {**facts, 'post_center_range': change(np.array(facts['post_center_range'], float))},
        )
    )


planted(
    'boxes of any height are kept', FAMILY, _range(lambda limits: limits + np.array([0, 0, -99, 0, 0, 99]))
)
planted(
    'boxes beyond the upper x are kept', FAMILY, _range(lambda limits: limits + np.array([0, 0, 0, 99, 0, 0]))
)
planted(
    'the score threshold is forgotten',
    FAMILY,
    (DECODE, arguments(lambda scores, boxes, facts: (scores, boxes, {**facts, 'score_threshold': None}))),
)


def _faint(change: Callable) -> Callable:
    """Return a change of results below 0.1."""
    return result(lambda found, *_: change(found, found.scores < 0.1))


def _turned(found: Any, rows: np.ndarray) -> Any:
    boxes = found.boxes.copy()
    boxes[rows, 6] += np.float32(np.pi)
    boxes[rows, 7:] *= -1
    return dataclasses.replace(found, boxes=boxes)


planted('results below 0.1 are dropped', FAMILY, (DECODE, _faint(lambda found, rows: found[~rows])))
planted('results below 0.1 are turned by half', FAMILY, (DECODE, _faint(_turned)))


def _columns(change: Callable) -> tuple[str, Callable]:
    return BOXES, arguments(lambda preds: (change(preds.copy()),))


def _changed(preds: np.ndarray, columns: list[int]) -> np.ndarray:
    return preds[:, columns]


planted('yaw of cosine and sine', FAMILY, _columns(lambda preds: preds[:, [0, 1, 2, 3, 4, 5, 7, 6, 8, 9]]))
planted(
    'width and length have changed places',
    FAMILY,
    _columns(lambda preds: preds[:, [0, 1, 2, 4, 3, 5, 6, 7, 8, 9]]),
)
planted(
    'boxes stand on their centre',
    FAMILY,
    (BOXES, result(lambda boxes, *_: boxes + boxes[:, 5:6] * np.float32([0, 0, 0.5, 0, 0, 0, 0, 0, 0]))),
)
planted(
    'a yaw of the left half-plane is turned',
    FAMILY,
    (
        BOXES,
        result(
            lambda boxes, preds: np.concatenate(
                [boxes[:, :6], np.arctan(preds[:, 6:7] / preds[:, 7:8]), boxes[:, 7:]], 1
            ).astype(np.float32)
        ),
    ),
)
planted(
    'a yaw of half a turn has the other sign',
    FAMILY,
    (BOXES, result(lambda boxes, *_: np.where(np.arange(9) == 6, np.clip(boxes, -3.13, 3.13), boxes))),
)

# ---- facts, class names and the preparation of frames

planted(
    'class names are sorted',
    FAMILY,
    ('mmdeploy_ext.exporting.model:class_names', result(lambda names, *_: tuple(sorted(names)))),
    shared=True,
)


def _rule(**changes: Callable) -> tuple[str, Callable]:
    return PIPELINE, settings(**changes)


planted('the channels are not swapped', FAMILY, _rule(to_rgb=lambda value: not value), shared=True)
planted(
    'mean and std of the other order',
    FAMILY,
    _rule(mean=lambda values: values[::-1], std=lambda values: values[::-1]),
    shared=True,
)
planted('the crop a row lower', FAMILY, _rule(crop=lambda place: (place[0] + 1, place[1])), shared=True)
planted(
    'pictures are resized bilinearly',
    FAMILY,
    (
        'mmdeploy_ext.preprocess.cameras:resize_pillow',
        lambda original: lambda *args, resample, **given: original(*args, resample='bilinear', **given),
    ),
    shared=True,
)
planted(
    'pictures are padded at the top',
    PADDED,
    (
        f'{VIEWS}.apply',
        result(lambda images, self, *_: np.roll(images, self.input_size[0] - self.size[0], 2)),
    ),
    shared=True,
)
planted(
    'the calibration ignores the crop',
    FAMILY,
    (f'{VIEWS}.crop_matrix', result(lambda matrix, *_: np.diag(np.diag(matrix)))),
    shared=True,
)
planted(
    'the calibration is of pictures that are not resized',
    FAMILY,
    (
        f'{VIEWS}.crop_matrix',
        result(
            lambda matrix, *_: matrix / np.array([*[matrix[0, 0]] * 2, *[1] * (len(matrix) - 2)], np.float32)
        ),
    ),
    shared=True,
)
planted(
    'two cameras have changed places',
    FAMILY,
    (
        f'{VIEWS}.apply',
        arguments(lambda self, images: (self, [images[0], images[2], images[1], *images[3:]])),
    ),
    shared=True,
)


def _frames(change: Callable) -> tuple[str, Callable]:
    return f'{INFOS}:read_frames', result(lambda frames, *_: [change(frame) for frame in frames])


planted(
    'camera to LiDAR is taken for LiDAR to camera',
    FAMILY,
    _frames(lambda frame: dataclasses.replace(frame, lidar2cam=np.linalg.inv(frame.lidar2cam))),
    shared=True,
)


def _without_lidar(frame: Any) -> Any:
    from mmdeploy_ext.runtime.frames import invert_pose

    info, mount = frame.info, np.eye(4)
    mount[:3, 3] = info['lidar2ego_translation']
    rotation = np.asarray(info['lidar2ego_rotation'], float)
    if rotation.shape == (4,):
        from pyquaternion import Quaternion

        rotation = Quaternion(rotation).rotation_matrix
    mount[:3, :3] = rotation
    return dataclasses.replace(frame, ego_pose=frame.ego_pose @ invert_pose(mount))


planted('the pose is that of the car, not of the LiDAR', FAMILY, _frames(_without_lidar), shared=True)
planted(
    'times of infos in milliseconds',
    FAMILY,
    _frames(lambda frame: dataclasses.replace(frame, timestamp_s=1e3 * frame.timestamp_s)),
    shared=True,
)
planted(
    "the loader's pose is taken for its inverse",
    FAMILY,
    (
        SAMPLE,
        result(
            lambda frame, *_: dataclasses.replace(
                frame, ego_pose=frame.ego_pose_inv, ego_pose_inv=frame.ego_pose
            )
        ),
    ),
    shared=True,
)
planted(
    "the loader's times are rounded to float32",
    FAMILY,
    (
        SAMPLE,
        result(
            lambda frame, *_: dataclasses.replace(frame, timestamp_s=float(np.float32(frame.timestamp_s)))
        ),
    ),
    shared=True,
)
