"""Toys of every family: a config and a checkpoint on disk, and the words by which the tools export them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import toy_anchor3d
import toy_centerpoint
import toy_corner
import toy_query
import toy_scn_family
import toy_solo
import toy_two_stage
import toy_yolact
from mmdeploy_ext.cli import export_app, export_scn_app
from mmdeploy_ext.core.config import load_config, mmdet_config, without_augmentation
from mmdeploy_ext.families.base import load_families
from mmdeploy_ext.seeded.weights import write_seeded
from toy_atss import REPO

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Model = tuple[str, str]

SWEEPS = (100, 400, 1200, 3000, 3000, 3000)
"""Points of the sweeps of the tiny LiDAR models; with 3000 most voxels are full."""
SMALL = (320, 256)
"""Pixels, (width, height): the scale of the test pipelines of seeded toys."""
HOLDERS: list[tempfile.TemporaryDirectory] = []
"""They remove their folders when Python ends."""


@functools.cache
def folder_of(name: str) -> Path:
    """Return a folder that lasts as long as this process."""
    holder = tempfile.TemporaryDirectory(prefix=f'{name}_')
    HOLDERS.append(holder)
    return Path(holder.name)


@dataclasses.dataclass(frozen=True)
class Toy:
    """A model, and how its files are exported.

    Attributes:
        name: key of `TOYS`.
        model: writes or names config and checkpoint, asked once.
        options: words of the export, without files.
        samples: words of a proof or of a kit that name its samples, without files.
        folder: the export is a folder of graphs.
        overrides: of the config.
    """

    name: str
    model: Callable[[Path], Model]
    options: tuple[str, ...] = ()
    samples: Callable[[Path], Sequence[str]] = lambda folder: ()
    folder: bool = False
    overrides: tuple[str, ...] = ()

    @property
    def files(self) -> Model:
        """Config and checkpoint, written once."""
        return _model_of(self)

    def words(self) -> list[str]:
        """Return config, checkpoint and overrides as the tools take them."""
        load_families()
        toy_scn_family.register()
        changes = ['--cfg-options', *self.overrides] if self.overrides else []
        return [*self.files, *changes]

    def output(self, folder: Path) -> Path:
        """Return the file or folder that an export into a folder writes."""
        return folder / (self.name if self.folder else f'{self.name}.onnx')

    def export(self, folder: Path) -> Path:
        """Write the files into a new folder; return the file, or the folder of graphs."""
        folder.mkdir(parents=True, exist_ok=True)
        words = [*self.words(), '--output-file', str(self.output(folder)), *self.options]
        with contextlib.redirect_stdout(io.StringIO()):
            status = self.run_export(words)
        assert status == 0, self.name
        return self.output(folder)

    def run_export(self, words: list[str]) -> int:
        """Run the exporting tool; return its exit status."""
        return export_app.main(words)

    def sample_words(self) -> Sequence[str]:
        """Return the words that name its samples, which are written once."""
        return _samples_of(self)


@functools.cache
def _model_of(toy: Toy) -> Model:
    return toy.model(folder_of(toy.name))


@functools.cache
def _samples_of(toy: Toy) -> tuple[str, ...]:
    return tuple(toy.samples(folder_of(toy.name)))


class SparseToy(Toy):
    """A sparse backbone; its name has the dialect, the model's folder the net."""

    def run_export(self, words: list[str]) -> int:
        """Run the exporting tool; return its exit status."""
        return export_scn_app.main(words)

    def output(self, folder: Path) -> Path:
        """Return the file, whose name has the order of its coordinates."""
        return folder / 'backbone.xyz.onnx'


def trained(config: str, checkpoint: str = '') -> Callable[[Path], Model]:
    """Return what names a config of the repository and its trained checkpoint."""
    path = REPO / 'demo/checkpoints' / f'{checkpoint or Path(config).stem}.pth'
    return lambda folder: (str(REPO / config), str(path))


def seeded(cfg_of: Callable[..., Any], *kind: str) -> Callable[[Path], Model]:
    """Return what writes a config whose pictures are small, and a checkpoint with seeded weights."""

    def write(folder: Path) -> Model:
        config, checkpoint = write_small(cfg_of(*kind), folder), folder / 'seeded.pth'
        write_seeded(config, checkpoint)
        return config, str(checkpoint)

    return write


def write_small(cfg: Any, folder: Path) -> str:
    """Write a config whose test pipeline gives small pictures; return its path."""
    without_augmentation(cfg)
    for pipeline in (cfg.data.test.pipeline, cfg.get('test_pipeline') or ()):
        for step in pipeline:
            if 'img_scale' in step:
                step['img_scale'] = SMALL
    return toy_two_stage.write_config(cfg, folder / 'm.py')


def faster_rcnn(folder: Path) -> Model:
    """Write a Faster R-CNN with the weights of the trained Mask R-CNN."""
    checkpoint = torch.load(REPO / 'demo/checkpoints/mask_rcnn_toy.pth', map_location='cpu')
    weights = {key: value for key, value in checkpoint['state_dict'].items() if 'mask_head' not in key}
    torch.save(dict(checkpoint, state_dict=weights), folder / 'm.pth')
    return toy_two_stage.write_config(toy_two_stage.toy('faster'), folder / 'm.py'), str(folder / 'm.pth')


