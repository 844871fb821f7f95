"""What autoware_camera_streampetr would reject or read wrongly in a folder of its three files.

Source: autowarefoundation/autoware_universe 5e12a711, autoware_camera_streampetr (network.cpp, network.hpp,
memory.cu, cuda_utils.hpp, node.cpp): facts, no code.

Glossary: N cameras, H, W pictures, L tokens of all cameras, C channels, K classes, P columns of results,
M rows of the memory before a frame, R rows after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.consumers.autoware.graph_files import read_graph
from mmdeploy_ext.consumers.autoware.manifest import (
    MODEL_FOLDER,
    absent_files,
    class_rules,
    cuboid,
    key_rules,
    model_params,
    path_rules,
    read_parameters,
    right,
)
from mmdeploy_ext.consumers.autoware.tensors import Bound, by_name, fixed_rules, graph_rules, has_errors
from mmdeploy_ext.consumers.autoware.trial import LOAD, trial_rules
from mmdeploy_ext.consumers.autoware.trial import MEMORY as MEMORY_PROBE
from mmdeploy_ext.contract.schema import items, number
from mmdeploy_ext.contract.values import COUNT, NAME, PIXELS
from mmdeploy_ext.core.violations import Violation
from mmdeploy_ext.runtime.contract_files import Ends, ends_of, shape_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MANIFEST = 'ml_package_camera_streampetr.param.yaml'
BACKBONE, POSITIONS, HEAD = (
    'simplify_extract_img_feat',
    'simplify_position_embedding',
    'simplify_pts_head_memory',
)
FILES = (BACKBONE, POSITIONS, HEAD)
PATTERNS = ('simplify_*.onnx',)
READ_KEYS = ('backbone_path', 'position_embedding_path', 'head_path')
"""Keys of `model_params` that the node's launch file sets, and that a manifest may have."""
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

    That is whether the planes are turned round, then scale and shift (3,) float64 of each plane; `planes` is
    a key of `NORMS`, `mean` of the training is in the order after `to_rgb`.
    """
    turned = to_rgb != (planes == 'rgb')
    node_mean, node_std = (np.array(values)[:: -1 if turned else 1] for values in NORMS[planes])
    return turned, node_std / np.array(std), (node_mean - np.array(mean)) / np.array(std)


def check(folder: Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return what is wrong with a folder, and the files that were read."""
    names = (*(f'{name}.onnx' for name in FILES), MANIFEST)
    there = {name: folder / name for name in names if (folder / name).is_file()}
    found = absent_files(names, there)
    model: dict[str, Any] = {}
    if MANIFEST in there:
        values, own = read_parameters(there[MANIFEST])
        found += own
        if not own:
            model, wrong = model_params(MANIFEST, values)
            found += wrong or _model(model)
            at = 'model_params.'
            found += path_rules(MANIFEST, folder, model, READ_KEYS, at, MODEL_FOLDER)[1]
    known = right(model, KEYS, found, 'model_params.')
    graphs = {}
    for name, path in there.items():
        if name != MANIFEST:
            graph, wrong = read_graph(path)
            found += wrong
            if graph is not None:
                graphs[name] = graph
    ends = {name: ends_of(graph) for name, graph in graphs.items()}
    for name, graph in graphs.items():
        inputs, outputs = BOUNDS[name](known, ends)
        found += by_name(name, ends[name], inputs, outputs, exact=False, why=LOST)
        found += [*fixed_rules(name, ends[name]), *graph_rules(name, graph, {})]
    found += _between(ends)
    probes = {f'{HEAD}.onnx': MEMORY_PROBE}
    if not has_errors(found):
        found += trial_rules([(there[name], graph, probes.get(name, LOAD)) for name, graph in graphs.items()])
    return found, there


def _model(model: Mapping[str, Any]) -> Iterator[Violation]:
    found = list(key_rules(MANIFEST, model, KEYS, ('detection_range',), 'model_params.'))
    yield from found
    known = right(model, KEYS, found, 'model_params.')
    if 'class_names' in known:
        yield from class_rules(MANIFEST, known['class_names'], CLASSES)
    before, after = known.get('pre_memory_length'), known.get('post_memory_length')
    if before and after and after <= before:
        key = 'model_params.post_memory_length'
        said = f'{key} is {after}, not above pre_memory_length {before}: new rows stand in front of the old'
        yield Violation(MANIFEST, key, 'value', said)


Known = Mapping[str, Any]
"""Keys of the manifest that are right."""


def _backbone(known: Known, ends: Mapping[str, Ends]) -> tuple[list[Bound], list[Bound]]:
    size = known.get('input_image_height'), known.get('input_image_width')
    shape = ends[f'{BACKBONE}.onnx'].outputs.get('img_feats', ())
    return [Bound('img', (1, known.get('rois_number'), 3, *size))], [Bound('img_feats', shape)]


EMBEDDED = Bound('pos_embed', (1, None, None)), Bound('cone', (1, None, 8))


def _positions(known: Known, ends: Mapping[str, Ends]) -> tuple[list[Bound], list[Bound]]:
    cameras = known.get('rois_number')
    matrices = [Bound(name, (1, cameras, 4, 4)) for name in ('intrinsics', 'img2lidar')]
    return [Bound('img_metas_pad', (3,)), *matrices], list(EMBEDDED)


def _head(known: Known, ends: Mapping[str, Ends]) -> tuple[list[Bound], list[Bound]]:
    taken = [Bound('x', ends[f'{HEAD}.onnx'].inputs.get('x', ())), *EMBEDDED]
    taken += [Bound(name, (1, 4, 4)) for name in ('data_ego_pose', 'data_ego_pose_inv')]
    rows, after = known.get('pre_memory_length'), known.get('post_memory_length')
    names, columns = known.get('class_names'), known.get('num_proposals')
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
    pairs = (BACKBONE, 'img_feats', 'x'), (POSITIONS, 'pos_embed', 'pos_embed'), (POSITIONS, 'cone', 'cone')
    head = ends.get(f'{HEAD}.onnx')
    for file, given, taken in pairs:
        one = ends[f'{file}.onnx'].outputs.get(given) if f'{file}.onnx' in ends else None
        two = head.inputs.get(taken) if head else None
        if one and two and None not in (*one, *two) and math.prod(one) != math.prod(two):
            said = f'{taken} is {shape_text(two)}, {given} of {file}.onnx {shape_text(one)}: other bytes'
            yield Violation(f'{HEAD}.onnx', taken, 'shape', f'{HEAD}.onnx: {said}')
    before = head.inputs.get('pre_memory_embedding') if head else None
    after = head.outputs.get('post_memory_embedding') if head else None
    if before and after and after[-1] != before[-1]:
        said = f'post_memory_embedding is {shape_text(after)}, pre_memory_embedding {shape_text(before)}'
        yield Violation(f'{HEAD}.onnx', 'post_memory_embedding', 'shape', f'{HEAD}.onnx: {said}')
