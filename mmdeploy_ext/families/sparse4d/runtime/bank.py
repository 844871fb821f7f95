"""The instance bank of Sparse4D v3: what one frame hands to the next, and the track ids. Needs numpy only.

    bank = InstanceBank(rule, channels=256)
    inputs = bank.get(ego_pose, timestamp_s)                     # what the graph of this frame takes
    feature, anchor, logits = ...                                # what it gives, of its last decoder layer
    ids = bank.update(inputs, feature, anchor, logits).ids       # the bank now holds this frame

Glossary: A anchors of a frame, M of them that are handed on, C channels, K classes. An anchor has 11 numbers
in the LiDAR frame: x, y, z of the centre (m), the logarithms of length, width and height (m), sine and cosine
of the yaw, and the velocity vx, vy, vz (m/s).

The published model does some things that surprise, and was trained with them. The bank does the same, unless
a rule asks for the repaired behaviour, see `REPAIRS`.

Source: HorizonRobotics/Sparse4D c41df4b, models/instance_bank.py and detection3d/detection3d_blocks.py,
lines 251 to 301.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.families.parts.runtime.scores import top_rows
from mmdeploy_ext.runtime.geometry import exact_sigmoid, relative_motion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.runtime.detections import Arrays

COLUMNS = 11
"""Numbers of an anchor."""
CENTRE, LOG_SIZE, SINE, COSINE, VELOCITY = slice(0, 3), slice(3, 6), 6, 7, slice(8, 11)
"""Where an anchor has them."""
NO_ID = -1
"""Stands for an instance without a track id."""
REPAIRS = dict(
    yaw='the projection keeps sine and cosine in their columns; published: it exchanges them',
    gap='a gap of more than max_time_interval empties the bank, but no id is given again; published: the '
    'confidences and the features of before go on into the rows of other instances',
    scene='a change of scene empties the bank; published: nothing does between two scenes',
    class_scores='the scores without centerness are sorted with their boxes; published: they are not',
)
"""Name of a repair -> what it changes."""


@dataclasses.dataclass(frozen=True)
class BankRule:
    """The numbers of a bank, which a file has in its `postprocess` entry, and repairs, which no file has.

    Attributes:
        num_instances: A.
        num_temp: M.
        confidence_decay: factor by which a confidence of the last frame counts in this one.
        default_time_interval: seconds that a graph gets if there is no last frame, if it is more than
            `max_time_interval` away, or if both have one time.
        max_time_interval: seconds; largest distance of two frames, forwards or backwards, that still belong
            together. The distance is rounded to float32 before it is compared, as PyTorch's is.
        score_threshold: smallest score, before the decay, of an instance that gets a new id; None: every one
            gets one.
        repairs: keys of `REPAIRS`. The bank itself follows `yaw` and `gap`; `scene` is for who calls it and
            then calls `reset` (`Sparse4DOnnx`, by `Frame.scene_token`), and `class_scores` for the decoder of
            boxes.
    """

    num_instances: int
    num_temp: int
    confidence_decay: float
    default_time_interval: float
    max_time_interval: float
    score_threshold: float | None = None
    repairs: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for a repair that does not exist."""
        if unknown := [name for name in self.repairs if name not in REPAIRS]:
            raise ValueError(f'repairs: got {unknown[0]!r}, expected some of {", ".join(REPAIRS)}')

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], repairs: Sequence[str] = ()) -> BankRule:
        """Return the rule in `facts`, the `Metadata.postprocess` of a file, with the caller's `repairs`.

        `Sparse4DOnnx.metadata` is the metadata of a loaded file; other keys of `facts` are not used.
        """
        names = [field.name for field in dataclasses.fields(cls) if field.name != 'repairs']
        return cls(**{name: facts[name] for name in names}, repairs=tuple(repairs))


class TemporalInputs(NamedTuple):
    """What the bank gives to the graph of a frame, and what `InstanceBank.update` needs of it again.

    Attributes:
        temp_feature: (1, M, C) float32, features of the last frame; zeros if there is none.
        temp_anchor: (1, M, 11) float32, its anchors projected into this frame; zeros if there is none.
        time_interval: (1,) float32, seconds since the last frame, below 0 if time runs backwards, or the
            default.
        mask: (1,) float32, 1 if the last frame belongs to this one, else 0.
        exists: whether there is a last frame, however long ago; with the repair `gap` only one that is near.
            Without one the deploy contract runs its graph of first frames; the portable graph, one for all
            frames, gets it as `has_temp`.
        track_id: (1, A) int64, the ids of the last frame's instances, then `NO_ID`; not yet masked.
        ego_pose: (4, 4) float64 of this frame, LiDAR to global.
        timestamp_s: seconds, absolute, of this frame.
    """

    temp_feature: np.ndarray
    temp_anchor: np.ndarray
    time_interval: np.ndarray
    mask: np.ndarray
    exists: bool
    track_id: np.ndarray
    ego_pose: np.ndarray
    timestamp_s: float