def tiny_centerpoint(variant: str) -> Callable[[Path], Model]:
    """Return what writes a tiny CenterPoint of `toy_centerpoint`."""
    return lambda folder: toy_centerpoint.exported(variant)[2:]


def tiny_sweeps(folder: Path) -> Sequence[str]:
    """Write sweeps for the tiny LiDAR models; return the words that give them."""
    paths = []
    for seed, count in enumerate(SWEEPS):
        paths.append(str(folder / f'sweep_{seed}.npy'))
        np.save(paths[-1], toy_centerpoint.sweep(seed, count))
    return ['--images', *paths]


DYNAMIC = ('--dynamic-export', '--shape', '256', '320', '--opset-version', '17')
SMALL_DYNAMIC = ('--dynamic-export', '--shape', '192', '256')
SCORE = 'model.pts_bbox_head.bbox_coder.score_threshold=0.517'
"""The tiny CenterPoint's threshold in the middle of its scores."""
PROJECTS = 'projects/configs'


def of_demo(name: str) -> Toy:
    """Return a trained detector of pictures of configs/demo, `full` and dynamic."""
    return Toy(name.removesuffix('_toy'), trained(f'configs/demo/{name}.py'), DYNAMIC)


def of_query(name: str, kind: str) -> Toy:
    """Return a seeded detector of queries, dynamic."""
    return Toy(name, seeded(toy_query.toy, kind), SMALL_DYNAMIC)


def of_sparse(target: str, net: str) -> Toy:
    """Return a sparse backbone of a dialect."""
    model = functools.partial(toy_scn_family.write_model, net=net)
    return SparseToy(f'sparse_{target}', model, ('--target', target))


def in_folder(name: str, config: str, checkpoint: str = '') -> Toy:
    """Return a trained model of sweeps or frames, whose proof has what is generated where no data set is."""
    return Toy(name, trained(f'{PROJECTS}/{config}', checkpoint), folder=True)


EVERY = (
    *map(of_demo, ('atss_toy', 'retinanet_toy', 'yolox_toy', 'mask_rcnn_toy', 'deformable_detr_toy')),
    *map(of_demo, ('panoptic_fpn_toy', 'solov2_toy', 'decoupled_solo_toy', 'rtdetr_toy')),
    Toy('faster_rcnn', faster_rcnn, DYNAMIC),
    of_query('queryinst', 'regions_masks'),
    of_query('mask2former', 'instances'),
    of_query('mask2former_panoptic', 'panoptic'),
    Toy('yolact', seeded(toy_yolact.toy), SMALL_DYNAMIC),
    Toy('cornernet', seeded(toy_corner.toy), SMALL_DYNAMIC),
    in_folder('streampetr', 'StreamPETR/stream_petr_toy.py'),
    Toy('centerpoint', tiny_centerpoint('sparse'), (), tiny_sweeps, folder=True, overrides=(SCORE,)),
    in_folder('pointpillars', 'PointPillars/pointpillars_toy.py'),
    in_folder('bevfusion', 'BEVFusion/bevfusion_toy.py'),
    of_sparse('portable', 'bevfusion'),
    of_sparse('libspconv', 'second'),
    Toy(
        'autoware_centerpoint', tiny_centerpoint('node'), ('--contract', 'autoware'), tiny_sweeps, folder=True
    ),
)
TOYS: dict[str, Toy] = {toy.name: toy for toy in EVERY}
"""Name -> toy."""


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


def _solo(folder: Path) -> tuple[str, str]:
    """Write the seeded SOLO of `toy_solo`."""
    deployment = toy_solo.load_toy('solo', folder)
    weights = deployment.model.state_dict()
    torch.save(dict(state_dict=weights, meta={}), folder / 'seeded.pth')
    return write_small(deployment.cfg, folder), str(folder / 'seeded.pth')


def _tiny_anchors(kind: str) -> Callable[[Path], tuple[str, str]]:
    """Return what writes a tiny detector of `toy_anchor3d`."""
    return lambda folder: toy_anchor3d.exported(kind)[2:]


def wide_sweeps(folder: Path) -> list[str]:
    """Write sweeps of a wider range than `tiny_sweeps`."""
    paths = []
    for seed, count in enumerate(SWEEPS[1:4]):
        paths.append(str(folder / f'sweep_{seed}.npy'))
        np.save(paths[-1], toy_centerpoint.sweep(seed, count) * np.float32([1, 1.5, 1, 1, 1]))
    return ['--images', *paths]


MORE = (
    Toy('ssd', seeded(_ssd), DYNAMIC),
    Toy('centernet', seeded(_centernet), DYNAMIC),
    Toy('cascade_rcnn', seeded(functools.partial(toy_two_stage.toy, 'cascade')), DYNAMIC),
    of_query('detr', 'detr'),
    Toy('dino', seeded(_dino), SMALL_DYNAMIC),
    Toy('solo', _solo, DYNAMIC),
    Toy('second', _tiny_anchors('second'), (), wide_sweeps, folder=True),
    Toy('mvx', _tiny_anchors('mvx'), (), wide_sweeps, folder=True),
)
MORE_TOYS: dict[str, Toy] = TOYS | {toy.name: toy for toy in MORE}
"""The same with further heads of the families."""
