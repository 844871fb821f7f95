"""The sparse encoders: published names, and the numbers of dense convolutions."""

import numpy as np
import pytest
import torch

pytest.importorskip('spconv')

from mmdet3d.models.builder import build_middle_encoder
from mmdet3d.models.middle_encoders import SparseEncoder
from spconv.pytorch import SubMConv3d
from torch import nn

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_seeded as seeded
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.base import BACKBONE, find_family
from scn_goldens import existing, fill_sha256, state_dict_net, voxels
from scn_nets import sweep

CONFIGS = 'projects/configs/BEVFusion'
SMALL = dict(
    in_channels=5,
    output_channels=16,
    base_channels=4,
    encoder_channels=((4, 4, 8), (8, 8, 8), (8, 8)),
    encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0)),
    block_type='basicblock',
)


def built(name):
    cfg = load_config(f'{CONFIGS}/{name}.py')
    family = find_family(cfg, BACKBONE)
    return family, cfg, family.build(cfg)


# ---- names


@pytest.mark.parametrize(
    ('name', 'net'),
    [
        ('bevfusion_lidar_0075voxel_nus', 'bevfusion'),
        ('centerpoint_lidar_0075voxel_nus', 'centerpoint_det3d'),
        (
            'centerpoint_0075voxel_second_secfpn_nus',
            'mmdet3d:centerpoint_0075voxel_second_secfpn_4x8_cyclic_20e_nus.py',
        ),
        ('second_secfpn_kitti', 'mmdet3d:SparseEncoder_default_conv_module'),
    ],
)
def test_keys_shapes_and_order_are_the_published_ones(name, net):
    golden = state_dict_net(net)
    family, cfg, model = built(name)
    prefix = family.settings(cfg, model).path + '.'
    own = {key: list(value.shape) for key, value in model.state_dict().items() if key.startswith(prefix)}
    own = {key: [*shape[1:], shape[0]] if len(shape) == 5 else shape for key, shape in own.items()}
    assert list(own.items()) == list(golden['keys_spconv1_layout'].items())
    assert len(own) == golden['n_keys']
    bare = {key.removeprefix(prefix): tuple(shape) for key, shape in own.items()}
    assert fill_sha256(bare, prefix) == golden['fill_sha256']


# ---- numbers