class BankUpdate(NamedTuple):
    """What a frame became in the bank.

    Attributes:
        ids: (1, A) int64, track ids of its rows; `NO_ID` for those without one.
        confidence: (1, A) float32, by which rows are handed on: the score of the best class, or in the first
            M rows the confidence of the last frame's instance times the decay, if that is larger, also where
            `mask` is 0 and these rows are no instances of that frame (not with the repair `gap`).
        kept: (M,) int64, the rows that are handed on, the most confident first, or those that `update` was
            given, as they are.
    """

    ids: np.ndarray
    confidence: np.ndarray
    kept: np.ndarray


def project_anchors(
    anchor: np.ndarray, motion: np.ndarray, seconds: float, *, keeps_yaw_order: bool = False
) -> np.ndarray:
    """Return anchors (..., 11) where they are `seconds` later, in the LiDAR frame of then; float32.

    They move on by their velocity and are turned and shifted, in float64, with one rounding at the end.

    Args:
        anchor: (..., 11), see the module.
        motion: (4, 4) float64, from the LiDAR frame of the anchors to the one of then.
        seconds: from the time of the anchors to then; negative where time runs backwards.
        keeps_yaw_order: whether sine and cosine stay in their columns. The published model turns the pair
            (cosine, sine), and stores it in this order into the columns of sine and cosine.
    """
    anchor = np.asarray(anchor, np.float64)
    rotation = np.asarray(motion, np.float64)[:3, :3]
    moved = anchor.copy()
    place = anchor[..., CENTRE] + anchor[..., VELOCITY] * seconds
    moved[..., CENTRE] = place @ rotation.T + np.asarray(motion, np.float64)[:3, 3]
    moved[..., VELOCITY] = anchor[..., VELOCITY] @ rotation.T
    heading = anchor[..., [COSINE, SINE]] @ rotation[:2, :2].T  # cosine, sine
    moved[..., [COSINE, SINE] if keeps_yaw_order else [SINE, COSINE]] = heading
    return moved.astype(np.float32)


