"""The registry that `data.shuffler_sampler` and `data.nonshuffler_sampler` of a config name."""

from mmcv.utils import Registry

SAMPLER = Registry('sampler')
