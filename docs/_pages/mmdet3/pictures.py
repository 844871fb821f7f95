"""A picture as both versions give it to the model: `python -m docs._pages.mmdet3.pictures OUT`.

Of every config of `kinds.py` mmdet 3 loads demo/toy.jpg by its test pipeline and `data_preprocessor`, mmdet
2.28 by the translated pipeline. The largest difference of normalised pixels goes into `docs/mmdet3.json`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from docs._pages.mmdet3.kinds import KINDS
from docs._pages.mmdet3.measure import DATA, OTHER, ROOT, configs3
from mmdeploy_ext.core import cli

PICTURE = ROOT / 'demo/toy.jpg'


def picture2(name: str) -> np.ndarray:
    """Return the batch of a picture, (1, 3, H, W) float32, as mmdet 2.28 gives it to the model."""
    from mmdet.datasets.pipelines import Compose

    from mmdeploy_ext.weights.convert.mmdet3_config import read_mmdet3_config, to_mmdet2_config

    cfg = to_mmdet2_config(read_mmdet3_config(configs3() / name))
    steps = Compose(cfg.data.test.pipeline)
    batch = steps(dict(img_info=dict(filename=str(PICTURE)), img_prefix=None))['img'][0]
    return np.asarray(getattr(batch, 'data', batch), np.float32)[None]


def body(args: argparse.Namespace) -> int:
    """Write the pictures of mmdet 3, or compare both."""
    from mmdeploy_ext import compat
    from mmdeploy_ext.core.files import read_json, write_json

    args.out.mkdir(parents=True, exist_ok=True)
    compat.apply()
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    command = [
        str(OTHER / 'bin/python'),
        '-W',
        'ignore',
        '-m',
        'docs._pages.mmdet3.other_pictures',
        str(args.out),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    pixels = {}
    for name in KINDS:
        picture, picture3 = picture2(name), np.load(args.out / f'{name.replace("/", "__")}.npy')
        same = picture.shape == picture3.shape
        pixels[name] = (
            float(np.abs(picture - picture3).max()) if same else f'{picture.shape[2:]} / {picture3.shape[2:]}'
        )
        print(name, picture.shape, pixels[name])
    content = read_json(DATA) if DATA.is_file() else {}
    write_json(DATA, {**content, 'pixels': pixels})
    return 0


def main() -> int:
    """Run the command."""
    prog = 'python -m docs._pages.mmdet3.pictures'
    parser = cli.ArgumentParser(prog=prog, description='Compare pictures as both versions load them.')
    parser.add_argument('out', type=Path, help='folder of the pictures of mmdet 3')
    cli.add_debug_option(parser)
    return cli.run(body, parser, None)


if __name__ == '__main__':
    sys.exit(main())
