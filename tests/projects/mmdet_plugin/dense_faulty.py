"""Four small dense heads with weights, and faults of their files."""

import functools
from pathlib import Path

import numpy as np
from onnx import numpy_helper

from mmdeploy_ext.core.config import load_config, mmdet_config
from mmdeploy_ext.exporting import model as deploy
from mmdeploy_ext.exporting.files import export_files
from mmdeploy_ext.graph.io.constants import constant_value
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.synthetic.seeded import write_seeded

REPO = Path(__file__).resolve().parents[3]
PICTURE = read_image(REPO / 'demo/toy.jpg')
SIZE = (256, 320)
SSD = f"""
_base_ = ['{REPO}/configs/demo/retinanet_toy.py']
model = dict(
    bbox_head=dict(
        _delete_=True, type='SSDHead', num_classes=6, in_channels=(64,) * 5,
        anchor_generator=dict(
            type='SSDAnchorGenerator', input_size=300, basesize_ratio_range=(0.15, 0.9),
            strides=[8, 16, 32, 64, 128], ratios=[[2], [2, 3], [2, 3], [2, 3], [2]]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])),
    train_cfg=None,
    test_cfg=dict(nms=dict(iou_threshold=0.45), score_thr=0.02, max_per_img=1000))
"""
CENTERNET = f"""
_base_ = ['{mmdet_config('centernet/centernet_resnet18_140e_coco.py')}']
model = dict(
    backbone=dict(base_channels=16, stem_channels=16),
    neck=dict(in_channel=128, num_deconv_filters=(32, 16, 16)),
    bbox_head=dict(in_channel=16, feat_channel=16, num_classes=6),
    test_cfg=dict(topk=2000))  # among the best 100 of seeded weights all are peaks
"""
SEEDED = dict(ssd=SSD, centernet=CENTERNET)
NAMES = ('retinanet', 'yolox', *SEEDED)


def load(name, folder):
    """Return a trained toy, or a small model with seeded weights."""
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    if name not in SEEDED:
        paths = f'configs/demo/{name}_toy.py', f'demo/checkpoints/{name}_toy.pth'
        return deploy.load(*(str(REPO / path) for path in paths))
    config, checkpoint = folder / f'{name}.py', folder / f'{name}.pth'
    config.write_text(SEEDED[name])
    load_config(str(config))
    write_seeded(str(config), checkpoint)
    return deploy.load(str(config), str(checkpoint))


def options_of(deployment):
    return deployment.family.choose(opset=17, dynamic=True, height=SIZE[0], width=SIZE[1])


def export(deployment, path):
    """Export the `full` form, dynamic."""
    picture = deploy.prepare_fixed(deployment.rule, PICTURE, *SIZE)
    export_files(deployment, options_of(deployment), str(path), [picture])
    return str(path)


# --- faults of files: what changes a graph -----------------------------------------------------------


def tensors(graph):
    """Yield (array, what stores another one) of every constant behind the network."""
    for node in graph.node:
        if node.op_type == 'Constant' and 'network' not in node.name:
            tensor = node.attribute[0].t
            yield constant_value(node), functools.partial(store, tensor)
    for tensor in graph.initializer:
        if not tensor.name.startswith('network'):
            yield numpy_helper.to_array(tensor), functools.partial(store, tensor)


def store(tensor, array):
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), tensor.name))


def constant(old, change):
    """Change the first constant that is these numbers."""

    def plant(graph):
        old_array = np.asarray(old)
        for array, keep in tensors(graph):
            numbers = array is not None and array.dtype.kind in 'fi' and array.size == old_array.size
            if numbers and np.allclose(array.ravel(), old_array.ravel(), rtol=1e-5):
                keep(np.asarray(change(array.copy()), array.dtype))
                return
        raise AssertionError(f'no constant is {old}')

    return plant


def prior(graph):
    """One anchor of the first level is a tenth wider."""
    for array, keep in tensors(graph):
        if array is not None and array.dtype.kind == 'f' and array.shape[2:] == (4,):
            array = array.copy()
            array[:, 0] *= 1.1
            return keep(array)
    raise AssertionError('no anchors')


def classes(part):
    """Two classes change places in the last layer."""

    def plant(graph):
        for tensor in graph.initializer:
            if part in tensor.name and tensor.name.endswith('weight'):
                array = numpy_helper.to_array(tensor).copy()
                array[[0, 1]] = array[[1, 0]]
                store(tensor, array)
                return
        raise AssertionError(f'no weight of {part}')

    return plant


def peak(graph):
    """Peaks are looked for in five by five cells."""
    node = [node for node in graph.node if node.op_type == 'MaxPool'][-1]
    for entry in node.attribute:
        if entry.name in ('kernel_shape', 'pads'):
            entry.ints[:] = [2 if entry.name == 'pads' else 5] * len(entry.ints)


def one_less(array):
    return array - 1


OF_FILES = {
    ('retinanet', "a coder's deviation"): constant([0.5] * 4, lambda one: one * [1, 1, 1.1, 1]),
    ('retinanet', "a level's stride"): constant(64.0, lambda one: one + 1),
    ('retinanet', "a prior's size"): prior,
    ('retinanet', 'score_thr 0.06'): constant(0.05, lambda one: one + np.float32(0.01)),
    ('retinanet', 'nms_pre 999'): constant(1000, one_less),
    ('retinanet', 'IoU 0.51'): constant([0.5], lambda one: one + np.float32(0.01)),
    ('retinanet', 'class order'): classes('retina_cls'),
    ('yolox', "a level's stride"): constant(16.0, lambda one: one + 1),
    ('yolox', 'score_thr 0.02'): constant(0.01, lambda one: one + np.float32(0.01)),
    ('yolox', 'IoU 0.66'): constant([0.65], lambda one: one + np.float32(0.01)),
    ('yolox', 'class order'): classes('multi_level_conv_cls.0'),
    ('ssd', "a coder's deviation"): constant([0.1, 0.1, 0.2, 0.2], lambda one: one * [1, 1, 1.1, 1]),
    ('ssd', "a prior's size"): prior,
    ('ssd', 'score_thr 0.03'): constant(0.02, lambda one: one + np.float32(0.01)),
    ('ssd', 'IoU 0.46'): constant([0.45], lambda one: one + np.float32(0.01)),
    ('ssd', 'class order'): classes('cls_convs.0'),
    ('centernet', 'five by five cells'): peak,
    ('centernet', 'cells of 5 pixels'): constant(4.0, lambda one: one + 1),
    ('centernet', 'topk 1999'): constant(2000, one_less),
    ('centernet', 'class order'): classes('heatmap_head.2'),
}
