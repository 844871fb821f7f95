"""RT-DETR R18vd with the goldens' weights gives what the original gave, also for non-square inputs.

R50vd is in tests/families/rtdetr/test_rtdetr_golden_matrix.py.
"""

import pytest
import torch

import rtdetr_golden as golden
from marking import in_suite


@pytest.mark.parametrize('name', ['r18vd', 'r50vd'])
def test_the_state_dict_has_the_originals_keys_and_shapes(name):
    wanted = golden.keys('original', name)
    with torch.device('meta'):
        own = golden.empty_model(name).state_dict()
    assert {key: list(value.shape) for key, value in own.items()} == wanted


def test_r34_and_r101_are_configs_of_the_same_code():
    with torch.device('meta'):
        r34, r101 = golden.empty_model('r34vd'), golden.empty_model('r101vd')
    assert len(r34.decoder.decoder.layers) == 4
    assert [len(stage.blocks) for stage in r101.backbone.res_layers] == [3, 4, 23, 3]
    assert r101.encoder.input_proj[2][0].weight.shape == (384, 2048, 1, 1)


@pytest.fixture(scope='module', params=in_suite(['b', 'b_rowmajor'], 'b'))
def run(request):
    model = golden.golden_model('r18vd', request.param)
    return request.param, model, golden.run_model(model, 'r18vd', request.param)


def test_every_tensor_and_detection_is_the_originals(run):
    case, _, found = run
    measured = golden.compare('r18vd', case, found)
    print('\n' + '\n'.join(f'r18vd {case} {name:15s} {value:.1e}' for name, value in measured.items()))


def test_the_position_embeddings_differ_for_non_square_maps_only():
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
    from mmdeploy_ext.models.rtdetr.encoder import PositionEmbedding

    original, row_major = PositionEmbedding(32), PositionEmbedding(32, 'row_major')
    square, wide = torch.zeros(1, 32, 4, 4), torch.zeros(1, 32, 3, 5)
    assert torch.equal(original(square), row_major(square))
    assert not torch.allclose(original(wide), row_major(wide))
    y, x = 2, 3  # token y * w + x
    omega = 10000 ** -(torch.arange(8) / 8)
    expected = torch.cat([(y * omega).sin(), (y * omega).cos(), (x * omega).sin(), (x * omega).cos()])
    torch.testing.assert_close(row_major(wide)[0, y * 5 + x], expected)
    token = y * 5 + x
    slow, fast = token // 3, token % 3  # the original divides by the height
    expected = torch.cat(
        [(slow * omega).sin(), (slow * omega).cos(), (fast * omega).sin(), (fast * omega).cos()]
    )
    torch.testing.assert_close(original(wide)[0, token], expected)
