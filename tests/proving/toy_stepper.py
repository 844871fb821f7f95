"""A streaming model of a few matrices in numpy: it remembers, moves its memory and resets as real ones do."""

import dataclasses
import itertools

import numpy as np

from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
from mmdeploy_ext.runtime.geometry import invert_pose
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, TensorSpec

LEARNED, TOPK, KEPT, CHANNELS, CLASSES, LAYERS = 8, 4, 12, 6, 3, 2
QUERIES, ROWS = LEARNED + TOPK, KEPT + TOPK
PLACES = (('reference_point', 'all_bbox_preds', (0, 1, 2)), ('velo', 'all_bbox_preds', (8, 9)))
MEMORY = MemorySpec(
    tensors=dict(
        embedding=ColumnGroup(rtol=0.0, atol=5e-4),
        reference_point=ColumnGroup(unit='m', rtol=0.0, atol=2e-3),
        timestamp=ColumnGroup(unit='s', rtol=0.0, atol=1e-5),
        egopose=ColumnGroup(rtol=0.0, atol=2e-4),
        velo=ColumnGroup(unit='m/s', rtol=0.0, atol=2e-4),
    ),
    needed=('all_cls_scores', 'all_bbox_preds'),
    per_query=('all_cls_scores', 'all_bbox_preds'),
    scores='all_cls_scores',
    places=PLACES,
    topk=TOPK,
    propagated=TOPK,
)
RESET_AFTER_S = 2.0
GROUPS = (
    ColumnGroup('x y z', (0, 1, 2), 'm', rtol=0.0, atol=5e-3),
    ColumnGroup('log sizes', (3, 4, 5), rtol=0.0, atol=1e-3),
    ColumnGroup('sin cos', (6, 7), rtol=0.0, atol=1e-3),
    ColumnGroup('velocity', (8, 9), 'm/s', rtol=0.0, atol=1e-3),
)
SPEC = GraphSpec(
    'toy',
    (),
    (
        TensorSpec(
            'all_cls_scores',
            'float32',
            (LAYERS, 1, QUERIES, CLASSES),
            groups=(ColumnGroup(unit='logit', rtol=0.0, atol=1e-3),),
        ),
        TensorSpec('all_bbox_preds', 'float32', (LAYERS, 1, QUERIES, 10), groups=GROUPS),
    ),
)


class Steps:
    """A side that gives these results, one after the other and again, and the same memory."""

    def __init__(self, results, after):
        self.results, self.after, self.state = itertools.cycle(results), after, None

    def reset(self):
        self.state = None

    def step(self, frame):
        self.state = self.after
        return next(self.results)


