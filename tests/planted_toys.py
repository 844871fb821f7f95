"""The toys whose code gets faults: those of `mutation_toys`, and more heads of the same families."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import toy_anchor3d
import toy_bevfusion
import toy_centerpoint
import toy_corner
import toy_query
import toy_solo
import toy_two_stage
from mmdeploy_ext.core.config import load_config, mmdet_config
from mmdeploy_ext.core.errors import UsageError
from mutation_toys import (
    DYNAMIC,
    SMALL_DYNAMIC,
    SWEEPS,
    TOYS,
    AutowareToy,
    Toy,
    of_query,
    register,
    seeded,
    tiny_centerpoint,
    write_small,
)
from planting import TOYS_OF
from toy_atss import REPO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def _ssd() -> Any:
    cfg = load_config(f'{REPO}/configs/demo/retinanet_toy.py')
    generator = dict(
        type='SSDAnchorGenerator',
        input_size=300,
        basesize_ratio_range=(0.15, 0.9),
        strides=[8, 16, 32, 64, 128],
        ratios=[[2], [2, 3], [2, 3], [2, 3], [2]],
    )
    coder = dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])
    cfg.model.bbox_head = dict(
        type='SSDHead', num_classes=6, in_channels=(64,) * 5, anchor_generator=generator, bbox_coder=coder
    )
    cfg.model.backbone.pop('init_cfg', None)
    cfg.model.train_cfg = None
    cfg.model.test_cfg = dict(
        nms=dict(type='nms', iou_threshold=0.45), nms_pre=300, score_thr=0.1, max_per_img=200
    )
    return cfg


def _centernet() -> Any:
    cfg = load_config(mmdet_config('centernet/centernet_resnet18_140e_coco.py'))
    cfg.model.backbone.update(base_channels=16, stem_channels=16)
    cfg.model.neck.update(in_channel=128, num_deconv_filters=(32, 16, 16))
    cfg.model.bbox_head.update(in_channel=16, feat_channel=16, num_classes=6)
    cfg.model.test_cfg.topk = 2000  # among the best 100 of seeded weights all are peaks
    return cfg


def _dino() -> Any:
    """Return a DINO of the two-stage toy of Deformable DETR."""
    cfg = toy_query.toy('two_stage')
    cfg.model.type, head = 'DINO', cfg.model.bbox_head
    head.type, head.transformer.type = 'DINOHead', 'DinoTransformer'
    head.transformer.decoder.type = 'DinoTransformerDecoder'
    return cfg


def _soft_rcnn(folder: Path) -> tuple[str, str]:
    """Write the Faster R-CNN of `mutation_toys` with soft suppression."""
    cfg = toy_two_stage.toy('faster')
    cfg.model.test_cfg.rcnn.nms = dict(type='soft_nms', iou_threshold=0.5, min_score=0.05)
    return toy_two_stage.write_config(cfg, folder / 'soft.py'), TOYS['faster_rcnn'].files[1]


def _solo(folder: Path) -> tuple[str, str]:
    """Write the seeded SOLO of `toy_solo`."""
    deployment = toy_solo.load_toy('solo', folder)
    weights = deployment.model.state_dict()
    torch.save(dict(state_dict=weights, meta={}), folder / 'seeded.pth')
    return write_small(deployment.cfg, folder), str(folder / 'seeded.pth')


def _tiny_anchors(kind: str) -> Callable[[Path], tuple[str, str]]:
    """Return what writes a tiny detector of `toy_anchor3d`."""
    return lambda folder: toy_anchor3d.exported(kind)[2:]


def _tiny_bevfusion(folder: Path) -> tuple[str, str]:
    """Write a small BEVFusion whose boxes differ as those of a trained one."""
    register()
    return toy_bevfusion.varied(folder)


def _wide_sweeps(folder: Path, lags: bool = False) -> list[str]:
    """Write sweeps of a wider range than `tiny_sweeps`; of those with time lags every pillar counts."""
    paths = []
    for seed, count in enumerate(SWEEPS[:3] if lags else SWEEPS[1:4]):
        points = toy_centerpoint.sweep(seed, count) * np.float32([1, 1.5, 1, 1, 1])
        if lags:
            points[:, 4] = np.random.default_rng(seed).integers(0, 2, count) * 0.1
        paths.append(str(folder / f'sweep_{seed}.npy'))
        np.save(paths[-1], points)
    return ['--images', *paths]


_node_sweeps = functools.partial(_wide_sweeps, lags=True)
MORE = (
    Toy('ssd', seeded(_ssd), DYNAMIC),
    Toy('centernet', seeded(_centernet), DYNAMIC),
    Toy('cascade_rcnn', seeded(functools.partial(toy_two_stage.toy, 'cascade')), DYNAMIC),
    Toy('soft_rcnn', _soft_rcnn, DYNAMIC),
    of_query('detr', 'detr'),
    Toy('dino', seeded(_dino), SMALL_DYNAMIC),
    Toy('centripetalnet', seeded(toy_corner.toy, 'centripetal'), SMALL_DYNAMIC),
    Toy('solo', _solo, DYNAMIC),
    Toy(
        'streampetr_padded',
        TOYS['streampetr'].model,
        folder=True,
        overrides=('data.test.pipeline.1.data_aug_conf.final_dim=[90,250]',),
    ),
    Toy('centerpoint_rotate', tiny_centerpoint('oblong'), (), _wide_sweeps, folder=True),
    Toy('centerpoint_circle', tiny_centerpoint('circle'), (), _wide_sweeps, folder=True),
    Toy('pillars', _tiny_anchors('pointpillars'), (), _wide_sweeps, folder=True),
    Toy('second', _tiny_anchors('second'), (), _wide_sweeps, folder=True),
    Toy('mvx', _tiny_anchors('mvx'), (), _wide_sweeps, folder=True),
    Toy('bevfusion_varied', _tiny_bevfusion, folder=True),
    AutowareToy(
        'autoware_varied',
        tiny_centerpoint('node_oblong'),
        ('--contract', 'autoware'),
        _node_sweeps,
        folder=True,
    ),
)
"""Toys whose files are not mutated: their graphs are built of the same modules as others of their family."""
FAULT_TOYS: dict[str, Toy] = TOYS | {toy.name: toy for toy in MORE}
"""Name -> toy."""


def toys_of(names: Iterable[str]) -> list[str]:
    """Return the toys of families; a toy may be named itself. UsageError: a name of neither."""
    toys = []
    for name in names:
        if name not in TOYS_OF and name not in FAULT_TOYS:
            raise UsageError(f'--family {name}: expected one of {", ".join((*TOYS_OF, *FAULT_TOYS))}')
        toys += (name,) if name in FAULT_TOYS and name not in TOYS_OF else TOYS_OF[name]
    return list(dict.fromkeys(toys))
