"""Seeded weights and images for the SOLO family: what the project's reference tensors were made with.

`mm2onnx synthetic seeded CONFIG OUT.pth` writes weights;
`python -m projects.toydata.seeded_solo --size 448 672 --ori-shape 427 640 --out input.npz` an image.

Source: ../shared/golden/solo/FILL.md. The rule depends on names and shapes of the original SOLO repository
alone; the class bias lets 1000 to 3000 of 309 760 scores pass the threshold, so that every cut is exercised.
"""

import argparse
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.synthetic.seeded_sparse import by_names, rng
from mmdeploy_ext.weights.convert.solo_names import original_name

CLASS_BIAS = -4.6
COORDINATE_GAIN = 8.0
LATERAL_GAIN = 0.1
RESIDUAL_GAIN = 0.25


def seeded_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return the seeded value of every key -> shape of a state dict.

    Names of the original repository and mmdet's give the same values.
    """
    decoupled = any('conv_mask_list_x.' in key for key in shapes)
    originals = {key: original_name(key, decoupled) for key in shapes}
    three = {name.rpartition('.bn3.')[0] for name in originals.values() if '.bn3.' in name}
    return by_names(shapes, lambda key, shape: _values(originals[key], shape, three))


def _values(name: str, shape: tuple[int, ...], three: set[str]) -> np.ndarray:
    normal = rng(name).standard_normal(shape)
    if name.endswith('running_var'):
        return 1 + 0.1 * np.abs(normal)
    if name.endswith('running_mean'):
        return 0.02 * normal
    if re.match(r'^bbox_head\.d?solo_cate\.bias$', name):
        return np.full(shape, CLASS_BIAS)
    if name.endswith('.bias'):
        return 0.02 * normal
    if len(shape) == 4:
        return _convolution(name, normal)
    block, _, norm = name.removesuffix('.weight').rpartition('.')
    last = 'bn3' if block in three else 'bn2'
    damped = re.match(r'^backbone\.layer\d\.\d+$', block) and norm == last
    return (1 + 0.05 * normal) * (RESIDUAL_GAIN if damped else 1.0)


def _convolution(name: str, normal: np.ndarray) -> np.ndarray:
    values = normal * math.sqrt(2 / math.prod(normal.shape[1:]))
    if name.startswith('neck.lateral_convs.'):
        values *= LATERAL_GAIN
    if normal.shape[1] in (257, 258):
        values[:, 256:] *= COORDINATE_GAIN
    return values


def seeded_image(height: int, width: int) -> torch.Tensor:
    """Return the network's input (1, 3, H, W) float32, normalised: coarse blocks and noise."""
    source = rng('img')
    noise = source.standard_normal((1, 3, height, width))
    blocks = source.standard_normal((1, 3, math.ceil(height / 64), math.ceil(width / 64)))
    coarse = blocks.repeat(64, 2).repeat(64, 3)[:, :, :height, :width]
    return torch.from_numpy((coarse + 0.25 * noise).astype(np.float32))


def write_image(args: argparse.Namespace) -> int:
    """Write `input`, `img_shape` and `ori_shape` as .npz."""
    height, width = args.size
    if height % 32 or width % 32 or min(args.size + args.ori_shape) < 1:
        raise UsageError(f'--size {height} {width}: expected multiples of 32, as networks are fed')
    if not args.out.endswith('.npz'):
        raise UsageError(f'--out {args.out}: expected a .npz file')
    content = dict(input=seeded_image(height, width).numpy(), img_shape=args.img_shape or args.size)
    with atomic_path(args.out) as temporary, open(temporary, 'wb') as stream:
        np.savez(stream, ori_shape=args.ori_shape, **content)
    print(f'{args.out}: written')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Write a seeded image; 0 done, 2 usage."""
    parser = cli.ArgumentParser(
        prog='python -m projects.toydata.seeded_solo', description=__doc__.splitlines()[0]
    )
    size = dict(type=int, nargs=2, metavar=('H', 'W'))
    parser.add_argument('--size', **size, required=True, help='of the network input, multiples of 32')
    parser.add_argument('--img-shape', **size, help='of the content before padding (default: --size)')
    parser.add_argument('--ori-shape', **size, required=True, help='of the original image, which masks get')
    cli.writes(parser.add_argument('--out', required=True, metavar='FILE.npz'))
    cli.add_debug_option(parser)
    return cli.run(write_image, parser, argv)


if __name__ == '__main__':
    raise SystemExit(main())
