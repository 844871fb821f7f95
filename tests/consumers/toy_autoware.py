"""Folders that Autoware's nodes load, of small graphs; a test breaks one thing and reads them."""

import copy

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.consumers.autoware.nodes import CENTERPOINT as LIDAR_NODE
from mmdeploy_ext.consumers.autoware.nodes import REMAPPER as REMAPPER_FILE
from mmdeploy_ext.consumers.autoware.nodes import STREAMPETR as CAMERA_NODE

LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
DUMPER = getattr(yaml, 'CSafeDumper', yaml.SafeDumper)
"""Of libyaml where PyYAML was built with it: a tenth of the time."""
FLOAT, INT32, INT64, UINT8, BOOL = (
    getattr(TensorProto, name) for name in ('FLOAT', 'INT32', 'INT64', 'UINT8', 'BOOL')
)
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
STREAMPETR = dict(
    model_params=dict(
        class_names=['CAR', 'TRUCK', 'PEDESTRIAN'],
        detection_range=[-50.0, -50.0, -8.0, 50.0, 50.0, 8.0],
        input_image_height=16,
        input_image_width=32,
        num_proposals=6,
        rois_number=2,
        pre_memory_length=8,
        post_memory_length=11,
    )
)
BEVFUSION = dict(
    class_names=['CAR', 'PEDESTRIAN'],
    voxels_num=[1, 60, 120],
    point_cloud_range=[-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
    voxel_size=[0.075, 0.075, 0.2],
    num_proposals=7,
    out_size_factor=8,
    max_points_per_voxel=10,
    use_intensity=True,
    d_bound=[1.0, 60.0, 0.5],
    x_bound=[-54.0, 54.0, 0.3],
    y_bound=[-54.0, 54.0, 0.3],
    z_bound=[-10.0, 10.0, 20.0],
    num_cameras=2,
    raw_image_height=90,
    raw_image_width=160,
    img_aug_scale_x=0.48,
    img_aug_scale_y=0.48,
    roi_height=32,
    roi_width=64,
    features_height=4,
    features_width=8,
    num_depth_features=118,
    image_feature_channel=5,
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


def zeros(outputs, stored):
    """Return nodes that give zeros."""
    nodes = []
    for one in outputs:
        kind = one.type.tensor_type.elem_type
        sizes = [axis.dim_value or 1 for axis in one.type.tensor_type.shape.dim]
        fill = helper.make_tensor('value', kind, [1], [0])
        stored.append(constant(f'{one.name}_sizes', np.int64(sizes)))
        nodes.append(helper.make_node('ConstantOfShape', [f'{one.name}_sizes'], [one.name], value=fill))
    return nodes


def centerpoint(folder, converted=True, variance=1):
    """Write what lidar_centerpoint loads.

    Args:
        folder: to write to.
        converted: whether boxes of mmdet3d 1.0 become those of 0.x.
        variance: 2 with variances.
    """
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
        count *= 1 if name == 'heatmap' else variance
        raw = f'{name}_raw' if converted and name in ('dim', 'rot') else name
        stored.append(constant(f'{name}_w', np.full((count, 32, 1, 1), 0.01, np.float32)))
        nodes.append(
            helper.make_node('Conv', ['spatial_features', f'{name}_w'], [raw], strides=[2, 2], name=name)
        )
        outputs.append(value(name, [1, count, 4, 8]))
    if converted:
        stored += [constant('dim_order', np.int64([1, 0, 2, 4, 3, 5][: 3 * variance]))]
        stored += [constant('rot_order', np.int64([1, 0, 3, 2][: 2 * variance]))]
        stored += [constant('sign', np.float32([-1, -1, 1, 1][: 2 * variance]).reshape(1, -1, 1, 1))]
        nodes += [
            helper.make_node('Gather', ['dim_raw', 'dim_order'], ['dim'], axis=1, name='swap'),
            helper.make_node('Gather', ['rot_raw', 'rot_order'], ['rot_swapped'], axis=1, name='turn'),
            helper.make_node('Mul', ['rot_swapped', 'sign'], ['rot']),
        ]
    spatial = value('spatial_features', [1, 32, 8, 16])
    saved(folder / 'pts_backbone_neck_head.onnx', nodes, [spatial], outputs, stored)
    return folder


def streampetr(folder):
    """Write what camera_streampetr loads: memories move as the node wants them, all else is zeros."""
    written(folder / CAMERA_NODE.manifest, STREAMPETR)
    stored, given = [], [value('img_feats', [1, 2, 4, 1, 2])]
    saved(
        folder / 'simplify_extract_img_feat.onnx',
        zeros(given, stored),
        [value('img', [1, 2, 3, 16, 32])],
        given,
        stored,
    )
    stored, given = [], [value('pos_embed', [1, 4, 4]), value('cone', [1, 4, 8])]
    taken = [
        value('img_metas_pad', [3]),
        *(value(name, [1, 2, 4, 4]) for name in ('intrinsics', 'img2lidar')),
    ]
    saved(folder / 'simplify_position_embedding.onnx', zeros(given, stored), taken, given, stored)
    stored, given = [], [value('all_cls_scores', [1, 3, 6]), value('all_bbox_preds', [1, 10, 6])]
    taken = [value('x', [1, 2, 4, 1, 2]), value('pos_embed', [1, 4, 4]), value('cone', [1, 4, 8])]
    taken += [value(name, [1, 4, 4]) for name in ('data_ego_pose', 'data_ego_pose_inv')]
    nodes = zeros(given, stored)
    rows = dict(embedding=[4], reference_point=[3], timestamp=[1], egopose=[4, 4], velo=[2])
    for name, tail in rows.items():
        taken.append(value(f'pre_memory_{name}', [1, 8, *tail]))
        given.append(value(f'post_memory_{name}', [1, 11, *tail]))
        stored.append(constant(f'new_{name}', np.zeros((1, 3, *tail), np.float32)))
    stored[-2].CopyFrom(constant('new_egopose', np.tile(np.eye(4, dtype=np.float32), (1, 3, 1, 1))))
    nodes += _memory()
    stored += [constant('one', np.ones((1, 8, 1), np.float32)), constant('first', np.int64([3]))]
    stored += [
        constant('three', np.int64([0])),
        constant('axis', np.int64([2])),
        constant('last', np.int64([-1])),
    ]
    stored += [constant('ones', np.ones((1, 11, 1), np.float32))]
    saved(folder / 'simplify_pts_head_memory.onnx', nodes, taken, given, stored)
    return folder


def _memory():
    nodes = [
        helper.make_node('Concat', [f'new_{name}', f'pre_memory_{name}'], [f'post_memory_{name}'], axis=1)
        for name in ('embedding', 'timestamp', 'velo')
    ]
    nodes += _moved('pre_memory_reference_point', 'data_ego_pose_inv', 'here', 'one')
    nodes.append(
        helper.make_node('Concat', ['new_reference_point', 'here'], ['all_here'], axis=1, name='places')
    )
    nodes += _moved('all_here', 'data_ego_pose', 'post_memory_reference_point', 'ones')
    nodes += [
        helper.make_node('MatMul', ['data_ego_pose_inv', 'pre_memory_egopose'], ['pose_here'], name='pose'),
        helper.make_node('Concat', ['new_egopose', 'pose_here'], ['all_poses'], axis=1),
        helper.make_node('MatMul', ['data_ego_pose', 'all_poses'], ['post_memory_egopose']),
    ]
    return nodes


def _moved(places, pose, result, ones):
    """Return nodes: places (1, M, 3) by a matrix (1, 4, 4)."""
    return [
        helper.make_node('Transpose', [pose], [f'{result}_t'], perm=[0, 2, 1]),
        helper.make_node('Concat', [places, ones], [f'{result}_4'], axis=2),
        helper.make_node('MatMul', [f'{result}_4', f'{result}_t'], [f'{result}_moved']),
        helper.make_node('Slice', [f'{result}_moved', 'three', 'first', 'axis'], [result]),
    ]


def bevfusion(folder, fusion=True):
    """Write what bevfusion loads: right names, types and sizes, and no numbers."""
    main = 'bevfusion_camera_lidar' if fusion else 'bevfusion_lidar'
    written(folder / f'ml_package_{main}.param.yaml', BEVFUSION)
    written(folder / REMAPPER_FILE, REMAPPER)
    taken = [
        value('voxels', ['V', 10, 5]),
        value('num_points_per_voxel', ['V'], INT32),
        value('coors', ['V', 3], INT32),
    ]
    features = value('image_feats', ['N', 5, 4, 8])
    if fusion:
        taken += [value('points', ['P', 5]), features]
        taken += [value(name, ['N', 4, 4]) for name in ('img_aug_matrix', 'lidar2image')]
        taken += [value('geom_feats', ['M', 4], INT32), value('kept', ['F'], BOOL)]
        taken += [value(name, ['M'], INT64) for name in ('ranks', 'indices')]
        stored = []
        saved(
            folder / 'bevfusion_image_backbone.onnx',
            zeros([features], stored),
            [value('imgs', ['N', 3, 32, 64], UINT8)],
            [features],
            stored,
        )
    stored = []
    given = [value('bbox_pred', [10, 7]), value('score', [7]), value('label_pred', [7], INT64)]
    gemm = dict.fromkeys(('act_alpha', 'act_beta', 'output_add_scale', 'output_scale'), 1.0)
    nodes = zeros(given, stored)
    nodes.append(
        helper.make_node(
            'ImplicitGemm',
            ['voxels'],
            ['found'],
            domain='autoware',
            name='gemm',
            is_subm=1,
            is_train=0,
            **gemm,
        )
    )
    saved(folder / f'{main}.onnx', nodes, taken, given, stored, ['autoware'])
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
