"""The layers of detectors with several heads, for a batch, against mmrotate's, image by image."""

import pytest
import small_models
import torch
from mmcv.ops import rotated_feature_align
from mmrotate.models.detectors.utils import AlignConv

from mm2onnx_mmrotate.dense import networks, reference


def boxes(height, width, batch=2, seed=0):
    """Return boxes (batch, 5, height, width), some of them beyond every border of a map of stride 8."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([width * 8.0, height * 8.0, 60, 40, 3]).view(1, 5, 1, 1)
    return torch.rand(batch, 5, height, width, generator=generator) * sizes * 1.4 - sizes * 0.2


def test_features_at_centres_are_those_of_mmcv():
    maps, rois = torch.randn(2, 4, 6, 9), boxes(6, 9)
    expected = rotated_feature_align(maps, rois.permute(0, 2, 3, 1).contiguous(), 1 / 8)
    sampled = maps + networks.features_at_centres(maps, rois, 1 / 8)
    torch.testing.assert_close(sampled, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
def test_offsets_put_the_taps_of_a_kernel_where_mmrotate_does(kernel_size):
    align, rois = AlignConv(4, 4, kernel_size, stride=8), boxes(5, 7)
    expected = [align.get_offset(image.flatten(1).T, (5, 7), 8) for image in rois]
    torch.testing.assert_close(
        networks.align_offsets(rois, kernel_size, 8), torch.stack(expected), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize('name', ['r3det', 's2anet', 'fcos', 'softmax'])
def test_a_batch_gives_the_outputs_of_mmrotate(name):
    _, _, model = small_models.seeded(name)
    images = small_models.pictures(2)
    with torch.no_grad():
        outputs = networks.flat_outputs(model, images)
        folded = networks.flat_outputs(networks.with_turned_filters(model), images)
        expected = reference.upstream_outputs(model, images)
    for output, copy, right in zip(outputs, folded, expected, strict=True):
        scale = float(right.abs().max())
        torch.testing.assert_close(output, right, rtol=1e-5, atol=2e-6 * scale)
        torch.testing.assert_close(copy, right, rtol=1e-4, atol=2e-5 * scale)
