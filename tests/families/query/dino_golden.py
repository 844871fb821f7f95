"""What mmdet 3.3.0 gives for a small DINO and DDQ DETR, on generated weights: names and sampled values.

`PYTHONPATH=tests/support .venv-mmdet3/bin/python tests/families/query/dino_golden.py` writes
`dino_golden.json`; the tests build the translated config, fill it in the same way and compare. Needs numpy
and torch alone.
"""

import copy
import json
from pathlib import Path

import numpy as np
import torch

from drawn_weights import drawn

FILE = Path(__file__).with_suffix('.json')
SIZE, SHAPES = (2, 3, 64, 96), [(64, 96), (48, 80)]
"""Of the batch, and of the pictures in it."""
SAMPLES = 200
"""Values of each output that are kept."""
NO_RESULT = -1e4
"""Logit of a query that gives no result."""
LAYER = dict(ffn_cfg=dict(embed_dims=256, feedforward_channels=64, ffn_drop=0.0))
POINTS = dict(embed_dims=256, num_levels=4, dropout=0.0)
MODEL = dict(
    type='DINO',
    num_queries=20,
    with_box_refine=True,
    as_two_stage=True,
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=8,
        num_stages=4,
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
    ),
    neck=dict(
        type='ChannelMapper',
        in_channels=[16, 32, 64],
        kernel_size=1,
        out_channels=256,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32),
        num_outs=4,
    ),
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=POINTS, **LAYER)),
    decoder=dict(
        num_layers=2,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.0), cross_attn_cfg=POINTS, **LAYER
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(num_feats=128, normalize=True, offset=0.0, temperature=20),
    bbox_head=dict(
        type='DINOHead',
        num_classes=5,
        sync_cls_avg_factor=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=100),
    ),
    test_cfg=dict(max_per_img=10),
)
MODELS = dict(
    DINO=MODEL,
    DDQDETR=dict(
        MODEL,
        type='DDQDETR',
        num_queries=72,  # more than distinct tokens in one of the pictures
        dense_topk_ratio=1.5,
        dqs_cfg=dict(type='nms', iou_threshold=0.4),
        decoder=dict(MODEL['decoder'], num_layers=4),
        bbox_head=dict(MODEL['bbox_head'], type='DDQDETRHead'),
    ),
)


def pictures():
    """Return (B, 3, H, W) float32; what is beside a picture is 0."""
    batch = torch.from_numpy(np.random.default_rng(0).normal(0, 1, SIZE).astype(np.float32))
    for image, (height, width) in zip(batch, SHAPES, strict=True):
        image[:, height:], image[:, :, width:] = 0.0, 0.0
    return batch


def sampled(outputs):
    """Return sampled values of scores and boxes."""
    flat = [one.numpy().ravel() for one in outputs]
    places = [np.linspace(0, len(values) - 1, SAMPLES).astype(int) for values in flat]
    return [values[place].astype(float).tolist() for values, place in zip(flat, places, strict=True)]


def main():
    """Write the file, by mmdet 3."""
    from mmcv.ops import nms
    from mmdet import registry
    from mmdet.models.detectors import ddq_detr
    from mmdet.structures import DetDataSample
    from mmdet.utils import register_all_modules

    def stable_nms(boxes, scores, _, cfg):
        order, ranks = scores.argsort(descending=True, stable=True), torch.arange(len(scores))
        return None, order[nms(boxes[order], -ranks.float(), cfg['iou_threshold'])[1]]

    ddq_detr.batched_nms = stable_nms  # tokens in padding are equal
    register_all_modules()
    cases = {}
    for kind, config in MODELS.items():
        model = registry.MODELS.build(copy.deepcopy(config)).eval()
        for name, tensor in model.state_dict().items():
            tensor.copy_(drawn(name, tensor))
        samples = [
            DetDataSample(metainfo=dict(batch_input_shape=SIZE[2:], img_shape=shape)) for shape in SHAPES
        ]
        with torch.no_grad():
            inside = model.forward_transformer(model.extract_feat(pictures()), samples)
            outputs = model.bbox_head(inside['hidden_states'], inside['references'])
        logits, boxes = (layers[-1] for layers in outputs)
        if kind == 'DDQDETR':
            kept = model.cache_dict['distinct_query_mask'][-1][:: model.cache_dict['num_heads'], 0, :, None]
            logits = torch.where(kept, logits, NO_RESULT)
        shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        cases[kind] = dict(shapes=shapes, outputs=sampled([logits.sigmoid(), boxes]))
    FILE.write_text(json.dumps(cases) + '\n')


if __name__ == '__main__':
    main()
