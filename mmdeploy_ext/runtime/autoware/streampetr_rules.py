"""What autoware_camera_streampetr would reject or read wrongly in a folder of its three files.

Source: autowarefoundation/autoware_universe 5e12a711, autoware_camera_streampetr (network.cpp, network.hpp,
memory.cu, cuda_utils.hpp, node.cpp): facts, no code.

Glossary: N cameras, H, W pictures, L tokens of all cameras, C channels, K classes, P columns of results,
M rows of the memory before a frame, R rows after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.contract.schema import items, number
from mmdeploy_ext.contract.values import COUNT, NAME, PIXELS
from mmdeploy_ext.runtime.autoware.manifest import class_rules, cuboid, key_rules, read_parameters, usable
from mmdeploy_ext.runtime.autoware.memory_probe import memory_rules
from mmdeploy_ext.runtime.autoware.tensors import (
    Bound,
    by_name,
    fixed_rules,
    half_weights,
    operator_rules,
    severe,
)
from mmdeploy_ext.runtime.contract_files import Ends, ends_of, shape_text
from mmdeploy_ext.sparse.contract_fields import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MANIFEST = 'ml_package_camera_streampetr.param.yaml'
BACKBONE, POSITIONS, HEAD = (
    'simplify_extract_img_feat',
    'simplify_position_embedding',
    'simplify_pts_head_memory',
)
FILES = (BACKBONE, POSITIONS, HEAD)
PATTERNS = ('simplify_*.onnx',)
CLASSES = ('CAR', 'TRUCK', 'BUS', 'TRAILER', 'MOTORCYCLE', 'BICYCLE', 'PEDESTRIAN')
KEYS = dict(
    class_names=items(NAME, 1),
    detection_range=cuboid,
    input_image_height=PIXELS,
    input_image_width=PIXELS,
    num_proposals=number(1, 10_000_000, whole=True),
    rois_number=COUNT,
    pre_memory_length=COUNT,
    post_memory_length=COUNT,
)
MEMORY: dict[str, tuple[int | None, ...]] = dict(
    embedding=(None,), reference_point=(3,), timestamp=(1,), egopose=(4, 4), velo=(2,)
)
"""What each row of the memory holds."""
NORMS = dict(
    bgr=((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)),
    rgb=((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
)
"""Planes that a node feeds -> what it takes off each, and divides it by: constants of the node.

Source of 'bgr': lib/network/camera_data_store.cpp:122-126; of 'rgb': pull request 13167.
"""
LOST = 'which the node dereferences without looking'


def from_node(
    planes: str, mean: Sequence[float], std: Sequence[float], to_rgb: bool
) -> tuple[bool, np.ndarray, np.ndarray]:
    """Return how a node's pictures become those that a model was trained with.

    Args:
        planes: key of `NORMS`.
        mean: of the training, in the order after `to_rgb`.
        std: of the training.
        to_rgb: of the training.

    Returns:
        Whether the planes are turned round, then scale and shift (3,) float64 of each plane.
    """
    turned = to_rgb != (planes == 'rgb')
    node_mean, node_std = (np.array(values)[:: -1 if turned else 1] for values in NORMS[planes])
    return turned, node_std / np.array(std), (node_mean - np.array(mean)) / np.array(std)


def check(folder: Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return what is wrong with a folder, and the files that were read."""
    from mmdeploy_ext.graph.io.files import read

    paths = {f'{name}.onnx': folder / f'{name}.onnx' for name in FILES} | {MANIFEST: folder / MANIFEST}
    there = {name: path for name, path in paths.items() if path.is_file()}
    said = 'is not there; the node is given its path'
    found = [Violation(name, '', 'missing-file', f'{name} {said}') for name in paths if name not in there]
    model: dict[str, Any] = {}
    if MANIFEST in there:
        values, own = read_parameters(there[MANIFEST])
        model, more = _model(values) if not own else ({}, [])
        found += [*own, *more]
    graphs = {name: read(path) for name, path in there.items() if name != MANIFEST}
    ends = {name: ends_of(graph) for name, graph in graphs.items()}
    for name, graph in graphs.items():
        inputs, outputs = BOUNDS[name](_Known(model, found), ends)
        own = [*by_name(name, ends[name], inputs, outputs, exact=False, why=LOST)]
        own += [*fixed_rules(name, ends[name]), *operator_rules(name, graph, {}), *half_weights(name, graph)]
        found += own
    found += _between(ends)
    head = f'{HEAD}.onnx'
    if head in graphs and not severe(found, head):
        found += memory_rules(head, there[head], ends[head])
    return found, there


