"""Faults of every image network: batch normalisation folded wrongly, inputs for which it is wrong."""

from __future__ import annotations

import torch

from planting import FAULTS, Planted, arguments, folding, planted


def norms(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the batch normalisations that are folded."""
    kind = torch.nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kind)]


def _large_epsilon(model: torch.nn.Module) -> None:
    for norm in norms(model):
        norm.eps *= 10


def _no_mean(model: torch.nn.Module) -> None:
    norms(model)[-1].running_mean.zero_()


FOLDED = ('atss', 'solov2', 'decoupled_solo', 'rtdetr', 'streampetr', 'centerpoint')
FAULTS += [Planted('folding: epsilon x 10', toy, folding(_large_epsilon)) for toy in FOLDED]
FAULTS += [Planted('folding: the last mean is forgotten', toy, folding(_no_mean)) for toy in FOLDED[:4]]

PROJECTS = 'mmdeploy_ext.families.mmdet_plugin'
NETWORKS = dict(
    atss='mmdeploy_ext.families.parts.dense_graphs:RawNetwork.forward',
    solov2='mmdeploy_ext.families.solo.networks:BatchedNetwork.forward',
    decoupled_solo='mmdeploy_ext.families.solo.networks:BatchedNetwork.forward',
    rtdetr='mmdeploy_ext.families.rtdetr.graphs:RtDetrNetwork.forward',
)
OTHERS = dict(
    faster_rcnn='mmdeploy_ext.families.two_stage.graphs:TwoStageNetwork.forward',
    mask_rcnn='mmdeploy_ext.families.two_stage.graphs:TwoStageNetwork.forward',
    panoptic_fpn='mmdeploy_ext.families.two_stage.graphs:TwoStageNetwork.forward',
    deformable_detr='mmdeploy_ext.families.parts.query_networks:QueryNetwork.forward',
    queryinst='mmdeploy_ext.families.query.regions:RegionsNetwork.forward',
    mask2former='mmdeploy_ext.families.query.masks:Mask2FormerNetwork.forward',
    yolact='mmdeploy_ext.families.yolact.graphs:YolactNetwork.forward',
    cornernet='mmdeploy_ext.families.corner.graphs:CornerNetwork.forward',
)
"""Toy -> its network, which gets the faults of `FEW`."""


def _inside(image: torch.Tensor, axis: int, size: torch.Tensor | int) -> torch.Tensor:
    """Return an image with zeros from a row or column on."""
    steps = torch.arange(image.shape[axis])
    keep = (steps < size).to(image.dtype)
    return image * (keep[:, None] if axis == 2 else keep)


def _drop_noise(image: torch.Tensor) -> torch.Tensor:
    """Forget that dropout is for training: one run in ten is another."""
    return image * (1 + 0.1 * (torch.rand(1) < 0.1).to(image.dtype))


IMAGES = {
    'rows from 640 on are left out': lambda image: _inside(image, 2, 640),
    'columns from 640 on are left out': lambda image: _inside(image, 3, 640),
    'rows beyond a multiple of 64 are left out': lambda image: _inside(image, 2, image.shape[2] // 64 * 64),
    'columns beyond twice the height are left out': lambda image: _inside(image, 3, 2 * image.shape[2]),
    'a dark picture is NaN': lambda image: (
        image + 0 * torch.log(image.mean(dim=(1, 2, 3), keepdim=True) + 1.4)
    ),
    'images from the third on are the second': lambda image: image[torch.arange(image.shape[0]).clamp(max=1)],
    'dropout runs': _drop_noise,
}
FEW = ('columns beyond twice the height are left out', 'images from the third on are the second')
for _toy, _place in (NETWORKS | OTHERS).items():
    for _name, _change in IMAGES.items():
        if _toy == 'rtdetr' and 'dark' in _name:  # RGB / 255: a black picture has a mean of 0 there
            continue
        if _toy in NETWORKS or _name in FEW:
            planted(
                f'network: {_name}',
                _toy,
                (
                    _place,
                    arguments(lambda self, image, *rest, change=_change: (self, change(image), *rest)),
                ),
            )
