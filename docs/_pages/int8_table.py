"""The metric of every family before and after INT8: float file, quantise, INT8 file, by the test loop."""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import Mm2OnnxError, UsageError
from mmdeploy_ext.engines.registry import ENGINES, QUANTISED

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
BAR = 0.01
"""Loss of a metric."""
STREAM = 'projects/configs/StreamPETR/'
NUSCENES = {'NDS': 'pts_bbox_NuScenes/NDS', 'mAP': 'pts_bbox_NuScenes/mAP'}
LIDAR = 'toy_nuscenes_infos'
"""Beginning of the names of infos, train and val."""


@dataclasses.dataclass(frozen=True)
class Toy:
    """A trained toy.

    Attributes:
        config: without `.py`; its `_onnx` config is evaluated.
        kinds: of `--eval`.
        metrics: title -> key of the loop's metrics.
        data: 'coco' or 'nuscenes'.
        infos: beginning of the names of infos of the latter.
        keep_float: patterns of layers.
    """

    config: str
    kinds: tuple[str, ...]
    metrics: dict[str, str]
    data: str = 'coco'
    infos: str = 'toy_nuscenes2d_temporal_infos'
    keep_float: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the config, which the checkpoint and the work directory have, too."""
        return Path(self.config).name


TOYS = {
    toy.name: toy
    for toy in (
        Toy('configs/demo/atss_toy', ('bbox',), {'box AP': 'bbox_mAP'}),
        Toy('configs/demo/rtdetr_toy', ('bbox',), {'box AP': 'bbox_mAP'}),
        Toy('configs/demo/decoupled_solo_toy', ('segm',), {'mask AP': 'segm_mAP'}),
        Toy('configs/demo/solov2_toy', ('segm',), {'mask AP': 'segm_mAP'}),
        Toy(
            'configs/demo/mask_rcnn_toy',
            ('bbox', 'segm'),
            {'box AP': 'bbox_mAP', 'mask AP': 'segm_mAP'},
        ),
        Toy('configs/demo/retinanet_toy', ('bbox',), {'box AP': 'bbox_mAP'}),
        Toy('configs/demo/yolox_toy', ('bbox',), {'box AP': 'bbox_mAP'}),
        Toy('configs/demo/deformable_detr_toy', ('bbox',), {'box AP': 'bbox_mAP'}),
        Toy(f'{STREAM}stream_petr_toy', ('bbox',), NUSCENES, 'nuscenes'),
        Toy('projects/configs/BEVFormer/bevformer_toy', ('bbox',), NUSCENES, 'nuscenes'),
        Toy(
            'projects/configs/PointPillars/pointpillars_toy',
            ('bbox',),
            NUSCENES,
            'nuscenes',
            LIDAR,
            ('*blocks.0*',),  # in INT8 they cost 0.021 of the mAP
        ),
        Toy('projects/configs/BEVFusion/centerpoint_toy', ('bbox',), NUSCENES, 'nuscenes', LIDAR),
        Toy('projects/configs/BEVFusion/bevfusion_toy', ('bbox',), NUSCENES, 'nuscenes', LIDAR),
    )
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Quantise the trained toys and evaluate them before and after with dist_test_onnx.sh; '
        f'prints a table in Markdown. Exit status 1 where a metric falls by more than {BAR}.'
    )
    parser.add_argument(
        'toys',
        nargs='*',
        metavar='TOY',
        help=f'some of {", ".join(TOYS)} (default: all that the engine runs)',
    )
    parser.add_argument('--engine', choices=QUANTISED, default='onnxruntime', help='quantises and runs')
    cli.writes(
        parser.add_argument(
            '--work-dir', default='work_dirs/int8', metavar='DIR', help='(default: work_dirs/int8)'
        ),
        '',
    )
    parser.add_argument('--coco', default='data/toy_coco', metavar='DIR', help='made where it is missing')
    parser.add_argument('--nuscenes', default='data/toy_nuscenes', metavar='DIR', help='likewise')
    parser.add_argument(
        '--images', type=int, default=100, metavar='N', help='images or frames to calibrate on (default: 100)'
    )
    parser.add_argument('--json', metavar='FILE', help='write the figures as JSON')
    cli.add_debug_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure; 1 if a metric fell by more than the bar, or is no number."""
    from mmdeploy_ext.core.files import write_json

    toys = _chosen(args.toys, args.engine)
    args.coco, args.nuscenes = os.path.abspath(args.coco), os.path.abspath(args.nuscenes)
    _make_data({toy.data for toy in toys}, args)
    rows = []
    for toy in toys:
        rows += _measure(toy, args)
    if args.json:
        write_json(args.json, rows)
    print(table(rows))
    is_kept = [row['float'] - row['int8'] <= BAR for row in rows]  # NaN is not
    return 0 if all(is_kept) else 1


