"""Kits of the toys of every family, to be run and judged on another engine or device.

`python tests/toy_kits.py FOLDER [NAME...]` writes `FOLDER/NAME/kit` for each name, or for all that are not
there; `mm2onnx judge FOLDER/NAME/kit OUTPUTS --run ENGINE` judges an engine of this machine by one of them.
The kits that `make tensorrt-judged` makes are not among them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPO = Path(__file__).resolve().parents[1]
if __name__ == '__main__':
    sys.path.insert(0, str(REPO))

from mmdeploy_ext import compat  # noqa: E402
from mmdeploy_ext.core import cli  # noqa: E402
from mmdeploy_ext.core.printable import one_line  # noqa: E402

compat.apply()

from mmdeploy_ext.cli import graph_app, kit_app  # noqa: E402
from mmdeploy_ext.core.config import load_config  # noqa: E402
from mmdeploy_ext.core.errors import Mm2OnnxError, UsageError  # noqa: E402
from mmdeploy_ext.synthetic.seeded import write_seeded  # noqa: E402
from mutation_toys import PROJECTS, TOYS, Toy, in_folder, seeded  # noqa: E402
from planted_toys import FAULT_TOYS  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mutation_toys import Model

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

    def export(self, folder: Path, **options: Any) -> Path:
        """Write the file, and replace DeformConv in it; return the path of the second one."""
        path, sampled = super().export(folder, **options), folder / 'sampled.onnx'
        graph_app.main(['replace', str(path), '--named', 'deform-conv', '--output', str(sampled)])
        return sampled


def _seeded(name: str, config: str, *options: str, folder: bool = False) -> Toy:
    """Return a toy of projects/configs with seeded weights."""

    def write(folder: Path) -> Model:
        write_seeded(f'{REPO}/{PROJECTS}/{config}', folder / 'seeded.pth')
        return f'{REPO}/{PROJECTS}/{config}', str(folder / 'seeded.pth')

    return Toy(name, write, options, folder=folder)


CAMERA = ('--dynamic-export', '--shape', '192', '352')
DEFORMABLE = ('--dynamic-export', '--shape', '256', '320')
FIXED = ('panoptic_fpn', 'decoupled_solo', 'solov2')
ANY_SIZE = ('atss', 'mask_rcnn')
SEEDED = (
    *('ssd', 'centernet', 'faster_rcnn', 'cascade_rcnn', 'yolact', 'cornernet', 'detr', 'dino', 'queryinst'),
    *('mask2former', 'mask2former_panoptic', 'solo', 'second', 'mvx'),
)
"""Names of `FAULT_TOYS`."""
EVERY = (
    *(Toy(name, TOYS[name].model) for name in FIXED),
    *(Toy(f'{name}_any_size', TOYS[name].model, ('--dynamic-export',)) for name in ANY_SIZE),
    Toy('atss_deformable', seeded(_deformable), DEFORMABLE),
    SampledToy('atss_deformable_sampled', seeded(_deformable), DEFORMABLE),
    *(FAULT_TOYS[name] for name in SEEDED),
    *(_seeded(name, f'Monocular/{name}_toy.py', *CAMERA) for name in ('fcos3d', 'pgd', 'smoke')),
    in_folder('pointpillars', 'PointPillars/pointpillars_toy.py'),
    in_folder('bevformer', 'BEVFormer/bevformer_toy.py'),
    *(_seeded(name, f'PETR/{name}_toy.py', folder=True) for name in ('petr', 'petrv2')),
    _seeded('sparse4d', 'Sparse4D/sparse4d_toy.py', folder=True),
    _seeded('imvoxelnet', 'ImVoxelNet/imvoxelnet_toy.py', *CAMERA),
    _seeded('mvxnet', 'MVXNet/mvxnet_toy.py', folder=True),
)
KITS: dict[str, Toy] = {toy.name: toy for toy in EVERY}
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
    cli.add_debug_option(parser)
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
