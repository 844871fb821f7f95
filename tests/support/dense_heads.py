"""Heads of mmdet's own configs with five classes, and random outputs of them: no network is run."""

from pathlib import Path

import mmdet
import numpy as np
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from made_once import copied
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.common.dense_heads import kind_of
from mmdeploy_ext.families.dense.family import DenseFamily
from mmdeploy_ext.families.dense.heads import facts_of

FAMILY = DenseFamily()
CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
REPO = Path(__file__).resolve().parents[2]
CLASSES = 5
HEADS = {
    'RetinaHead': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'RetinaHead of mmdet 1.x': 'legacy_1.x/retinanet_r50_fpn_1x_coco_v1.py',
    'FSAFHead': 'fsaf/fsaf_r50_fpn_1x_coco.py',
    'SSDHead': 'ssd/ssd300_coco.py',
    'YOLOFHead': 'yolof/yolof_r50_c5_8x8_1x_coco.py',
    'FCOSHead': 'fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py',
    'AutoAssignHead': 'autoassign/autoassign_r50_fpn_8x2_1x_coco.py',
    'DDODHead': 'ddod/ddod_r50_fpn_1x_coco.py',
    'VFNetHead': 'vfnet/vfnet_r50_fpn_1x_coco.py',
    'GFLHead': 'gfl/gfl_r50_fpn_1x_coco.py',
    'TOODHead': 'tood/tood_r50_fpn_1x_coco.py',
    'RepPointsHead': 'reppoints/reppoints_moment_r50_fpn_1x_coco.py',
    'FoveaHead': 'foveabox/fovea_r50_fpn_4x4_1x_coco.py',
    'PAAHead': 'paa/paa_r50_fpn_1x_coco.py',
    'GARetinaHead': 'guided_anchoring/ga_retinanet_r50_fpn_1x_coco.py',
    'SABLRetinaHead': 'sabl/sabl_retinanet_r50_fpn_1x_coco.py',
    'YOLOV3Head': 'yolo/yolov3_d53_320_273e_coco.py',
    'YOLOXHead': 'yolox/yolox_s_8x8_300e_coco.py',
    'RTMDetSepBNHead': str(REPO / 'configs/rtmdet/rtmdet_tiny.py'),
    'CenterNetHead': 'centernet/centernet_resnet18_140e_coco.py',
}
"""A config of each kind of head, and of each coder and generator of priors."""
ONE_IMAGE = ('GARetinaHead',)
BORDERS = [[3.0, 6.0], [0.0, 5.0], [1.0, 0.0]]
"""Rows above and columns left of the images of a batch, for heads whose boxes lose them."""
SIDES = torch.tensor([-1.0, -1.0, 1.0, 1.0])


@copied
def config_of(name):
    """Return the config of a head."""
    return load_config(str(CONFIGS / HEADS[name]))


def make_head(name, **test_cfg):
    """Return the head of a config, with five classes; each level keeps 40 candidates."""
    cfg = config_of(name)
    cfg.model.bbox_head.num_classes = CLASSES
    cfg.model.test_cfg.update({'nms_pre': 40, 'topk': 40, **test_cfg})
    return FAMILY.head(cfg)


def detector(head):
    """Return a detector of which there is the head alone."""
    return torch.nn.ModuleDict({'bbox_head': head}).eval()


def shapes_of(head, size):
    """Return (h, w) of each level; SSD's maps are of no other size than these in this test."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in facts_of(head).strides]


def random_outputs(head, seed, batch, size):
    """Return the raw outputs of a head, kind by kind, spread so that some candidates pass."""
    facts, draw = facts_of(head), torch.Generator().manual_seed(seed)
    found = []
    for name, columns in facts.head.outputs:
        for shape, priors in zip(shapes_of(head, size), facts.base_anchors, strict=True):
            values = torch.randn(batch, len(priors), columns, *shape, generator=draw)
            found.append(_spread(facts, name, values).flatten(1, 2))
    return found


def _spread(facts, name, values):
    head, coder = facts.head, facts.coder.type
    if name == 'cls_score':
        values = values * 1.5 - 2.5
        if head.activation == 'softmax':
            values[:, :, -1] += 3.0
        return values.sigmoid() if head.activation == 'none' else values
    if name == 'heatmap':
        return (values * 1.5 - 2.5).sigmoid()
    if name in ('wh', 'offset'):
        return values.abs() * (6.0 if name == 'wh' else 0.3)
    if name == 'pred_map':
        values[:, :, 4:] = values[:, :, 4:] * 1.5 - 2.0
        return values * 0.5 if coder != 'yolo' else torch.cat([values[:, :, :4] * 0.5, values[:, :, 4:]], 2)
    if name != 'bbox_pred':
        return values * (0.3 if name == 'shape_pred' else 1.5)
    if coder == 'scaled':
        return (values.abs() + 0.5) * 2 * SIDES.view(1, 1, 4, 1, 1)
    if coder in ('distance', 'tblr'):
        return values.abs() * (25.0 if coder == 'distance' else 0.2) + 0.01
    return values * (2.0 if coder == 'integral' else 0.5)


def by_mmdet(head, raw, img_shape, scale_factor=None, size=(128, 192)):
    """Return mmdet's detections: one (n, 5) array and one (n,) array of labels per image."""
    metas = [
        dict(
            img_shape=(*map(float, shape), 3),
            scale_factor=np.ones(4) if scale_factor is None else scale,
            batch_input_shape=size,
            border=[top, 0, left, 0],
        )
        for shape, scale, (top, left) in zip(
            img_shape, scale_factor or [None] * len(img_shape), BORDERS[: len(img_shape)], strict=True
        )
    ]
    copies = [tensor.clone() for tensor in raw]  # YOLOv3 takes the sigmoid in place
    with torch.no_grad():
        results = head.get_bboxes(
            *kind_of(head).unflatten(head, copies), img_metas=metas, rescale=scale_factor is not None
        )
    found = []
    for dets, labels in results:
        dets, labels = dets.numpy().reshape(len(labels), -1)[:, :5], labels.numpy()
        kept = ~np.isnan(dets).any(1) if len(labels) else np.ones(0, bool)
        found.append((dets.reshape(-1, 5)[kept], labels[kept]))
    return found
