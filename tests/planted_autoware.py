"""Faults of folders for lidar_centerpoint: the graphs, the texts beside them, and the port of the node."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from planting import arguments, planted, result, settings, traced

if TYPE_CHECKING:
    from collections.abc import Callable

HERE, RUNTIME = 'mmdeploy_ext.families.centerpoint.autoware', 'mmdeploy_ext.consumers.autoware'
OUTPUTS, PARAMETERS, ENCODER = (
    f'{HERE}:{name}' for name in ('node_outputs', 'parameters', 'PillarEncoder.forward')
)
TEXT, REMAPPER, WORDS = (
    f'{RUNTIME}.manifest:{name}' for name in ('parameter_text', 'remapper_text', 'class_words')
)
DECORATED, SCATTERED = f'{RUNTIME}.pillars:decorated', f'{RUNTIME}.pillars:scattered'
DECODE, PASSING, SUPPRESSED, OVERLAP = (
    f'{RUNTIME}.boxes:{name}' for name in ('decode', 'passing', 'suppressed', 'overlap_nms')
)
DETECTIONS, SETTINGS = f'{RUNTIME}.boxes:NodeObjects.detections', f'{RUNTIME}.settings:CenterPointSettings.of'
TOY = 'autoware_varied'
NAMES = 'heatmap', 'reg', 'height', 'dim', 'rot', 'vel'


# ---- the graphs


def _graph(name: str, change: Callable) -> tuple[str, Callable]:
    """Return a fault of one output of the head."""
    place = NAMES.index(name)
    return OUTPUTS, traced(
        result(lambda outputs, *_: (*outputs[:place], change(outputs[place]), *outputs[place + 1 :]))
    )


planted('length, width and height', TOY, _graph('dim', lambda dim: dim[:, [1, 0, 2]]))
planted('the yaw of mmdet3d 1.0', TOY, _graph('rot', lambda rot: -rot.flip(1)))
planted('cosine and sine', TOY, _graph('rot', lambda rot: rot.flip(1)))
planted('the yaw of the other sign', TOY, _graph('rot', lambda rot: -rot))
planted('velocities of y and x', TOY, _graph('vel', lambda vel: vel.flip(1)))
planted('offsets of y and x', TOY, _graph('reg', lambda reg: reg.flip(1)))
planted(
    'heights of the bottom',
    TOY,
    (
        OUTPUTS,
        traced(
            result(lambda outputs, *_: (*outputs[:2], outputs[2] - outputs[3][:, 2:].exp() / 2, *outputs[3:]))
        ),
    ),
)
planted('scores instead of logits', TOY, _graph('heatmap', lambda heat: heat.sigmoid()))
planted('the last class is the background', TOY, _graph('heatmap', lambda heat: heat.roll(1, 1)))
planted(
    'boxes of mmdet3d 1.0 in both',
    TOY,
    (
        OUTPUTS,
        traced(
            result(
                lambda outputs, *_: (*outputs[:3], outputs[3][:, [1, 0, 2]], -outputs[4].flip(1), outputs[5])
            )
        ),
    ),
)
planted(
    'pillars of the mean of their points',
    TOY,
    (
        ENCODER,
        traced(
            lambda original: (
                lambda self, features: original(self, features.mean(1, keepdim=True).expand_as(features))
            )
        ),
    ),
)
planted(
    'the encoder takes points without their offsets',
    TOY,
    (
        ENCODER,
        traced(
            arguments(
                lambda self, features: (
                    self,
                    features * (features.new_ones(features.shape[2]).cumsum(0) < 8).float(),
                )
            )
        ),
    ),
)

# ---- the manifest


def _model(**changes: Callable) -> tuple[str, Callable]:
    """Return a fault of keys below model_params."""

    def wrong(found: dict[str, Any], *_: Any) -> dict[str, Any]:
        model = found['model_params']
        return found | dict(model_params=model | {key: of(model[key]) for key, of in changes.items()})

    return PARAMETERS, result(wrong)


def _thresholds(change: Callable[[dict[str, Any]], dict[str, Any]]) -> tuple[str, Callable]:
    return _model(detection_score_thresholds=lambda values: values | change(values))


for _name, _change in {
    'class names in the other order': _model(class_names=lambda names: names[::-1]),
    'has_twist is false': _model(has_twist=lambda _: False),
    'has_variance is true': _model(has_variance=lambda _: True),
    'point_feature_size 5': _model(point_feature_size=lambda _: 5),
    'encoder_in_feature_size 9': _model(encoder_in_feature_size=lambda _: 9),
    'max_voxel_size of training': _model(max_voxel_size=lambda count: count - 100),
    'max_voxel_size 40000': _model(max_voxel_size=lambda _: 40_000),
    'the range of y and x': _model(point_cloud_range=lambda cloud: [cloud[at] for at in (1, 0, 2, 4, 3, 5)]),
    'the range of z a metre lower': _model(
        point_cloud_range=lambda cloud: [*cloud[:2], cloud[2] - 1, *cloud[3:5], cloud[5] - 1]
    ),
    'the voxel size of y and x': _model(voxel_size=lambda size: [size[1], size[0], size[2]]),
    'downsample_factor 1': _model(downsample_factor=lambda _: 1),
    'yaw_norm_thresholds 0.3': _model(yaw_norm_thresholds=lambda values: [0.3] * len(values)),
    'scores of the training': _thresholds(
        lambda values: dict(min_confidence_scores={name: [0.35] for name in values['min_confidence_scores']})
    ),
    'scores 5 % higher': _thresholds(
        lambda values: dict(
            min_confidence_scores={
                name: [1.05 * score for score in scores]
                for name, scores in values['min_confidence_scores'].items()
            }
        )
    ),
    'the nearest bin of distance alone': _thresholds(
        lambda values: dict(distance_bin_upper_limits=[values['distance_bin_upper_limits'][0] / 2])
    ),
}.items():
    planted(f'manifest: {_name}', TOY, _change, shared=True)
planted(
    'manifest: version 4.0',
    TOY,
    (PARAMETERS, result(lambda found, *_: found | dict(version='4.0'))),
    shared=True,
)
planted(
    'manifest: the head is the encoder',
    TOY,
    (PARAMETERS, result(lambda found, *_: found | dict(head_onnx_path=found['encoder_onnx_path']))),
    shared=True,
)
planted(
    'manifest: engines of float16',
    TOY,
    (PARAMETERS, result(lambda found, *_: found | dict(trt_precision='fp16'))),
    shared=True,
)
planted(
    'manifest: keys are not below the node',
    TOY,
    (TEXT, result(lambda text, *_: text.replace('/**', '/lidar_centerpoint/**'))),
    shared=True,
)
planted(
    'manifest: whole numbers without a point',
    TOY,
    (TEXT, result(lambda text, *_: text.replace('.0,', ',').replace('.0]', ']'))),
    shared=True,
)
planted(
    'class names in small letters',
    TOY,
    (WORDS, result(lambda words, *_: [word.lower() for word in words])),
    shared=True,
)
planted('class names are sorted', TOY, (WORDS, result(lambda words, *_: sorted(words))), shared=True)
planted(
    'the remapper allows every class',
    TOY,
    (REMAPPER, result(lambda text, *_: text.replace('[0,', '[1,', 1))),
    shared=True,
)
planted(
    'the remapper has 63 numbers',
    TOY,
    (REMAPPER, result(lambda text, *_: text.replace('[0, ', '[', 1))),
    shared=True,
)

# ---- what the node does with points


def _pillars(change: Callable) -> tuple[str, Callable]:
    return DECORATED, result(lambda found, points, settings: change(*found, settings))


def _columns(features: np.ndarray, columns: Any, factor: float) -> np.ndarray:
    features = features.copy()
    features[..., columns] *= np.float32(factor)
    return features


for _name, _change in {
    'x and y of the map': lambda features, at, _: (features, at[:, ::-1]),
    'rows of the map from the last': lambda features, at, settings: (
        features,
        np.stack([settings.grid[1] - 1 - at[:, 0], at[:, 1]], 1),
    ),
    'no offsets from the mean': lambda features, at, settings: (
        _columns(features, slice(settings.point_width, settings.point_width + 3), 0),
        at,
    ),
    'no offsets from the centre': lambda features, at, settings: (
        _columns(features, slice(settings.point_width + 3, None), 0),
        at,
    ),
    'time lags in milliseconds': lambda features, at, settings: (
        _columns(features, settings.point_width - 1, 1e3),
        at,
    ),
    'the last pillar is lost': lambda features, at, _: (features[:-1], at[:-1]),
}.items():
    planted(f'node: {_name}', TOY, _pillars(_change))


def _points(change: Callable) -> tuple[str, Callable]:
    return DECORATED, arguments(lambda points, settings: (change(np.array(points), settings), settings))


planted('node: the last points of a pillar', TOY, _points(lambda points, _: points[::-1]))
planted(
    'node: cells are rounded',
    TOY,
    _points(
        lambda points, settings: (
            points + np.float32([*(np.array(settings.voxel[:2]) / 2), *[0] * (points.shape[1] - 2)])
        )
    ),
)
planted(
    'node: points of any height',
    TOY,
    _points(
        lambda points, settings: np.where(
            np.arange(points.shape[1]) == 2, points.clip(settings.cloud[2], settings.cloud[5] - 1e-3), points
        ).astype(np.float32)
    ),
)
planted(
    'node: features of pillars are added up',
    TOY,
    (SCATTERED, arguments(lambda features, at, settings: (features * np.float32(2), at, settings))),
)

# ---- what the node does with boxes


def _head(name: str, change: Callable) -> tuple[str, Callable]:
    return DECODE, arguments(lambda outputs, settings: ({**outputs, name: change(outputs[name])}, settings))


planted('node: sine and cosine', TOY, _head('rot', lambda rot: rot[:, ::-1]))
planted('node: length, width and height', TOY, _head('dim', lambda dim: dim[:, [1, 0, 2]]))
planted('node: no offsets of centres', TOY, _head('reg', lambda reg: reg * 0))
planted(
    'node: a stride for each voxel',
    TOY,
    (DECODE, arguments(lambda outputs, settings: (outputs, dataclasses.replace(settings, stride=1)))),
)
planted(
    'node: the voxel size of x along y',
    TOY,
    (
        DECODE,
        arguments(
            lambda outputs, settings: (outputs, dataclasses.replace(settings, voxel=(settings.voxel[0],) * 3))
        ),
    ),
)
planted(
    'node: twists along x and y',
    TOY,
    (
        DETECTIONS,
        lambda original: (
            lambda self: dataclasses.replace(
                original(self), boxes=np.concatenate([original(self).boxes[:, :7], self.twists], 1)
            )
        ),
    ),
)
planted(
    'node: boxes stand on their centre',
    TOY,
    (
        DETECTIONS,
        result(
            lambda found, self: dataclasses.replace(
                found, boxes=np.concatenate([found.boxes[:, :2], self.places[:, 2:], found.boxes[:, 3:]], 1)
            )
        ),
    ),
)
planted(
    'node: results in the order of x',
    TOY,
    (DETECTIONS, result(lambda found, *_: found[np.argsort(found.boxes[:, 0], kind='stable')])),
)
planted(
    'node: results below 0.1 are dropped',
    TOY,
    (DETECTIONS, result(lambda found, *_: found[found.scores >= 0.1])),
    shared=True,
)
planted(
    'node: scores 10 % above the threshold',
    TOY,
    (
        PASSING,
        arguments(lambda xy, scores, labels, settings: (xy, scores / np.float32(1.1), labels, settings)),
    ),
    shared=True,
)
planted(
    'node: distances along x alone',
    TOY,
    (PASSING, arguments(lambda xy, scores, labels, settings: (3 * xy * [1, 0], scores, labels, settings))),
    shared=True,
)
planted(
    'node: circles of the square of their radius',
    TOY,
    (
        SUPPRESSED,
        arguments(
            lambda found, settings: (found, dataclasses.replace(settings, circle_m=settings.circle_m**2))
        ),
    ),
    shared=True,
)
planted(
    'node: no circles',
    TOY,
    (SUPPRESSED, arguments(lambda found, settings: (found, dataclasses.replace(settings, circle_m=0.0)))),
    shared=True,
)
planted(
    'node: overlaps of 0.2',
    TOY,
    (OVERLAP, arguments(lambda found, alone, threshold, search_m: (found, alone, 2 * threshold, search_m))),
    shared=True,
)
planted(
    'node: overlaps of all classes',
    TOY,
    (OVERLAP, arguments(lambda found, alone, *rest: (found, set(), *rest))),
    shared=True,
)
planted(
    'node: overlaps of boxes that are not turned',
    TOY,
    (OVERLAP, arguments(lambda found, *rest: (dataclasses.replace(found, yaws=found.yaws * 0), *rest))),
    shared=True,
)
planted(
    'node: overlaps within a metre',
    TOY,
    (OVERLAP, arguments(lambda found, alone, threshold, _: (found, alone, threshold, 1.0))),
    shared=True,
)
planted(
    'node: a dropped box drops no other', TOY, (OVERLAP, lambda original: _by_kept(original)), shared=True
)


def _by_kept(original: Callable) -> Callable:
    def overlap_nms(found: Any, *rest: Any) -> np.ndarray:
        kept: list[int] = []
        for row in range(len(found.scores)):
            rows = [*kept, row]
            if len(original(found[rows], *rest)) == len(rows):
                kept.append(row)
        return np.array(kept, np.int64)

    return overlap_nms


planted(
    'node: settings of the first class need twice the score',  # an export has one score for all classes
    TOY,
    (SETTINGS, settings(scores=lambda scores: tuple((2 * row[0], *row[1:]) for row in scores))),
    shared=True,
)
planted('node: a pillar less', TOY, (SETTINGS, settings(pillars=lambda count: count - 1)), shared=True)
