"""How far PyTorch's own results of a seeded config are from those with its layers in float64.

`python tests/support/own_rounding.py CONFIG` prints a line for each picture: results that
find a partner, and the worst pair. Where these are as few as between PyTorch and a file, the network makes
rounding large, and no fault of the file is shown.
"""

import argparse

import torch

from mmdeploy_ext import compat

PICTURE_CHANGES = ('plain', 'dark', 'bright')


def in_float64(layer):
    """Return the forward of a convolution or linear layer that computes in float64, and gives float32."""
    weight = layer.weight.double()
    bias = None if layer.bias is None else layer.bias.double()

    def forward(value):
        if isinstance(layer, torch.nn.Linear):
            return torch.nn.functional.linear(value.double(), weight, bias).float()
        return layer._conv_forward(value.double(), weight, bias).float()

    return forward


def results_of(model, family, image, double):
    """Return the results of an image, with `double` those of convolutions and linear layers in float64."""
    layers = [part for part in model.modules() if type(part) in (torch.nn.Conv2d, torch.nn.Linear)]
    for layer in layers if double else ():
        layer.forward = in_float64(layer)
    results = family.reference(model).results([image], True)[0]
    for layer in layers if double else ():
        del layer.forward
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='below the configs of the installed mmdet')
    parser.add_argument('--shape', nargs=2, type=int, default=(320, 448))
    parser.add_argument('--pictures', nargs='+', choices=PICTURE_CHANGES, default=PICTURE_CHANGES)
    args = parser.parse_args()
    compat.apply()
    torch.set_num_threads(1)
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.families import model as deploy
    from mmdeploy_ext.families.base import DETECTOR, find_family, load_families
    from mmdeploy_ext.preprocess import DEFAULT_PICTURE
    from mmdeploy_ext.proving.inputs import pictures
    from mmdeploy_ext.proving.inputs.samples import read_images
    from mmdeploy_ext.seeded.weights import seeded_model
    from mmdeploy_ext.tasks import task_module
    from mmdeploy_ext.zoo.configs import installed_folder

    load_families()
    cfg = load_config(str(installed_folder() / args.config))
    family = find_family(cfg, DETECTOR)
    model, rule = seeded_model(cfg, family).eval(), family.preprocess_rule(cfg)
    _, picture = read_images([DEFAULT_PICTURE], 1)[0]
    for change in args.pictures:
        changed = picture if change == 'plain' else getattr(pictures, change)(picture)
        image = deploy.prepare_fixed(rule, changed, *args.shape)
        single, double = (results_of(model, family, image, double) for double in (False, True))
        row = task_module(family.task).match_detections(change, single, double)
        print(
            f'{change}: {row.matched} of {row.reference}, {row.extra} more in float64, '
            f'IoU {row.worst_iou:.6f}, score {row.worst_score:.1e}'
        )


if __name__ == '__main__':
    main()