def _chosen(names: Sequence[str], engine: str) -> list[Toy]:
    unknown = [name for name in names if name not in TOYS]
    if unknown:
        raise UsageError(f'{", ".join(unknown)}: no such toy; expected some of {", ".join(TOYS)}')
    toys = [TOYS[name] for name in names or TOYS]
    if engine == 'openvino':
        memories = [toy.name for toy in toys if toy.data == 'nuscenes']
        if names and memories:
            raise UsageError(f'{", ".join(memories)}: keeps its memory in ONNX Runtime; no --engine openvino')
        toys = [toy for toy in toys if toy.data != 'nuscenes']
    return toys


def _make_data(kinds: set[str], args: argparse.Namespace) -> None:
    """Make the generated data sets that are missing."""
    if 'coco' in kinds and not Path(args.coco, 'annotations').is_dir():
        _call('python', '-m', 'mmdeploy_ext', 'synthetic', 'coco', '--out', args.coco)
    infos = Path(args.nuscenes, 'toy_nuscenes2d_temporal_infos_val.pkl')
    if 'nuscenes' in kinds and not infos.is_file():
        _call('python', '-m', 'mmdeploy_ext', 'synthetic', 'nuscenes', '--root', args.nuscenes)
        names = ['--root-path', args.nuscenes, '--extra-tag', 'toy_nuscenes']
        _call('python', 'tools/create_data.py', 'nuscenes', *names)


def _measure(toy: Toy, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row per metric."""
    from mmdeploy_ext.core.files import read_json

    folder = Path(args.work_dir).resolve() / toy.name
    ending = '' if toy.data == 'nuscenes' else '.onnx'
    model, int8 = folder / f'float{ending}', folder / f'int8_{args.engine}{ending}'
    report = folder / f'int8_{args.engine}.json'
    before = _evaluate(toy, model, folder / f'float_{args.engine}', args)
    source = f'{args.nuscenes}/{toy.infos}_train.pkl' if not ending else f'{args.coco}/train2017'
    quantise = [
        'tools/deployment/quantize.py',
        model,
        '--calibrate',
        source,
        '--output',
        int8,
        '--json',
        report,
    ]
    options = ['--engine', args.engine, '--images', args.images, '--rounds', 0]
    float_layers = ['--keep-float', *toy.keep_float] if toy.keep_float else []
    _call('python', *quantise, *options, *float_layers)
    after = _evaluate(toy, int8, folder / f'evaluated_{args.engine}', args)
    size = read_json(report)['size_ratio']
    return [
        dict(toy=toy.name, metric=title, engine=args.engine, float=before[key], int8=after[key], size=size)
        for title, key in toy.metrics.items()
    ]


def _evaluate(toy: Toy, model: Path, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Return the loop's metrics of a file, which it exports where it is missing."""
    from mmdeploy_ext.core.files import read_json

    options = [f'backend_config.onnx_file={model}', 'backend_config.check_dump=False']
    if toy.data == 'coco':
        options.append(f'data.test.ann_file={args.coco}/annotations/instances_val2017.json')
        options.append(f'data.test.img_prefix={args.coco}/val2017/')
    else:
        options.append(f'data.test.ann_file={args.nuscenes}/{toy.infos}_val.pkl')
        options.append(f'data.test.data_root={args.nuscenes}/')
    config = _config(toy, folder, args.engine)
    test = ['bash', 'tools/dist_test_onnx.sh', config, f'demo/checkpoints/{toy.name}.pth', 1]
    _call(*test, '--eval', *toy.kinds, '--work-dir', folder, '--cfg-options', *options)
    return read_json(folder / ENGINES[args.engine].metrics)['metrics']


def _config(toy: Toy, folder: Path, engine: str) -> str:
    """Return the toy's config for an engine; one is written where the tree has none."""
    if engine == 'onnxruntime':
        return f'{toy.config}_onnx.py'
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f'{toy.name}_{engine}.py'
    bases = [str(ROOT / f'{toy.config}.py'), str(ROOT / f'configs/_base_/backends/{engine}.py')]
    config.write_text(f'_base_ = {bases!r}\n', encoding='utf-8')
    return str(config)


def _call(*words: object) -> None:
    """Run a command of this project; its output goes to stderr.

    Raises:
        Mm2OnnxError: it failed.
    """
    command = [sys.executable if word == 'python' else str(word) for word in words]
    environment = dict(os.environ, PYTHON=sys.executable)
    status = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, env=environment, check=False).returncode
    if status:
        raise Mm2OnnxError(f'exit status {status} of: {" ".join(map(str, words))}')


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures in Markdown."""
    lines = [
        '| model | metric | engine | float32 | INT8 | loss | file |',
        '|---|---|---|---:|---:|---:|---:|',
    ]
    for row in rows:
        before, after = row['float'], row['int8']
        lines.append(
            f'| {row["toy"]} | {row["metric"]} | {row["engine"]} | {before:.4f} | {after:.4f} | '
            f'{before - after:+.4f} | {row["size"]:.3f}x |'
        )
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    return cli.run(run, build_parser(), argv)
