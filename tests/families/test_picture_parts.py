"""Sizes, feeds and defaults that families of pictures share, on values told by hand."""

import dataclasses
from types import SimpleNamespace as Names

import numpy as np
import pytest
import torch

from mmdeploy_ext.base.errors import ShapeError
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.common import detector_parts, image_graphs
from mmdeploy_ext.families.common.box_conventions import note_convention
from mmdeploy_ext.families.detector import resolve
from mmdeploy_ext.families.images import batches
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.preparation import PreprocessRule

IMAGE = PreparedImage(
    np.zeros((3, 64, 128), np.float32), (50, 100), np.float32([2.5, 2.4, 2.5, 2.4]), (21, 40), border=(3, 7)
)


@pytest.mark.parametrize(
    ('rule', 'size'),
    [
        (dict(img_scale=(1333, 800), size_divisor=32), (800, 1344)),
        (dict(img_scale=(800, 1333), size_divisor=32), (800, 1344)),
        (dict(img_scale=(300, 500), keep_ratio=False, size_divisor=32), (512, 320)),
        (dict(size_divisor=128), (640, 640)),
        (dict(img_scale=(1333, 800), size=(96, 160)), (96, 160)),
    ],
)
def test_a_file_without_a_shape_has_a_padded_landscape_of_the_test_scale(rule, size):
    options = resolve(FAMILIES['dense'].choose(opset=17), torch.nn.Module(), PreprocessRule(**rule))
    assert (options.height, options.width) == size


def test_masks_are_pasted_into_the_larger_of_the_original_and_the_rounded_content():
    assert image_graphs.pasted_size(IMAGE, rescale=True) == (21, 40)  # 50 / 2.4 is 20.83
    assert image_graphs.pasted_size(dataclasses.replace(IMAGE, ori_shape=(20, 39)), True) == (21, 40)
    assert image_graphs.pasted_size(IMAGE, rescale=False) == (50, 100)


def test_feeds_of_pictures_have_their_sizes_borders_and_ratios():
    plain = dataclasses.replace(IMAGE, border=(0, 0))
    feeds = image_graphs.feeds([IMAGE, plain], rescale=True)
    assert feeds['img_shape'].tolist() == [[50, 100]] * 2 and feeds['border'].tolist() == [[3, 7], [0, 0]]
    assert feeds['scale_factor'].dtype == np.float32 and feeds['scale_factor'].shape == (2, 4)
    assert image_graphs.feeds([plain], rescale=False).keys() == {'input', 'img_shape'}
    other = dataclasses.replace(IMAGE, ori_shape=(40, 21))
    with pytest.raises(ShapeError, match='ori_shape'):
        image_graphs.mask_feeds([IMAGE, other], True)
    assert batches(FAMILIES['solo'], [IMAGE, other, IMAGE]) == [[0, 2], [1]]


def test_windows_of_four_sizes_stand_for_missing_proposals():
    windows = image_graphs.proposals_of(IMAGE)
    assert len(windows) == 1 + 9 + 49 + 225 and windows[0].tolist() == [0, 0, 100, 50]
    assert windows[2].tolist() == [25, 0, 75, 25] and windows.max(0).tolist() == [87.5, 43.75, 100, 50]
    scored = dataclasses.replace(IMAGE, proposals=np.float64([[1, 2, 3, 4, 0.9]]))
    assert image_graphs.proposals_of(scored).tolist() == [[1, 2, 3, 4]]


def test_sizes_that_a_neck_of_more_maps_takes_double_with_each():
    assert [detector_parts.multiple_of('YOLOXPAFPN', dict(in_channels=[8] * maps)) for maps in (3, 5)] == [
        32,
        128,
    ]
    assert detector_parts.multiple_of('HRNet', dict(in_channels=3)) == 32
    assert detector_parts.multiple_of('FPN', dict(in_channels=[8] * 5)) == 1


@pytest.mark.parametrize(
    ('version', 'stated', 'found'),
    [('0.17.1', False, '0.17'), ('1.0.0rc6', False, '1.x'), ('', False, '?'), ('1.0.0', True, '?')],
)
def test_a_checkpoint_tells_the_box_convention_that_a_config_leaves_open(version, stated, found):
    model = Names(states_boxes=stated, box_convention='?')
    note_convention(model, Names(meta=dict(mmdet3d_version=version)))
    assert model.box_convention == found