class InstanceBank:
    """The memory of a stream of frames, see the module.

    Attributes:
        rule: its numbers.
        channels: C.
        ego_pose, timestamp_s: of the last frame, see `TemporalInputs`; None if the bank is empty.
    """

    def __init__(self, rule: BankRule, channels: int) -> None:
        self.rule, self.channels = rule, channels
        self.reset()

    def reset(self) -> None:
        """Empty the bank; the next ids begin with 0 again."""
        self._tensors: dict[str, np.ndarray] | None = None
        self.ego_pose: np.ndarray | None = None
        self.timestamp_s: float | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what the bank holds.

        `cached_feature`, `cached_anchor` (in the LiDAR frame of the last frame) and `confidence` are float32,
        `instance_id` and `prev_id` (the next id that is not given yet) are int64.
        """
        rows = self.rule.num_temp
        return dict(
            cached_feature=(1, rows, self.channels),
            cached_anchor=(1, rows, COLUMNS),
            confidence=(1, rows),
            instance_id=(1, rows),
            prev_id=(1,),
        )

    @property
    def tensors(self) -> dict[str, np.ndarray] | None:
        """A copy of what the bank holds, by the names of `shapes`; None if it is empty."""
        return self._tensors and {name: values.copy() for name, values in self._tensors.items()}

    def load(self, tensors: Arrays, ego_pose: np.ndarray, timestamp_s: float) -> None:
        """Hold `tensors`, see `shapes`, as those of a last frame.

        Args:
            tensors: as the property `tensors` gives them.
            ego_pose: (4, 4), LiDAR frame of the last frame to global.
            timestamp_s: its time, absolute.

        Raises:
            ShapeError: one is missing, has another shape, NaN or infinity.
        """
        loaded = {}
        for name, shape in self.shapes.items():
            if name not in tensors:
                raise ShapeError(f'state: has no tensor {name!r}; expected {", ".join(self.shapes)}')
            values = np.asarray(tensors[name])
            if values.shape != shape:
                raise ShapeError(
                    f'state: {name!r} has shape {values.shape}, expected {shape}; it is of another model'
                )
            if not np.isfinite(values).all():  # before integers are made of them
                raise ShapeError(f'state: {name!r} has NaN or infinity; call reset() to begin anew')
            loaded[name] = values.astype(np.int64 if name.endswith('_id') else np.float32)
        self._tensors = loaded
        self.ego_pose, self.timestamp_s = np.array(ego_pose, np.float64), float(timestamp_s)

    def get(self, ego_pose: np.ndarray, timestamp_s: float) -> TemporalInputs:
        """Return what the graph of a frame takes; the bank stays as it is until `update`.

        Args:
            ego_pose: (4, 4) float64, LiDAR frame of this frame to global.
            timestamp_s: its time in seconds, absolute, float64.
        """
        rule = self.rule
        ego_pose, timestamp_s = np.array(ego_pose, np.float64), float(timestamp_s)
        track_id = np.full((1, rule.num_instances), NO_ID, np.int64)
        interval, is_near = rule.default_time_interval, False
        if self._tensors is not None:
            gap = np.float32(timestamp_s - self.timestamp_s)
            is_near = bool(abs(gap) <= rule.max_time_interval)
        if self._tensors is None or ('gap' in rule.repairs and not is_near):
            feature, anchor = (
                np.zeros(self.shapes[name], np.float32) for name in ('cached_feature', 'cached_anchor')
            )
            exists = False
        else:
            # by the true gap, also after a long one: the default stands in `time_interval` alone
            anchor = project_anchors(
                self._tensors['cached_anchor'],
                relative_motion(self.ego_pose, ego_pose),
                float(gap),
                keeps_yaw_order='yaw' in rule.repairs,
            )
            feature, exists = self._tensors['cached_feature'].copy(), True
            track_id[:, : rule.num_temp] = self._tensors['instance_id']
            interval = gap if is_near and gap != 0 else interval
        time_interval, mask = np.array([interval], np.float32), np.array([is_near and exists], np.float32)
        return TemporalInputs(feature, anchor, time_interval, mask, exists, track_id, ego_pose, timestamp_s)

    def update(
        self,
        inputs: TemporalInputs,
        feature: np.ndarray,
        anchor: np.ndarray,
        logits: np.ndarray,
        kept: np.ndarray | None = None,
    ) -> BankUpdate:
        """Take a frame into the bank; return its track ids, its confidences and the rows that are handed on.

        Args:
            inputs: of `get`, with which the graph ran.
            feature: (1, A, C) of the last decoder layer. Its first M rows are the instances of the last frame
                where `mask` is 1.
            anchor: (1, A, 11), likewise.
            logits: (1, A, K), likewise.
            kept: (M,) rows to hand on instead of the most confident ones, which None takes: those of a
                reference, in which equal confidences have another order.
        """
        rule = self.rule
        raw = exact_sigmoid(np.asarray(logits).max(-1))
        confidence = raw.copy()
        if inputs.exists:
            # where the mask is 0, too, though these rows are other instances then
            decayed = self._tensors['confidence'] * np.float32(rule.confidence_decay)
            confidence[:, : rule.num_temp] = np.maximum(decayed, confidence[:, : rule.num_temp])
        kept = top_rows(confidence[0], rule.num_temp) if kept is None else np.asarray(kept, np.int64)
        ids = np.where(inputs.mask[0] > 0, inputs.track_id, NO_ID)
        is_new = ids == NO_ID
        if rule.score_threshold is not None:
            is_new &= raw >= np.float32(rule.score_threshold)
        # after the repair of a gap, too, no id is given twice
        next_id = 0 if self._tensors is None else int(self._tensors['prev_id'][0])
        count = int(is_new.sum())
        ids[is_new] = next_id + np.arange(count)
        self._tensors = dict(
            cached_feature=np.array(feature[:, kept], np.float32),
            cached_anchor=np.array(anchor[:, kept], np.float32),
            confidence=confidence[:, kept],
            instance_id=ids[:, kept],
            prev_id=np.array([next_id + count], np.int64),
        )
        self.ego_pose, self.timestamp_s = inputs.ego_pose, inputs.timestamp_s
        return BankUpdate(ids, confidence, kept)
