"""What autoware_camera_streampetr would reject or read wrongly in a folder of its three files.

Source: autowarefoundation/autoware_universe 5e12a711, autoware_camera_streampetr (network.cpp, network.hpp,
memory.cu, cuda_utils.hpp, node.cpp): facts, no code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.consumers.autoware.file_rules import (
    Bound,
    bind_by_name,
    fixed_rules,
    operator_rules,
    read_graph,
)
from mmdeploy_ext.consumers.autoware.manifest import (
    MODEL_FOLDER,
    MODEL_PREFIX,
    class_rules,
    cuboid,
    export_rules,
    key_rules,
    missing_files,
    model_params,
    path_rules,
    read_parameters,
    valid_values,
)
from mmdeploy_ext.consumers.autoware.trial import LOAD, MEMORY, trial_rules
from mmdeploy_ext.consumers.graph_tensors import GraphTensors, graph_tensors, shape_text
from mmdeploy_ext.contract.schema import COUNT, NAME, PIXELS, items, number
from mmdeploy_ext.core.violations import Violation, errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MANIFEST = 'ml_package_camera_streampetr.param.yaml'
"""File name of the manifest."""
BACKBONE, POSITIONS, HEAD = (
    'simplify_extract_img_feat',
    'simplify_position_embedding',
    'simplify_pts_head_memory',
)
"""Names of the three graphs."""
FILES = (BACKBONE, POSITIONS, HEAD)
"""Names of the three files without `.onnx`."""
PATTERNS = ('simplify_*.onnx',)
"""Patterns of files by which a folder of this node is recognised, beside the manifest."""
READ_KEYS = ('backbone_path', 'position_embedding_path', 'head_path')
"""Keys of `model_params` that the node's launch file sets, and that a manifest may have."""
CLASSES = ('CAR', 'TRUCK', 'BUS', 'TRAILER', 'MOTORCYCLE', 'BICYCLE', 'PEDESTRIAN')
"""Class names that the node knows."""
KEYS = dict(
    class_names=items(NAME, 1),
    detection_range=cuboid,
    input_image_height=PIXELS,
    input_image_width=PIXELS,
    num_proposals=number(1, 10_000_000, integer=True),
    rois_number=COUNT,
    pre_memory_length=COUNT,
    post_memory_length=COUNT,
)
"""Key of the model -> check of its value."""
MEMORY_ROWS: dict[str, tuple[int | None, ...]] = dict(
    embedding=(None,), reference_point=(3,), timestamp=(1,), egopose=(4, 4), velo=(2,)
)
"""Field of the memory -> shape of each of its rows."""
NORMS = dict(
    bgr=((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)),
    rgb=((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
)
"""Planes that a node feeds -> the mean that it takes off each, and the number it divides by: its constants.

Source of 'bgr': lib/network/camera_data_store.cpp:122-126; of 'rgb': pull request 13167.
"""


def from_node(
    planes: str, mean: Sequence[float], std: Sequence[float], to_rgb: bool
) -> tuple[bool, np.ndarray, np.ndarray]:
    """Return the change from a node's normalised pictures to those of the training: x * scale + shift.

    Args:
        planes: order in which the node feeds them, a key of `NORMS`.
        mean: mean of the training, in the order after `to_rgb`.
        std: likewise.
        to_rgb: whether the training had RGB pictures.

    Returns:
        Whether the planes are to be reversed first; then scale and shift, (3,) float64, of the training's
        planes.
    """
    reverses = to_rgb != (planes == 'rgb')
    node_mean, node_std = (np.array(values)[:: -1 if reverses else 1] for values in NORMS[planes])
    return reverses, node_std / np.array(std), (node_mean - np.array(mean)) / np.array(std)


def check(folder: Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return the violations in a folder, and file name -> path of those of its files that are there.

    What is wrong with a file is a violation; without an error all graphs are loaded and, up to a limit of
    arithmetic, run on zeros, and a probe of the memory is sent through the head, see `trial.trial_rules`.
    ModelFileError: PyYAML is not installed.
    """
    names = (*(f'{name}.onnx' for name in FILES), MANIFEST)
    paths = {name: folder / name for name in names if (folder / name).is_file()}
    violations = missing_files(names, paths)
    model: dict[str, Any] = {}
    if MANIFEST in paths:
        values, unreadable = read_parameters(paths[MANIFEST])
        violations += unreadable
        if not unreadable:
            model, missing = model_params(MANIFEST, values)
            violations += missing or _model_rules(model)
            violations += path_rules(MANIFEST, folder, model, READ_KEYS, MODEL_PREFIX, MODEL_FOLDER)[1]
    valid = valid_values(model, KEYS, violations, MODEL_PREFIX)
    graphs = {}
    for name, path in paths.items():
        if name != MANIFEST:
            graph, unreadable = read_graph(path)
            violations += unreadable
            if graph is not None:
                graphs[name] = graph
    tensors = {name: graph_tensors(graph) for name, graph in graphs.items()}
    for name, graph in graphs.items():
        inputs, outputs = _bounds(name, tensors[name], valid)
        consequence = 'which the node dereferences without looking'
        violations += bind_by_name(name, tensors[name], inputs, outputs, exact=False, consequence=consequence)
        violations += [*fixed_rules(name, tensors[name]), *operator_rules(name, graph, plugins={})]
    violations += _handover_rules(tensors)
    violations += export_rules(MANIFEST, graphs, valid, CLASSES, prefix=MODEL_PREFIX)
    if not errors(violations):
        probes = {f'{HEAD}.onnx': MEMORY}
        trials = [(paths[name], graph, probes.get(name, LOAD)) for name, graph in graphs.items()]
        violations += trial_rules(trials)
    return violations, paths


def _model_rules(model: Mapping[str, Any]) -> Iterator[Violation]:
    violations = list(key_rules(MANIFEST, model, KEYS, ('detection_range',), MODEL_PREFIX))
    yield from violations
    valid = valid_values(model, KEYS, violations, MODEL_PREFIX)
    if 'class_names' in valid:
        yield from class_rules(MANIFEST, valid['class_names'], CLASSES)
    before, after = valid.get('pre_memory_length'), valid.get('post_memory_length')
    if before and after and after <= before:
        key = f'{MODEL_PREFIX}post_memory_length'
        message = f'{key} is {after}, not above pre_memory_length {before}: '
        yield Violation(MANIFEST, key, 'value', message + 'new rows stand in front of the old')


def _bounds(file: str, tensors: GraphTensors, valid: Mapping[str, Any]) -> tuple[list[Bound], list[Bound]]:
    """Return inputs and outputs of a file; a size without a valid value in the manifest is None.

    The features of the images are of any size in a file, and have to agree between the files.
    """
    cameras = valid.get('rois_number')
    embedded = [Bound('pos_embed', (1, None, None)), Bound('cone', (1, None, 8))]
    if file == f'{BACKBONE}.onnx':
        size = valid.get('input_image_height'), valid.get('input_image_width')
        features = Bound('img_feats', tensors.outputs.get('img_feats', ()))
        return [Bound('img', (1, cameras, 3, *size))], [features]
    if file == f'{POSITIONS}.onnx':
        matrices = [Bound(name, (1, cameras, 4, 4)) for name in ('intrinsics', 'img2lidar')]
        return [Bound('img_metas_pad', (3,)), *matrices], embedded
    classes = len(valid['class_names']) if 'class_names' in valid else None
    columns = valid.get('num_proposals')
    inputs = [Bound('x', tensors.inputs.get('x', ())), *embedded]
    inputs += [Bound(name, (1, 4, 4)) for name in ('data_ego_pose', 'data_ego_pose_inv')]
    outputs = [
        Bound('all_cls_scores', (1, classes, columns)),
        Bound('all_bbox_preds', (1, 10, columns)),
    ]
    before, after = valid.get('pre_memory_length'), valid.get('post_memory_length')
    for field, shape in MEMORY_ROWS.items():
        inputs.append(Bound(f'pre_memory_{field}', (1, before, *shape)))
        outputs.append(Bound(f'post_memory_{field}', (1, after, *shape)))
    return inputs, outputs


def _handover_rules(tensors: Mapping[str, GraphTensors]) -> Iterator[Violation]:
    """Yield tensors that one file gives and another takes in another size: the node copies bytes."""
    head_file = f'{HEAD}.onnx'
    head = tensors.get(head_file)
    if head is None:
        return
    for file, output, name in (
        (BACKBONE, 'img_feats', 'x'),
        (POSITIONS, 'pos_embed', 'pos_embed'),
        (POSITIONS, 'cone', 'cone'),
    ):
        source = tensors.get(f'{file}.onnx')
        out_shape = source.outputs.get(output) if source else None
        in_shape = head.inputs.get(name)
        if not out_shape or not in_shape or None in (*out_shape, *in_shape):
            continue
        if math.prod(out_shape) != math.prod(in_shape):
            message = f'{name} is {shape_text(in_shape)}, {output} of {file}.onnx {shape_text(out_shape)}'
            yield Violation(head_file, name, 'shape', f'{head_file}: {message}: other bytes')
    before = head.inputs.get('pre_memory_embedding')
    after = head.outputs.get('post_memory_embedding')
    if before and after and after[-1] != before[-1]:
        message = f'post_memory_embedding is {shape_text(after)}, pre_memory_embedding {shape_text(before)}'
        yield Violation(head_file, 'post_memory_embedding', 'shape', f'{head_file}: {message}')
