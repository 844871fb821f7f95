"""`mm2onnx synthetic weights`: a detector with a family, one without, the same bytes for the same seed."""

from pathlib import Path

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack
from mmdet.models.necks import SSDNeck
from torch import nn

from marking import needs_driving
from mmdeploy_ext.base.config import mmdet_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.cli import synthetic_app, weights_app
from mmdeploy_ext.families.synthetic.weights import BIAS, LOW, calibrate, draw
from mmdeploy_ext.upstream.weights.checkpoint import load_checkpoint

REPOSITORY = Path(__file__).resolve().parents[3]
STREAM_PETR = REPOSITORY / 'projects/configs/StreamPETR/stream_petr_toy.py'

MODULE = '''
import torch
from mmdet.models import DETECTORS
from torch import nn


@DETECTORS.register_module()
class NoFamilysDetector(nn.Module):
    """Ten classes and a box for each of 14 x 14 places; the class layer has no bias if asked."""

    def __init__(self, bias=True, sizes=False, levels=False, train_cfg=None, test_cfg=None):
        super().__init__()
        self.sizes = nn.Embedding(1, 16) if sizes else None
        self.levels = nn.Parameter(torch.full((2, 8), float('nan'))) if levels else None
        self.layers = nn.ModuleList([nn.Conv2d(3 if not i else 16, 16, 3, bias=False) for i in range(9)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(9)])
        self.cls, self.box = nn.Conv2d(16, 10, 1, bias=bias), nn.Conv2d(16, 4, 1)

    def forward(self, img, return_loss=False):
        for layer, norm in zip(self.layers, self.norms):
            img = norm(layer(img)).relu()
        if self.sizes is not None:
            img = img + self.sizes.weight.log()[..., None, None]
        if self.levels is not None:
            img = img + self.levels.reshape(1, 16, 1, 1)
        scores = self.cls(img).sigmoid().permute(0, 2, 3, 1).flatten()
        sides = self.box(img).relu().permute(0, 2, 3, 1).reshape(-1, 4)
        best, index = scores.topk(100)
        kept = best > 0.05
        rows = torch.cat([sides[index // 10], best[:, None]], 1)[kept].numpy()
        return [[rows[(index[kept] % 10 == label).numpy()] for label in range(10)]]

    def init_weights(self):
        nn.init.constant_(self.sizes.weight, 0.5)
'''
SAMPLES = """
import numpy as np
import torch


def make():
    yield dict(img=torch.from_numpy(np.random.default_rng(0).random((1, 3, 32, 32), np.float32)))
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('plain')
    (folder / 'no_familys_detector.py').write_text(MODULE)
    (folder / 'samples.py').write_text(SAMPLES)
    path = folder / 'config.py'
    path.write_text(
        f'import sys\nsys.path.insert(0, {str(folder)!r})\n'
        "custom_imports = dict(imports=['no_familys_detector'])\n"
        "model = dict(type='NoFamilysDetector')\n"
        'data = dict(test=dict(pipeline=[]))\n'
    )
    return str(path)


def written(config, out, seed=0, **options):
    """Return the scores and the number of classes in the sample, and the weights."""
    samples = f'{Path(config).with_name("samples.py")}:make'
    scores, classes = weights_app.write_weights(config, out, seed, options, [samples])
    return scores, classes, load_checkpoint(out).state_dict


def test_a_detector_without_a_family_finds_objects_of_several_classes(config, tmp_path):
    scores, classes, _ = written(config, tmp_path / 'k.pth')
    assert 50 <= len(scores) <= 100
    assert classes > 3
    assert max(scores) > 0.8
    assert min(scores) < 0.5


@needs_driving
def test_a_detector_with_a_family_finds_objects_on_generated_frames(tmp_path):
    scores, classes = weights_app.write_weights(str(STREAM_PETR), tmp_path / 'k.pth')
    assert len(scores) >= 20
    assert classes > 1
    assert max(scores) > LOW


def test_a_model_that_takes_no_drawn_sizes_gets_the_weights_that_its_training_begins_with(config, tmp_path):
    _, _, tensors = written(config, tmp_path / 'k.pth', **{'model.sizes': True})
    assert (tensors['sizes.weight'] == 0.5).all()
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_buffers_that_the_models_own_initialisation_writes_keep_its_values():
    class Queries(nn.Linear):
        def init_weights(self):
            self.centres.fill_(0.5)

    network = Queries(16, 16)
    network.register_buffer('centres', torch.zeros(2))
    calibrate(network, lambda: map(network, [torch.rand(64, 16)]))
    assert (network.centres == 0.5).all()


def test_a_scale_without_a_layer_has_its_own_initialisation():
    model = SSDNeck((4, 8), (4, 8, 8), (2,), (1,), l2_norm_scale=20)  # its constructor sets no scale
    with torch.no_grad():
        model.l2_norm.weight.fill_(float('nan'))
        draw(model, seed=0)
    assert model.l2_norm.weight.eq(20).all()


def test_layers_without_a_bias_are_scaled(config, tmp_path):
    scores, _, tensors = written(config, tmp_path / 'k.pth', **{'model.bias': False})
    assert 'cls.bias' not in tensors
    assert scores


def test_tables_that_are_no_weights_are_drawn(config, tmp_path):
    scores, _, tensors = written(config, tmp_path / 'k.pth', **{'model.levels': True})
    assert scores and tensors['levels'].isfinite().all()


@pytest.mark.filterwarnings('ignore:TF32')
def test_a_seed_gives_the_same_bytes_with_other_kernels_and_another_seed_others(config, tmp_path):
    *_, first = written(config, tmp_path / 'a.pth')
    with torch.backends.mkldnn.flags(enabled=False):
        *_, second = written(config, tmp_path / 'b.pth')
    *_, other = written(config, tmp_path / 'c.pth', 1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first['cls.weight'], other['cls.weight'])


def test_outputs_of_deep_networks_keep_their_spread():
    layers = [part for _ in range(40) for part in (nn.Linear(32, 32), nn.ReLU())]
    network, given = nn.Sequential(*layers, nn.Linear(32, 16)), torch.rand(64, 32) * 100
    with torch.no_grad():
        outputs = calibrate(network, lambda: map(network, [given]))(given)
    assert 0.6 < outputs.std() < 1.6
    assert outputs.mean(0).abs().max() < 4 * BIAS


def test_deformable_convolutions_keep_rounding_small():
    layers = [ModulatedDeformConv2dPack(16, 16, 3, padding=1, bias=False) for _ in range(9)]
    blocks = (nn.Sequential(layer, nn.BatchNorm2d(16), nn.ReLU()) for layer in layers)
    network = nn.Sequential(*blocks).eval()
    given = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        calibrate(network, lambda: map(network, [given]))
        outputs, moved = network(given), network(given + 1e-5)
    assert outputs.std() > 0.1
    assert (outputs - moved).abs().max() < 1e-2


def test_a_model_that_fails_on_its_sample_is_refused_with_the_module_and_its_error():
    options = {
        'model.backbone.depth': 18,
        'model.neck.in_channels': [64, 128, 256, 512],
        'data.test.pipeline.1.img_scale': (96, 64),  # a map of 1 x 1 under a deformable kernel of 3 x 3
    }
    _, test = weights_app.model_and_test(mmdet_config('ddod/ddod_r50_fpn_1x_coco.py'), options)
    with pytest.raises(ConfigError, match=r'bbox_head\.(cls|reg)_convs\.\d\.conv: .* smaller than kernel'):
        next(test())


def test_the_command_overwrites_nothing(config, tmp_path):
    out = tmp_path / 'k.pth'
    out.touch()
    assert synthetic_app.main(['weights', config, str(out)]) == 2
    assert out.stat().st_size == 0


class _SharedHead(nn.Module):
    """Three classes and a side of 13 bins, from one layer, as in PicoDet."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(16, 3 + 13, 1)

    def forward(self, features):
        scores, bins = self.layer(features).flatten(2)[0].T.split([3, 13], 1)
        sides = nn.functional.linear(bins.softmax(1), torch.arange(13.0)[None])
        scores = scores.sigmoid()
        _, index = scores.max(1).values.topk(20)
        return scores, sides[index]


def test_few_scores_of_a_layer_that_makes_boxes_too_are_high():
    features = torch.randn(1, 16, 64, 64, generator=torch.manual_seed(0))
    model = _SharedHead()
    calibrate(model, lambda: map(model, [features]))
    assert 20 < int((model(features)[0] > 0.3).sum()) < 300
