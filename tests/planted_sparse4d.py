"""Faults of Sparse4D's instance bank: projection, time, decay, choice of rows, track ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.families.sparse4d.runtime.bank import COSINE, SINE, VELOCITY
from planting import argument, arguments, called, result, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from planting import Change

BANK = 'mmdeploy_ext.families.sparse4d.runtime.bank'
GET, UPDATE, RULE = f'{BANK}:InstanceBank.get', f'{BANK}:InstanceBank.update', f'{BANK}:BankRule.from_facts'
PROJECT, TOP = f'{BANK}:project_anchors', f'{BANK}:top_rows'


def _motion(change: Callable) -> Change:
    return PROJECT, argument(1, change)


def _without_rotation(motion: np.ndarray) -> np.ndarray:
    moved = np.eye(4)
    moved[:3, 3] = motion[:3, 3]
    return moved


def _without_translation(motion: np.ndarray) -> np.ndarray:
    turned = motion.copy()
    turned[:3, 3] = 0
    return turned


def _velocity_not_turned(moved: np.ndarray, anchor: np.ndarray, *_: Any) -> np.ndarray:
    moved = moved.copy()
    moved[..., VELOCITY] = anchor[..., VELOCITY]
    return moved


def _yaw_not_turned(moved: np.ndarray, anchor: np.ndarray, *_: Any) -> np.ndarray:
    moved = moved.copy()
    moved[..., [SINE, COSINE]] = anchor[..., [COSINE, SINE]]
    return moved


def _absolute_time(original: Callable, bank: Any, pose: np.ndarray, time: float) -> Any:
    inputs = original(bank, pose, time)
    return inputs._replace(time_interval=np.abs(inputs.time_interval))


def _ids_from_the_start(original: Callable, bank: Any, *args: Any, **named: Any) -> Any:
    tensors = bank.tensors
    if tensors is not None:
        bank.load(tensors | dict(prev_id=np.zeros(1, np.int64)), bank.ego_pose, bank.timestamp_s)
    return original(bank, *args, **named)


def _confidence_is_of_the_last_frame(
    original: Callable, bank: Any, inputs: Any, *args: Any, **named: Any
) -> Any:
    """Forget the last confidences where the mask is 0, as the time gap suggests."""
    if inputs.exists and not inputs.mask[0]:
        tensors = bank.tensors
        bank.load(
            tensors | dict(confidence=np.zeros_like(tensors['confidence'])), bank.ego_pose, bank.timestamp_s
        )
    return original(bank, inputs, *args, **named)


def _masked(inputs: Any, **changes: Any) -> Any:
    return inputs if inputs.mask[0] or not inputs.exists else inputs._replace(**changes)


BANK_FAULTS: dict[str, tuple[Change, ...]] = {
    'the projection takes the time without its sign': ((PROJECT, argument(2, abs)),),
    'the graph gets the time without its sign': ((GET, called(_absolute_time)),),
    'after a gap anchors move on by 0.5 s': (
        (PROJECT, argument(2, lambda seconds: seconds if 0 < abs(seconds) <= 2 else 0.5)),
    ),
    'the projection has no rotation': (_motion(_without_rotation),),
    'the projection has no translation': (_motion(_without_translation),),
    'the motion is that of the other direction': (_motion(np.linalg.inv),),
    'the velocity of anchors is not used': ((PROJECT, argument(2, lambda seconds: 0.0)),),
    'anchors move on against their velocity': ((PROJECT, argument(2, lambda seconds: -seconds)),),
    'the velocity is not turned': ((PROJECT, result(_velocity_not_turned)),),
    'the yaw is not turned': ((PROJECT, result(_yaw_not_turned)),),
    'sine and cosine stay in their columns': (
        (PROJECT, called(lambda original, *args, **named: original(*args, keeps_yaw_order=True))),
    ),
    'a confidence does not decay': ((RULE, settings(confidence_decay=lambda decay: 1.0)),),
    'the last confidence does not count': ((RULE, settings(confidence_decay=lambda decay: 0.0)),),
    'a gap makes the last confidences forget': ((UPDATE, called(_confidence_is_of_the_last_frame)),),
    'the best row is not handed on': (
        (TOP, called(lambda original, values, count: original(values, count + 1)[1:])),
    ),
    'the last row is another one': (
        (
            TOP,
            called(lambda original, values, count: original(values, count + 1)[[*range(count - 1), count]]),
        ),
    ),
    'rows are handed on in the order of their index': ((TOP, result(lambda rows, *_: np.sort(rows))),),
    'ids begin anew with each frame': ((UPDATE, called(_ids_from_the_start)),),
    'ids go on over a gap': (
        (UPDATE, arguments(lambda bank, inputs, *rest: (bank, inputs._replace(mask=np.ones(1)), *rest))),
    ),
    'the mask of a gap is ignored': ((RULE, settings(max_time_interval=lambda seconds: np.inf)),),
    'a frame at the largest gap is too far away': (
        (RULE, settings(max_time_interval=lambda seconds: np.nextafter(seconds, 0))),
    ),
    'the default interval is that of 10 frames a second': (
        (RULE, settings(default_time_interval=lambda seconds: 0.1)),
    ),
    'stale features are zero': (
        (GET, result(lambda inputs, *_: _masked(inputs, temp_feature=np.zeros_like(inputs.temp_feature)))),
    ),
    'stale anchors are zero': (
        (GET, result(lambda inputs, *_: _masked(inputs, temp_anchor=np.zeros_like(inputs.temp_anchor)))),
    ),
    'a gap takes the graph of the first frame': (
        (GET, result(lambda inputs, *_: _masked(inputs, exists=False))),
    ),
}
"""Name of a fault -> what is replaced by what; see `planting.replaced`."""
OF_THRESHOLD: dict[str, tuple[Change, ...]] = {
    'instances below the threshold get ids': ((RULE, settings(score_threshold=lambda score: None)),),
    'the threshold is 0.1 lower': ((RULE, settings(score_threshold=lambda score: score - 0.1)),),
}
"""Faults that a model with a `score_threshold` alone has."""
