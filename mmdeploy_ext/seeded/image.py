"""Writes the seeded input image of SOLO's reference tensors."""

import argparse

import numpy as np

from mmdeploy_ext.util import cli
from mmdeploy_ext.util.errors import UsageError
from mmdeploy_ext.util.files import atomic_path


def run(args: argparse.Namespace) -> int:
    from mmdeploy_ext.seeded.by_name import solo_image

    height, width = args.size
    if height % 32 or width % 32 or min(args.size) < 1:
        raise UsageError(f'--size {height} {width}: expected multiples of 32, as networks are fed')
    for option, sides in (('--ori-shape', args.ori_shape), ('--img-shape', args.img_shape or args.size)):
        if min(sides) < 1:
            raise UsageError(f'{option} {sides[0]} {sides[1]}: expected 1 or more pixels each')
    if not args.out.endswith('.npz'):
        raise UsageError(f'--out {args.out}: expected a .npz file')
    image, img_shape = solo_image(height, width).numpy(), args.img_shape or args.size
    with atomic_path(args.out) as temporary, open(temporary, 'wb') as stream:
        np.savez(stream, ori_shape=args.ori_shape, input=image, img_shape=img_shape)
    print(f'{args.out}: written')
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    size = dict(type=int, nargs=2, metavar=('H', 'W'))
    parser.add_argument('--size', **size, required=True, help='of the network input, multiples of 32')
    parser.add_argument('--img-shape', **size, help='of the content before padding (default: --size)')
    parser.add_argument('--ori-shape', **size, required=True, help='of the original image, which masks get')
    cli.add_output(parser, '--out FILE.npz', 'file to write', required=True)
