"""Faults of StreamPETR's and CenterPoint's graphs, and of sparse backbones."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from planting import arguments, planted, result, settings

if TYPE_CHECKING:
    from collections.abc import Callable

POINT = 'projects.mmdet3d_plugin.centerpoint'
RULE, HEAD = f'{POINT}.graphs:box_rule', f'{POINT}.graphs:DenseHead.forward'
BOXES = 'mmdeploy_ext.runtime.centerpoint.boxes'
planted('score threshold x 1.02', 'centerpoint', (RULE, settings(score_threshold=lambda value: value * 1.02)))
planted('IoU threshold + 0.3', 'centerpoint', (RULE, settings(nms_thr=lambda value: value + 0.3)))
planted('post_max_size one less', 'centerpoint', (RULE, settings(post_max_size=lambda value: value - 1)))
planted('a twentieth of max_num', 'centerpoint', (RULE, settings(max_num=lambda value: value // 20)))


def _turned(original: Callable) -> Callable:
    return lambda named, rule: original({**named, 'rot': named['rot'][:, ::-1]}, rule)


planted('yaw of cosine and sine', 'centerpoint', (f'{BOXES}:task_boxes', _turned))


def _flat(original: Callable) -> Callable:
    def decode(outputs: Any, rule: Any) -> Any:
        found = original(outputs, rule)
        found.boxes[:, 2] += found.boxes[:, 5] * np.float32(0.5)
        return found

    return decode


planted(
    'boxes stand on their centre',
    'centerpoint',
    ('mmdeploy_ext.runtime.centerpoint.model:CenterPointOnnx.decode', _flat),
)
planted(
    'heat maps rounded to float16',
    'centerpoint',
    (HEAD, result(lambda outputs, *_: (*outputs[:-1], outputs[-1].half().float()))),
)
planted(
    'the map ends a cell early',
    'centerpoint',
    (HEAD, arguments(lambda self, bev: (self, bev * (torch.arange(bev.shape[3]) < bev.shape[3] - 1)))),
)
planted(
    'a point less per voxel',
    'centerpoint',
    (
        'mmdeploy_ext.runtime.scn.model:voxelise',
        arguments(lambda points, rule: (points, dataclasses.replace(rule, max_points=rule.max_points - 1))),
    ),
)

SPARSE = 'centerpoint sparse_portable sparse_libspconv'
FOLD = 'mmdeploy_ext.sparse.fold'


def _norm(**changes: Callable) -> tuple[str, Callable]:
    def wrong(weight: Any, bias: Any, norm: Any, dtype: Any) -> tuple:
        changed = {name: change(getattr(norm, name)) for name, change in changes.items()}
        return weight, bias, dataclasses.replace(norm, **changed), dtype

    return f'{FOLD}:_folded', arguments(wrong)


planted('sparse folding: epsilon x 10', SPARSE, _norm(eps=lambda value: value * 10))
planted('sparse folding: the mean is forgotten', SPARSE, _norm(mean=lambda value: value * 0))


def _no_relu(node: Any, *_: Any) -> Any:
    is_last = getattr(node, 'module', '').endswith('conv_out.0')
    return dataclasses.replace(node, activation='None') if is_last else node


planted('the last ReLU is missing', SPARSE, (f'{FOLD}:_with_bias', result(_no_relu)))


def _other_neighbour(offsets: np.ndarray, *_: Any) -> np.ndarray:
    return offsets[[1, 0, *range(2, len(offsets))]] if len(offsets) > 2 else offsets


planted(
    'rulebook: two neighbours change places',
    SPARSE,
    ('mmdeploy_ext.sparse.rulebook:_offsets', result(_other_neighbour)),
)
planted(
    'rulebook: sites at the last place of the first axis reach none',
    SPARSE,
    (
        'mmdeploy_ext.sparse.rulebook:_axis_targets',
        result(lambda targets, *_: np.where(np.arange(targets.shape[1]) < targets.shape[1] - 1, targets, -1)),
    ),
)
planted(
    'sites without a neighbour in the middle have no bias',
    'centerpoint sparse_portable',
    (
        'mmdeploy_ext.sparse.node_writer:NodeWriter.constant',
        arguments(lambda self, name, values: (self, name, values * (0 if name.endswith('.bias_row') else 1))),
    ),
)
planted(
    'kernels are mirrored where the order changes',
    'sparse_libspconv',
    (
        'mmdeploy_ext.sparse.order:_reordered',
        result(
            lambda changed, node: (
                dataclasses.replace(changed, weight=changed.weight[:, ::-1].copy())
                if hasattr(changed, 'weight')
                else changed
            )
        ),
    ),
)
