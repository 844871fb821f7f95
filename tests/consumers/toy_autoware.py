"""Folders that Autoware's nodes load, of small graphs; a test breaks one thing and reads them."""

import copy

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.consumers.autoware.nodes import CENTERPOINT as LIDAR_NODE
from mmdeploy_ext.consumers.autoware.nodes import REMAPPER as REMAPPER_FILE

LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
DUMPER = getattr(yaml, 'CSafeDumper', yaml.SafeDumper)
"""Of libyaml where PyYAML was built with it: a tenth of the time."""
FLOAT = TensorProto.FLOAT
CENTERPOINT = dict(
    version='4.1',
    encoder_onnx_path='pts_voxel_encoder.onnx',
    encoder_engine_path='pts_voxel_encoder.engine',
    head_onnx_path='pts_backbone_neck_head.onnx',
    head_engine_path='pts_backbone_neck_head.engine',
    class_remapper_param_path='detection_class_remapper.param.yaml',
    trt_precision='fp32',
    model_params=dict(
        class_names=['CAR', 'BICYCLE', 'PEDESTRIAN'],
        has_twist=True,
        point_feature_size=4,
        has_variance=False,
        max_voxel_size=40,
        point_cloud_range=[-4.0, -2.0, -4.0, 4.0, 2.0, 4.0],
        voxel_size=[0.5, 0.5, 8.0],
        downsample_factor=2,
        encoder_in_feature_size=9,
        yaw_norm_thresholds=[0.0, 0.0, 0.0],
        detection_score_thresholds=dict(
            distance_bin_upper_limits=[4.0, 10.0],
            min_confidence_scores=dict(CAR=[0.4, 0.3], BICYCLE=[0.4, 0.3], PEDESTRIAN=[0.4, 0.3]),
        ),
    ),
)
REMAPPER = dict(
    allow_remapping_by_area_matrix=[0] * 64, min_area_matrix=[0.0] * 64, max_area_matrix=[0.0] * 64
)


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def saved(path, nodes, inputs, outputs, stored=(), domains=()):
    opsets = [helper.make_opsetid('', 17), *(helper.make_opsetid(name, 1) for name in domains)]
    graph = helper.make_graph(nodes, 'toy', inputs, outputs, stored)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def written(path, parameters):
    path.write_text(yaml.dump({'/**': {'ros__parameters': copy.deepcopy(parameters)}}, Dumper=DUMPER))


def centerpoint(folder, converted=True):
    """Write what lidar_centerpoint loads; `converted`: boxes of mmdet3d 1.0 become boxes of 0.x."""
    written(folder / LIDAR_NODE.manifest, CENTERPOINT)
    written(folder / REMAPPER_FILE, REMAPPER)
    weights = constant('w', np.ones((9, 32), np.float32))
    nodes = [
        helper.make_node('MatMul', ['input_features', 'w'], ['wide']),
        helper.make_node('ReduceMax', ['wide'], ['pillar_features'], axes=[1], keepdims=1),
    ]
    pillars = value('pillar_features', ['V', 1, 32])
    saved(
        folder / 'pts_voxel_encoder.onnx',
        nodes,
        [value('input_features', ['V', 32, 9])],
        [pillars],
        [weights],
    )
    counts = dict(heatmap=3, reg=2, height=1, dim=3, rot=2, vel=2)
    nodes, stored, outputs = [], [], []
    for name, count in counts.items():
        raw = f'{name}_raw' if converted and name in ('dim', 'rot') else name
        stored.append(constant(f'{name}_w', np.full((count, 32, 1, 1), 0.01, np.float32)))
        nodes.append(
            helper.make_node('Conv', ['spatial_features', f'{name}_w'], [raw], strides=[2, 2], name=name)
        )
        outputs.append(value(name, [1, count, 4, 8]))
    if converted:
        stored += [constant('dim_order', np.int64([1, 0, 2]))]
        stored += [constant('rot_order', np.int64([1, 0]))]
        stored += [constant('sign', -np.ones((1, 2, 1, 1), np.float32))]
        nodes += [
            helper.make_node('Gather', ['dim_raw', 'dim_order'], ['dim'], axis=1, name='swap'),
            helper.make_node('Gather', ['rot_raw', 'rot_order'], ['rot_swapped'], axis=1, name='turn'),
            helper.make_node('Mul', ['rot_swapped', 'sign'], ['rot']),
        ]
    spatial = value('spatial_features', [1, 32, 8, 16])
    saved(folder / 'pts_backbone_neck_head.onnx', nodes, [spatial], outputs, stored)
    return folder


LOST = object()


def key(file, path, new):
    """Return a change of one key, 'a.b' below ros__parameters; LOST removes it."""

    def change(folder):
        content = yaml.load((folder / file).read_text(), Loader=LOADER)
        below = content['/**']['ros__parameters']
        *above, last = path.split('.')
        for name in above:
            below = below[name]
        if new is LOST:
            del below[last]
        else:
            below[last] = new
        (folder / file).write_text(yaml.dump(content, Dumper=DUMPER))

    return change
