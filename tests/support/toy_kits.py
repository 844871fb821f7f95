"""Kits of the toys of every family, to be run and judged on another engine or device.

`python tests/support/toy_kits.py FOLDER [NAME...]` writes `FOLDER/NAME/kit` for each name, or for all not yet
there; `mm2onnx judge FOLDER/NAME/kit OUTPUTS --run ENGINE` judges an engine of this machine by one of them.
The kits that `tools/analysis_tools/judge_engines.sh` makes are not among them.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPO = Path(__file__).resolve().parents[2]
if __name__ == '__main__':
    sys.path.insert(0, str(REPO))

from mmdeploy_ext import compat  # noqa: E402
from mmdeploy_ext.core import cli  # noqa: E402
from mmdeploy_ext.core.errors import one_line  # noqa: E402

compat.apply()

import toy_anchor3d  # noqa: E402
import toy_centerpoint  # noqa: E402
import toy_corner  # noqa: E402
import toy_query  # noqa: E402
import toy_two_stage  # noqa: E402
from mmdeploy_ext.cli import graph_app, kit_app  # noqa: E402
from mmdeploy_ext.core.config import load_config, mmdet_config  # noqa: E402
from mmdeploy_ext.core.errors import Mm2OnnxError, UsageError  # noqa: E402
from mmdeploy_ext.seeded.weights import write_seeded  # noqa: E402
from toys import MORE_TOYS, PROJECTS, TOYS, Toy, in_folder, seeded, wide_sweeps  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from toys import Model

FRAMES = 4
"""Frames or sweeps of a kit of several files."""


def _deformable() -> Any:
    """Return the config of ATSS with deformable convolutions in the last stage of its backbone."""
    cfg = load_config(f'{REPO}/configs/demo/atss_toy.py')
    backbone = cfg.model.backbone
    backbone.pop('init_cfg', None)
    backbone.update(
        depth=50,
        dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, False, False, True),
    )
    cfg.model.neck.in_channels = [4 * channels for channels in cfg.model.neck.in_channels]
    return cfg


class SampledToy(Toy):
    """A toy whose deformable convolutions are written in operators that every engine has."""

    def export(self, folder: Path) -> Path:
        """Write the file, and replace DeformConv in it; return the path of the second one."""
        path, sampled = super().export(folder), folder / 'sampled.onnx'
        graph_app.main(['replace', str(path), '--named', 'deform-conv', '--output', str(sampled)])
        return sampled


def _seeded(name: str, config: str, *options: str, folder: bool = False) -> Toy:
    """Return a toy of projects/configs with seeded weights."""

    def write(folder: Path) -> Model:
        write_seeded(f'{REPO}/{PROJECTS}/{config}', folder / 'seeded.pth')
        return f'{REPO}/{PROJECTS}/{config}', str(folder / 'seeded.pth')

    return Toy(name, write, options, folder=folder)


def _dense(config: str, **changes: Any) -> Any:
    """Return the config of a head of mmdet on a small network; `changes` are of the head."""
    cfg, small = load_config(mmdet_config(config)), load_config(f'{REPO}/configs/demo/retinanet_toy.py').model
    model = cfg.model
    stages, model.backbone = model.backbone.out_indices, copy.deepcopy(small.backbone)
    model.backbone.pop('init_cfg', None)
    model.backbone.out_indices = stages
    pyramid, *above = model.neck if isinstance(model.neck, list) else [model.neck]
    widths = [(16, 32, 64, 128)[stage] for stage in stages]
    pyramid.update(in_channels=widths if len(widths) > 1 else widths[0], out_channels=32)
    for part in above:
        part.update(in_channels=32, out_channels=32, num_blocks=2)
    model.bbox_head.update(num_classes=6, in_channels=32)
    for key in ('feat_channels', 'point_feat_channels'):
        if key in model.bbox_head:
            model.bbox_head[key] = 32
    model.bbox_head.update(changes)
    return cfg


def _yolof() -> Any:
    """Return the config of a small YOLOF."""
    cfg = _dense('yolof/yolof_r50_c5_8x8_1x_coco.py')
    cfg.model.neck.block_mid_channels = 8
    return cfg


def _rtmdet() -> Any:
    """Return the config of an RTMDet of a sixteenth of the widths."""
    cfg = load_config(f'{REPO}/configs/rtmdet/rtmdet_tiny.py')
    cfg.model.backbone.widen_factor = 0.125
    cfg.model.neck.update(in_channels=[32, 64, 128], out_channels=32)
    cfg.model.bbox_head.update(in_channels=32, feat_channels=32, num_classes=6)
    return cfg


def _sweeps(name: str, written: Callable[[str], Any], kind: str) -> Toy:
    """Return a tiny detector of sweeps."""
    return Toy(name, lambda folder: written(kind)[2:], (), wide_sweeps, folder=True)


CAMERA = ('--dynamic-export', '--shape', '192', '352')
SMALL = ('--shape', '192', '256')
LARGER = ('--shape', '288', '320')
DEFORMABLE = ('--dynamic-export', '--shape', '256', '320')
FIXED = ('panoptic_fpn', 'decoupled_solo', 'solov2')
ANY_SIZE = ('atss', 'mask_rcnn')
SEEDED = (
    *('ssd', 'centernet', 'faster_rcnn', 'cascade_rcnn', 'yolact', 'cornernet', 'detr', 'dino', 'queryinst'),
    *('mask2former', 'mask2former_panoptic', 'solo', 'second', 'mvx'),
)
"""Names of `MORE_TOYS`."""
EVERY = (
    *(Toy(name, TOYS[name].model) for name in FIXED),
    *(Toy(f'{name}_any_size', TOYS[name].model, ('--dynamic-export',)) for name in ANY_SIZE),
    Toy('atss_deformable', seeded(_deformable), DEFORMABLE),
    SampledToy('atss_deformable_sampled', seeded(_deformable), DEFORMABLE),
    *(MORE_TOYS[name] for name in SEEDED),
    *(_seeded(name, f'Monocular/{name}_toy.py', *CAMERA) for name in ('fcos3d', 'pgd', 'smoke')),
    in_folder('pointpillars', 'PointPillars/pointpillars_toy.py'),
    in_folder('bevformer', 'BEVFormer/bevformer_toy.py'),
    *(_seeded(name, f'PETR/{name}_toy.py', folder=True) for name in ('petr', 'petrv2')),
    _seeded('sparse4d', 'Sparse4D/sparse4d_toy.py', folder=True),
    _seeded('imvoxelnet', 'ImVoxelNet/imvoxelnet_toy.py', *CAMERA),
    _seeded('mvxnet', 'MVXNet/mvxnet_toy.py', folder=True),
)
HEADS: dict[str, Any] = dict(
    fcos=functools.partial(_dense, 'fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py'),
    gfl=functools.partial(_dense, 'gfl/gfl_r50_fpn_1x_coco.py'),
    tood=functools.partial(_dense, 'tood/tood_r50_fpn_1x_coco.py'),
    vfnet=functools.partial(_dense, 'vfnet/vfnet_r50_fpn_1x_coco.py'),
    reppoints=functools.partial(_dense, 'reppoints/reppoints_moment_r50_fpn_1x_coco.py'),
    paa=functools.partial(_dense, 'paa/paa_r50_fpn_1x_coco.py'),
    autoassign=functools.partial(_dense, 'autoassign/autoassign_r50_fpn_8x2_1x_coco.py'),
    foveabox=functools.partial(_dense, 'foveabox/fovea_r50_fpn_4x4_1x_coco.py'),
    sabl_retinanet=functools.partial(_dense, 'sabl/sabl_retinanet_r50_fpn_1x_coco.py'),
    atss_dyhead=functools.partial(_dense, 'dyhead/atss_r50_fpn_dyhead_1x_coco.py'),
    yolof=_yolof,
    rtmdet=_rtmdet,
    **{
        name: functools.partial(toy_two_stage.toy, kind)
        for name, kind in dict(
            htc='htc',
            scnet='scnet',
            mask_scoring_rcnn='judged',
            point_rend='points',
            grid_rcnn='grid',
            sabl_rcnn='sabl',
            double_head_rcnn='double',
            groie_rcnn='generic',
            deformable_pooling='moved',
            carafe='carafe',
            cascade_rpn='staged',
            soft_nms='soft',
        ).items()
    },
    sparse_rcnn=functools.partial(toy_query.toy, 'regions'),
    maskformer=functools.partial(toy_query.toy, 'maskformer'),
    deformable_detr_two_stage=functools.partial(toy_query.toy, 'two_stage'),
    centripetalnet=functools.partial(toy_corner.toy, 'centripetal'),
)
"""Name -> what returns the config of a head of mmdet on a small network; seeded weights, kits of one size."""
WIDE = ('vfnet', 'reppoints')
"""Names of `HEADS` that take no picture as small as the others'."""