class ToyStepper:
    """See the module.

    Attributes:
        noise: relative error of every matrix product, as another engine rounds.
        state: the memory.
    """

    def __init__(self, noise: float = 0.0, seed: int = 0, logit: float = 0.0) -> None:
        self.state: StreamState | None = None
        self.noise, self.logit = noise, logit
        self.rng = np.random.default_rng(99)
        rng = np.random.default_rng(seed)
        self.image_weight = rng.normal(size=(12, LEARNED, CHANNELS)) / 4
        self.query = rng.normal(size=(LEARNED, CHANNELS))
        self.place_weight = rng.normal(size=(10, CHANNELS)) / 30
        self.class_weight, self.box_weight = (
            rng.normal(size=(CHANNELS, columns)) for columns in (CLASSES, 10)
        )
        self.reference = rng.uniform(-30, 30, (LEARNED, 3))

    def reset(self) -> None:
        self.state = None

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        value = left @ right
        return value * (1 + self.noise * self.rng.standard_normal(value.shape)) if self.noise else value

    def step(self, frame: Frame) -> StepResult:
        was_reset = self.needs_reset(frame)
        memory = self.empty() if was_reset else self.moved(self.state, frame)
        embedding, outputs = self.network(frame, memory)
        self.state = StreamState(
            self.push(memory, embedding, outputs), frame.ego_pose, frame.timestamp_s, frame.scene_token
        )
        return StepResult(outputs, self.detections(outputs), was_reset)

    def needs_reset(self, frame: Frame) -> bool:
        state = self.state
        return (
            state is None
            or state.scene_token != frame.scene_token
            or not 0 < frame.timestamp_s - state.timestamp_s < RESET_AFTER_S
        )

    def empty(self) -> dict[str, np.ndarray]:
        memory = dict(
            embedding=np.zeros((1, KEPT, CHANNELS)),
            reference_point=np.zeros((1, KEPT, 3)),
            timestamp=np.zeros((1, KEPT, 1)),
            egopose=np.zeros((1, KEPT, 4, 4)),
            velo=np.zeros((1, KEPT, 2)),
        )
        memory['reference_point'][0, :TOPK] = self.reference[:TOPK] / 2
        memory['egopose'][0, :TOPK] = np.eye(4)
        return memory

    def ego_motion(self, state: StreamState, frame: Frame) -> np.ndarray:
        return invert_pose(frame.ego_pose) @ state.ego_pose

    def moved(self, state: StreamState, frame: Frame) -> dict[str, np.ndarray]:
        motion = self.ego_motion(state, frame)
        memory = {key: array[:, :KEPT].astype(np.float64) for key, array in state.tensors.items()}
        places = memory['reference_point'] @ motion[:3, :3].T + motion[:3, 3]
        age = memory['timestamp'] + (frame.timestamp_s - state.timestamp_s)
        return {**memory, 'reference_point': places, 'egopose': motion @ memory['egopose'], 'timestamp': age}

    def network(self, frame: Frame, memory: dict) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        colours = (
            frame.images.reshape(len(frame.images), 3, 2, -1).mean(-1).mean(0).ravel().astype(np.float64)
        )
        seen = self.query + np.einsum('i,iqc->qc', np.concatenate([colours, colours**2]), self.image_weight)
        facts = np.concatenate(
            [memory['reference_point'][0], memory['timestamp'][0], memory['egopose'][0, :, :3, 3] / 10], 1
        )
        facts = np.concatenate([facts, memory['velo'][0], facts[:, :1] * 0 + 1], 1)
        remembered = memory['embedding'][0] + self.product(facts, self.place_weight)
        queries = np.concatenate([seen, remembered[:TOPK]]) + 0.1 * remembered.mean(0)
        embedding = np.tanh(queries)
        reference = np.concatenate([self.reference, memory['reference_point'][0, :TOPK]])
        boxes = self.product(embedding, self.box_weight)
        boxes[:, :3] += reference
        logits = self.product(embedding, self.class_weight) + self.logit
        outputs = dict(
            all_cls_scores=np.stack([logits * 0.9, logits])[:, None].astype(np.float32),
            all_bbox_preds=np.stack([boxes * 0.9, boxes])[:, None].astype(np.float32),
        )
        return embedding, outputs

    def chosen(self, outputs: dict) -> np.ndarray:
        return np.argsort(-outputs['all_cls_scores'][-1, 0].max(-1), kind='stable')[:TOPK]

    def push(self, memory: dict, embedding: np.ndarray, outputs: dict) -> dict[str, np.ndarray]:
        chosen = self.chosen(outputs)
        boxes = outputs['all_bbox_preds'][-1, 0, chosen]
        new = dict(
            embedding=embedding[chosen],
            reference_point=boxes[:, :3],
            timestamp=np.zeros((TOPK, 1)),
            egopose=np.tile(np.eye(4), (TOPK, 1, 1)),
            velo=boxes[:, 8:],
        )
        return {
            key: np.concatenate([value[None], memory[key]], 1).astype(np.float32)
            for key, value in new.items()
        }

    def detections(self, outputs: dict) -> Detections3D:
        boxes, logits = outputs['all_bbox_preds'][-1, 0], outputs['all_cls_scores'][-1, 0]
        scores, labels = 1 / (1 + np.exp(-logits.max(-1))), logits.argmax(-1)
        order = np.argsort(-scores, kind='stable')
        yaw = np.arctan2(boxes[:, 6], boxes[:, 7])
        boxes = np.concatenate([boxes[:, :3], np.exp(boxes[:, 3:6]), yaw[:, None], boxes[:, 8:]], 1)
        return Detections3D(boxes[order].astype(np.float32), scores[order], labels[order])


class Altered(ToyStepper):
    """A toy whose result or memory a test changes: `alter(stepper, frame, result) -> result`."""

    def __init__(self, alter, **options) -> None:
        super().__init__(**options)
        self.alter, self.count = alter, 0

    def step(self, frame: Frame) -> StepResult:
        result = self.alter(self, frame, super().step(frame))
        self.count += 1
        return result

    def remember(self, **tensors: np.ndarray) -> None:
        self.state = dataclasses.replace(self.state, tensors={**self.state.tensors, **tensors})