def _model(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Violation]]:
    model = values.get('model_params')
    if not isinstance(model, dict):
        said = f'model_params is {"not there" if model is None else repr(model)}, expected keys below it'
        return {}, [Violation(MANIFEST, 'model_params', 'key', said)]
    found = list(key_rules(MANIFEST, model, KEYS, ('detection_range',), 'model_params.'))
    known = _Known(model, found)
    if known['class_names']:
        found += class_rules(MANIFEST, known['class_names'], CLASSES)
    before, after = known['pre_memory_length'], known['post_memory_length']
    if before and after and after <= before:
        key = 'model_params.post_memory_length'
        said = f'{key} is {after}, not above pre_memory_length {before}: new rows stand in front of the old'
        found.append(Violation(MANIFEST, key, 'value', said))
    return model, found


class _Known:
    """Keys of the manifest that are right; None for others."""

    def __init__(self, model: Mapping[str, Any], found: list[Violation]) -> None:
        self.model, self.found = model, found

    def __getitem__(self, key: str) -> Any:
        return self.model.get(key) if usable(self.found, f'model_params.{key}') else None


def _backbone(known: _Known, ends: Mapping[str, Ends]) -> tuple[list[Bound], list[Bound]]:
    size = known['input_image_height'], known['input_image_width']
    shape = ends[f'{BACKBONE}.onnx'].outputs.get('img_feats', ())
    return [Bound('img', (1, known['rois_number'], 3, *size))], [Bound('img_feats', shape)]


def _positions(known: _Known, ends: Mapping[str, Ends]) -> tuple[list[Bound], list[Bound]]:
    cameras = known['rois_number']
    matrices = [Bound(name, (1, cameras, 4, 4)) for name in ('intrinsics', 'img2lidar')]
    return [Bound('img_metas_pad', (3,)), *matrices], [
        Bound('pos_embed', (1, None, None)),
        Bound('cone', (1, None, 8)),
    ]


def _head(known: _Known, ends: Mapping[str, Ends]) -> tuple[list[Bound], list[Bound]]:
    shape = ends[f'{HEAD}.onnx'].inputs.get('x', ())
    taken = [Bound('x', shape), Bound('pos_embed', (1, None, None)), Bound('cone', (1, None, 8))]
    taken += [Bound(name, (1, 4, 4)) for name in ('data_ego_pose', 'data_ego_pose_inv')]
    rows, after = known['pre_memory_length'], known['post_memory_length']
    names, columns = known['class_names'], known['num_proposals']
    given = [
        Bound('all_cls_scores', (1, len(names) if names else None, columns)),
        Bound('all_bbox_preds', (1, 10, columns)),
    ]
    taken += [Bound(f'pre_memory_{name}', (1, rows, *tail)) for name, tail in MEMORY.items()]
    given += [Bound(f'post_memory_{name}', (1, after, *tail)) for name, tail in MEMORY.items()]
    return taken, given


BOUNDS = {f'{BACKBONE}.onnx': _backbone, f'{POSITIONS}.onnx': _positions, f'{HEAD}.onnx': _head}


def _between(ends: Mapping[str, Ends]) -> Iterator[Violation]:
    """Yield tensors that one file gives and another takes in another size: the node copies bytes."""
    pairs = (
        (BACKBONE, 'img_feats', 'x'),
        (POSITIONS, 'pos_embed', 'pos_embed'),
        (POSITIONS, 'cone', 'cone'),
    )
    head = ends.get(f'{HEAD}.onnx')
    for file, given, taken in pairs:
        one = ends[f'{file}.onnx'].outputs.get(given) if f'{file}.onnx' in ends else None
        two = head.inputs.get(taken) if head else None
        if one and two and None not in (*one, *two) and _count(one) != _count(two):
            said = f'{taken} is {shape_text(two)}, {given} of {file}.onnx {shape_text(one)}: other bytes'
            yield Violation(f'{HEAD}.onnx', taken, 'shape', f'{HEAD}.onnx: {said}')
    if head and (rows := head.inputs.get('pre_memory_embedding')):
        yield from _rows(head, rows)


def _rows(head: Ends, rows: tuple[int | None, ...]) -> Iterator[Violation]:
    channels, file = rows[-1], f'{HEAD}.onnx'
    embedding = head.outputs.get('post_memory_embedding')
    if embedding and embedding[-1] != channels:
        said = f'post_memory_embedding is {shape_text(embedding)}, pre_memory_embedding {shape_text(rows)}'
        said = f'{file}: {said}'
        yield Violation(file, 'post_memory_embedding', 'shape', said)


def _count(shape: tuple[int | None, ...]) -> int:
    count = 1
    for size in shape:
        count *= size or 0
    return count