def _of_head(name: str) -> Toy:
    return Toy(name, seeded(HEADS[name]), LARGER if name in WIDE else SMALL)


SWEEPS = (
    _sweeps('centerpoint_deformable', toy_centerpoint.exported, 'deformable'),
    _sweeps('centerpoint_circle', toy_centerpoint.exported, 'circle'),
    _sweeps('centerpoint_rotate', toy_centerpoint.exported, 'oblong'),
    _sweeps('pillars_dynamic', toy_anchor3d.exported, 'dynamic'),
    _sweeps('shape_aware', toy_anchor3d.exported, 'shapes'),
)
"""Tiny detectors of sweeps, whose weights are drawn so that they find boxes."""
KITS: dict[str, Toy] = {toy.name: toy for toy in (*EVERY, *map(_of_head, HEADS), *SWEEPS)}
"""Name -> toy of the kit."""


def write(toy: Toy, kit: Path) -> None:
    """Export a toy, and write its kit."""
    with tempfile.TemporaryDirectory() as holder:
        path = toy.export(Path(holder) / 'file')
        config, checkpoint, *changes = toy.words()
        samples = ['--samples', *toy.sample_words()[1:]] if toy.sample_words() else []
        frames = ['--frames', str(FRAMES)] if toy.folder else []
        words = [str(path), config, checkpoint, '--out', str(kit), *samples, *frames, *changes]
        with contextlib.redirect_stdout(io.StringIO()):
            kit_app.run(kit_app.build_parser().parse_args(words))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(description='Write kits of the toys of every family.')
    add = cli.adder(parser)
    add('folder FOLDER', 'folder to write; kits that are there stay', writes='')
    add('names NAME', f'of {", ".join(KITS)}', nargs='*')
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the kits that are not there; 1 where one is refused."""
    unknown = set(args.names) - KITS.keys()
    if unknown:
        raise UsageError(f'{", ".join(sorted(unknown))}: expected names of {", ".join(KITS)}')
    refused = 0
    for name in args.names or KITS:
        kit = Path(args.folder) / name / 'kit'
        if kit.exists():
            continue
        begin = time.process_time()
        try:
            write(KITS[name], kit)
        except Mm2OnnxError as error:
            refused += 1
            print(f'{name}: {one_line(error)}', flush=True)
        else:
            print(f'{name}: {time.process_time() - begin:.0f} CPU s', flush=True)
    return 1 if refused else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    return cli.run(run, build_parser, argv)


if __name__ == '__main__':
    sys.exit(main())
