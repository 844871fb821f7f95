"""VoVNet: the names of the checkpoints, shapes, frozen parts, recomputing, and the ONNX graph."""

from __future__ import annotations

import pytest
import torch
from mmdet.models import build_backbone

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from mm2onnx_driving.layers import vovnet

MODULES_99 = {2: 1, 3: 3, 4: 9, 5: 3}


def make(spec: str = 'V-19-slim-eSE', kind: str = 'VoVNet', **options):
    torch.manual_seed(0)
    return build_backbone(dict(type=kind, spec_name=spec, **options))


def conv_keys(prefix: str) -> list[str]:
    norm = [
        f'{prefix}/norm.{name}'
        for name in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    ]
    return [f'{prefix}/conv.weight', *norm]


def test_v99_has_the_keys_of_the_checkpoints():
    with torch.device('meta'):
        state = make('V-99-eSE', 'VoVNetCP', out_features=('stage4', 'stage5')).state_dict()
    expected = [key for i in (1, 2, 3) for key in conv_keys(f'stem.stem_{i}')]
    for stage, count in MODULES_99.items():
        for i in range(1, count + 1):
            name = f'OSA{stage}_{i}'
            expected += [k for j in range(5) for k in conv_keys(f'stage{stage}.{name}.layers.{j}.{name}_{j}')]
            expected += conv_keys(f'stage{stage}.{name}.concat.{name}_concat')
            expected += [f'stage{stage}.{name}.ese.fc.{part}' for part in ('weight', 'bias')]
    assert list(state) == expected
    assert state['stage4.OSA4_9.concat.OSA4_9_concat/conv.weight'].shape == (768, 768 + 5 * 192, 1, 1)
    assert state['stage3.OSA3_1.layers.0.OSA3_1_0/conv.weight'].shape == (160, 256, 3, 3)
    assert state['stage5.OSA5_3.ese.fc.weight'].shape == (1024, 1024, 1, 1)


@pytest.mark.parametrize('spec', ['V-19-slim-eSE', 'V-19-slim-dw-eSE'])
def test_maps_have_their_strides_and_channels(spec: str):
    model = make(spec, out_features=('stem', *vovnet.STAGES)).eval()
    with torch.no_grad():
        shapes = [tuple(y.shape[1:]) for y in model(torch.randn(1, 3, 64, 96))]
    stem = vovnet.SPECS[spec].stem[2]
    assert shapes == [(stem, 16, 24), (112, 16, 24), (256, 8, 12), (384, 4, 6), (512, 2, 3)]


def test_channel_attention_is_a_hard_sigmoid_of_the_mean():
    ese = vovnet.ESE(2)
    with torch.no_grad():
        ese.fc.weight.copy_(torch.eye(2)[..., None, None])
        ese.fc.bias.zero_()
    x = torch.tensor([[[[1.0, 3.0]], [[-9.0, -9.0]]]])
    torch.testing.assert_close(ese(x), torch.tensor([[[[5 / 6, 15 / 6]], [[0.0, 0.0]]]]))
