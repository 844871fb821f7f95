"""Folders that Autoware's nodes load, of small graphs; a test breaks one thing and reads them."""

import copy

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from mm2onnx_driving.autoware.nodes import BEVDET as BEVDET_NODE
from mm2onnx_driving.autoware.nodes import BEVDET_CAMERAS
from mm2onnx_driving.autoware.nodes import CENTERPOINT as LIDAR_NODE
from mm2onnx_driving.autoware.nodes import REMAPPER as REMAPPER_FILE

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


def setting(path, new):
    """Return a change of one entry of bevdet.yaml; None removes it."""

    def change(folder):
        content = yaml.load((folder / BEVDET_NODE.settings).read_text(), Loader=LOADER)
        *above, last = path.split('.')
        below = content
        for name in above:
            below = below[name]
        below[last] = new
        (folder / BEVDET_NODE.settings).write_text(yaml.dump(content, Dumper=DUMPER))

    return change


BEVDET = dict(
    onnx_path='$(var model_path)/$(var model_name).onnx',
    engine_path='$(var model_path)/$(var model_name).engine',
    debug_mode=False,
    data_params=dict(CAM_NUM=6, camera_count=6, cams=list(BEVDET_CAMERAS)),
    post_process_params=dict(score_threshold=0.2, class_names=['car', 'bus']),
)
SETTINGS = dict(
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    use_depth=True,
    use_adj=True,
    adj_num=8,
    transform_size=6,
    cam_params_size=27,
    data_config=dict(
        Ncams=6, cams=list(BEVDET_CAMERAS), src_size=[900, 1600], input_size=[256, 704], crop=[140, 0]
    ),
    grid_config=dict(x=[-51.2, 51.2, 0.8], y=[-51.2, 51.2, 0.8], z=[-5.0, 3.0, 8.0], depth=[1.0, 60.0, 0.5]),
    model=dict(
        bevpool_channels=80,
        down_sample=16,
        common_head=dict(names=['reg', 'height', 'dim', 'rot', 'vel'], channels=[2, 1, 3, 2, 2]),
        tasks=[dict(num_class=2, class_names=['car', 'bus'])],
    ),
    test_cfg=dict(
        max_per_img=500,
        post_max_size=500,
        score_threshold=0.1,
        nms_thr=[0.2],
        nms_rescale_factor=[[1.0, 0.7]],
    ),
)
STATED = dict(
    classes=['car', 'bus'],
    preprocess=dict(
        mean=SETTINGS['mean'], std=SETTINGS['std'], cameras=list(BEVDET_CAMERAS), size=[256, 704]
    ),
    postprocess=dict(
        num_classes=[2],
        max_num=500,
        post_max_size=500,
        score_threshold=0.1,
        nms_thr=0.2,
        nms_scale=[[1.0, 0.7]],
        grid_low=[-51.2, -51.2, -5.0],
        grid_step=[0.8, 0.8, 8.0],
        depths=(1 + 0.5 * np.arange(118)).tolist(),
        rows=[0.0] * 16,
    ),
)
"""What an export's metadata state of the graph."""


def bevdet(folder):
    """Write what tensorrt_bevdet loads; the graph has the node's tensors and plug-ins, and no network."""
    written(folder / BEVDET_NODE.manifest, BEVDET)
    (folder / BEVDET_NODE.settings).write_text(yaml.dump(SETTINGS, Dumper=DUMPER))
    (file,) = BEVDET_NODE.files
    kinds = dict(FLOAT=FLOAT, INT32=TensorProto.INT32)

    def ends(tensors):
        for tensor in tensors:
            sizes = [2 if axis == '?' else axis for axis in tensor.axes.split()]
            shape = [int(size) if str(size).isdigit() else tensor.name for size in sizes]
            yield value(tensor.name, shape, kinds[tensor.types[0]])

    inputs, outputs = list(ends(file.inputs)), list(ends(file.outputs))
    names = [one.name for one in inputs]
    fields = dict(
        Preprocess=dict(crop_h=140, crop_w=0, resize_radio=0.44),
        BEVPool=dict(bev_h=128, bev_w=128, n=6),
        AlignBEV={},
        GatherBEV={},
    )
    made = {name: [f'of_{name}'] for name in fields} | dict(GatherBEV=[one.name for one in outputs])
    nodes = [
        helper.make_node(name, names, made[name], name=name, domain='bevdet', **attributes)
        for name, attributes in fields.items()
    ]
    saved(folder / f'{file.name}.onnx', nodes, inputs, outputs, domains=['bevdet'])
    return folder