def dense_stage(x, active, part):
    """One layer of an encoder by dense operators: (1, C, d0, d1, d2) and the active sites (1, 1, ...)."""
    if isinstance(part, nn.BatchNorm1d):
        shape = (1, -1, 1, 1, 1)
        scale = part.weight / (part.running_var + part.eps).sqrt()
        x = (x - part.running_mean.view(shape)) * scale.view(shape) + part.bias.view(shape)
    elif isinstance(part, nn.ReLU):
        x = x.relu()
    else:
        weight = part.weight.permute(0, 4, 1, 2, 3)
        same = isinstance(part, SubMConv3d)
        padding = [size // 2 for size in part.kernel_size] if same else part.padding
        x = nn.functional.conv3d(x, weight, part.bias, 1 if same else part.stride, padding)
        if not same:
            ones = torch.ones(1, 1, *part.kernel_size, dtype=x.dtype)
            active = (nn.functional.conv3d(active, ones, None, part.stride, padding) > 0).to(x)
    return x * active, active


def dense_encoder(encoder, features, coordinates):
    """A whole encoder in float64 by dense operators; its blocks are found by their conv1."""
    at = tuple(torch.from_numpy(coordinates).long().t())
    x = torch.zeros(1, *encoder.sparse_shape, features.shape[1], dtype=torch.float64)
    active = torch.zeros(1, *encoder.sparse_shape, 1, dtype=torch.float64)
    x[at], active[at] = torch.from_numpy(features).double(), 1.0
    x, active = x.permute(0, 4, 1, 2, 3), active.permute(0, 4, 1, 2, 3)

    def run(part, x, active):
        if hasattr(part, 'conv1') and hasattr(part, 'bn1'):
            out = x
            for layer in (part.conv1, part.bn1, part.relu, part.conv2, part.bn2):
                out, active = dense_stage(out, active, layer)
            return (out + x).relu(), active
        if not list(part.children()):
            return dense_stage(x, active, part)
        for child in part.children():
            x, active = run(child, x, active)
        return x, active

    return run(encoder, x, active)[0]


def encoders():
    yield build_middle_encoder(dict(type='BEVFusionSparseEncoder', sparse_shape=[24, 20, 17], **SMALL))
    yield build_middle_encoder(dict(type='SparseEncoder', sparse_shape=[17, 24, 20], **SMALL))
    yield build_middle_encoder(
        dict(
            type='CenterPointSparseEncoder',
            sparse_shape=[41, 24, 16],
            in_channels=5,
            channels=(4, 8, 8, 12),
            output_channels=8,
        )
    )


@pytest.mark.parametrize('index', range(3))
def test_an_encoder_equals_dense_convolutions_on_its_active_sites(index):
    encoder = list(encoders())[index].eval()
    seeded.fill_sparse_module(encoder)
    features, coordinates = sweep(encoder.sparse_shape, 120, 5)
    with torch.no_grad():
        got = encoder(torch.from_numpy(features), torch.from_numpy(coordinates), 1)
        expected = dense_encoder(encoder.double(), features, coordinates)
    if index == 0:  # channel * Z + z, rows x, columns y
        expected = expected.permute(0, 1, 4, 2, 3)
    expected = expected.flatten(1, 2)
    assert got.shape == expected.shape and float(expected.abs().max()) > 0.01
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_bevfusions_encoder_is_mmdet3ds_with_its_axes_turned():
    turned = next(encoders()).eval()
    plain = SparseEncoder(sparse_shape=[17, 20, 24], **SMALL).eval()
    seeded.fill_sparse_module(turned)
    own = plain.state_dict(keep_vars=True)
    with torch.no_grad():
        for key, value in turned.state_dict().items():
            own[key].copy_(value.permute(0, 3, 2, 1, 4) if value.ndim == 5 else value)
        features, coordinates = sweep((24, 20, 17), 120, 5)
        one = turned(torch.from_numpy(features), torch.from_numpy(coordinates), 1)
        reverse = np.ascontiguousarray(coordinates[:, [0, 3, 2, 1]])
        other = plain(torch.from_numpy(features), torch.from_numpy(reverse), 1)
    torch.testing.assert_close(one, other.transpose(2, 3), rtol=0, atol=1e-5 * float(other.abs().max()))


def test_the_published_bevfusion_gives_the_stored_output_of_the_unfused_network(tmp_path):
    """The one test at full size: a checkpoint in mit-han-lab's form, 2942 voxels, 1440 x 1440 x 41."""
    golden = existing('numeric/dense_synth_w32.npz')
    family, _, model = built('bevfusion_lidar_0075voxel_nus')
    prefix = 'encoders.lidar.backbone.'
    shapes = {key: tuple(value.shape) for key, value in family.encoder(model).state_dict().items()}
    shapes = {key: (*shape[1:], shape[0]) if len(shape) == 5 else shape for key, shape in shapes.items()}
    state = {
        f'{prefix}{key}': torch.from_numpy(np.array(value))
        for key, value in seeded.sparse_weights(shapes, prefix).items()
    }
    torch.save(dict(state_dict=state), tmp_path / 'lidar.pth')
    report = family.load(model, str(tmp_path / 'lidar.pth'))
    assert report.prefix == prefix and set(report.layouts.values()) == {'spconv1'} and not report.rest
    dense = family.run_encoder(model, *voxels('input_synth'))
    with np.load(golden) as stored:
        places, expected, largest = (stored[name] for name in ('flat_index', 'value', 'channel_absmax'))
    assert dense.shape == (1, 256, 180, 180)
    bar = 1e-5 * largest.max()
    assert np.abs(dense.reshape(-1)[places] - expected).max() <= bar
    assert np.abs(np.abs(dense).max((0, 2, 3)) - largest).max() <= bar
