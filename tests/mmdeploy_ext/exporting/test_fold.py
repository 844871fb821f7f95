"""Folded weights: what mmcv folds, rounded once, so that no CPU, kernel or device has bytes of its own."""

import hashlib
import importlib
import threading
from decimal import Decimal, localcontext

import mmcv
import numpy as np
import pytest
import torch
from torch import nn

from mmdeploy_ext.exporting.fold import fold_pair, fuse

PINNED = '5e536ac4838fe38c2e175f5d3c551af3d0e2b7ed389532ebf3fad099476776b0'
UNITS = 4


def numbers(count, seed):
    """Return (count,) float32 in 0..1 that need no random generator: fractions of the golden ratio."""
    return torch.from_numpy(
        ((np.arange(1, count + 1) * (seed + 1) * 40503 % 65536) / 65536).astype(np.float32)
    )


def fill(model):
    """Give every parameter and statistic of a model numbers that every machine makes alike."""
    with torch.no_grad():
        for seed, (name, value) in enumerate(model.state_dict().items()):
            if value.is_floating_point():
                made = numbers(value.numel(), seed).reshape(value.shape)
                value.copy_(made + 0.01 if name.endswith('running_var') else made - 0.5)
    return model.eval()


def small():
    """Return pairs of all kinds: without and with a bias, in groups, in a module below, of none."""
    return fill(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(8, 64, 3, groups=4), nn.BatchNorm2d(64), nn.Conv2d(64, 8, 1)),
            nn.ModuleList([nn.BatchNorm2d(8)]),
        )
    )


def terms_of_bias(conv, norm):
    """Return |beta| + |mean * scale| + |bias * scale| (out,): what the last bits of a folded bias are of."""
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        terms = norm.bias.abs() + (norm.running_mean * scale).abs()
        return (terms if conv.bias is None else terms + (conv.bias * scale).abs()).numpy()


def exact(conv, norm):
    """Return weight and bias with 50 digits, rounded once to float32: the slow reference."""
    with localcontext() as context:
        context.prec = 50
        rows = zip(*(array.tolist() for array in (norm.weight, norm.bias, norm.running_mean)), strict=True)
        weights, biases = [], []
        for row, (gamma, beta, mean) in enumerate(rows):
            variance = Decimal(norm.running_var[row].item()) + Decimal(norm.eps)
            scale = Decimal(gamma) / variance.sqrt()
            bias = Decimal(0 if conv.bias is None else conv.bias[row].item())
            weights.append([float(Decimal(value) * scale) for value in conv.weight[row].flatten().tolist()])
            biases.append(float((bias - Decimal(mean)) * scale + Decimal(beta)))
    return np.float32(weights).reshape(conv.weight.shape), np.float32(biases)


def test_folded_weights_are_the_exact_ones_rounded_once():
    """torch.sqrt in float32 misses this by a unit in every sixth channel, in others on another CPU."""
    model = small()
    fused = fuse(model)
    for old, new in ((model[:2], fused[:2]), (model[3][:2], fused[3][:2])):
        for got, wanted in zip((new[0].weight, new[0].bias), exact(*old), strict=True):
            assert np.array_equal(got.detach().numpy(), wanted)
        assert isinstance(new[1], nn.Identity)


def test_the_bytes_of_a_folded_model_are_pinned():
    digest = hashlib.sha256()
    for name, value in fuse(small()).state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    assert digest.hexdigest() == PINNED


def test_mmcv_folds_the_same_modules_to_the_same_numbers():
    from mmcv.cnn.utils import fuse_conv_bn

    model = small()
    ours, theirs = fuse(model).state_dict(), fuse_conv_bn(small()).state_dict()
    assert list(ours) == list(theirs)
    magnitudes = {'0.bias': terms_of_bias(*model[:2]), '3.0.bias': terms_of_bias(*model[3][:2])}
    for name, value in ours.items():
        size = magnitudes.get(name, value.abs().numpy())
        assert (np.abs((value - theirs[name]).numpy()) <= UNITS * np.spacing(np.float32(size))).all(), name


def test_a_bias_that_cancels_is_measured_by_its_terms():
    """mmcv's own rounding of beta - mean * scale is far more than 4 units of what is left of it."""
    model = small()
    with torch.no_grad():
        scale = model[1].weight / (model[1].running_var + model[1].eps).sqrt()
        model[1].bias.copy_(model[1].running_mean * scale)
    magnitude = terms_of_bias(*model[:2])
    assert (np.abs(fuse(model)[0].bias.detach().numpy()) <= UNITS * np.spacing(np.float32(magnitude))).all()
    np.testing.assert_allclose(magnitude, 2 * np.abs(model[1].bias.detach().numpy()), rtol=1e-6)


def test_folding_leaves_the_model_alone_and_a_folded_model_as_it_is():
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    once = fuse(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    twice = fuse(once).state_dict()
    assert all(torch.equal(value, twice[name]) for name, value in once.state_dict().items())


@pytest.mark.parametrize('affine', [True, False])
def test_a_normalisation_without_weights_is_folded_too(affine):
    model = fill(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=affine)))
    image = numbers(48, 7).reshape(1, 3, 4, 4)
    with torch.no_grad():
        assert (fuse(model)(image) - model(image)).abs().max() < 1e-5


def test_a_normalisation_by_the_statistics_of_its_input_is_not_folded():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert isinstance(fuse(model)[1], nn.BatchNorm2d)


@pytest.mark.parametrize(('between', 'is_folded'), [(nn.ReLU(), False), (nn.Identity(), True)])
def test_a_normalisation_behind_another_layer_of_a_sequence_is_not_folded(between, is_folded):
    model = fill(nn.Sequential(nn.Conv2d(3, 4, 1), between, nn.BatchNorm2d(4)))
    image, fused = numbers(48, 7).reshape(1, 3, 4, 4), fuse(model)
    with torch.no_grad():
        assert (fused(image) - model(image)).abs().max() < 1e-5
    assert isinstance(fused[2], nn.Identity) == is_folded


def test_a_repvgg_block_is_the_sum_of_its_branches_rounded_once():
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
    from mmdeploy_ext.models.rtdetr.layers import RepVggBlock

    block = fill(RepVggBlock(6, 'relu'))
    fused = fuse(block)
    parts = [fold_pair(branch.conv, branch.norm) for branch in (block.conv1, block.conv2)]
    middle = (parts[0].weight[:, :, 1, 1] + parts[1].weight[:, :, 0, 0]).astype(np.float32)
    assert np.array_equal(fused.conv.weight.detach().numpy()[:, :, 1, 1], middle)
    assert np.array_equal(fused.conv.bias.detach().numpy(), np.float32(parts[0].bias + parts[1].bias))
    again = fuse(fused).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in fused.state_dict().items())


def test_a_convolution_that_modules_share_gets_the_normalisation_of_each():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = fill(nn.ModuleList(nn.Sequential(shared, nn.BatchNorm2d(4), nn.ReLU()) for _ in range(3)))
    maps = numbers(2 * 4 * 6 * 6, 9).reshape(2, 4, 6, 6)
    fused = fuse(model)
    with torch.no_grad():
        for before, after in zip(model, fused, strict=True):
            assert isinstance(after[1], nn.Identity)
            torch.testing.assert_close(after(maps), before(maps))
    assert len({id(branch[0]) for branch in fused}) == len(model)
    assert all(branch[0] is shared for branch in model)


@pytest.mark.parametrize('order', [('norm', 'act', 'conv'), ('act', 'norm', 'conv'), ('conv', 'act', 'norm')])
def test_a_normalisation_that_does_not_follow_its_convolution_stays(order):
    from mmcv.cnn import ConvModule

    model = fill(ConvModule(4, 4, 3, padding=1, norm_cfg=dict(type='BN'), order=order))
    maps = numbers(2 * 4 * 6 * 6, 9).reshape(2, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(fuse(model)(maps), model(maps))
    assert not any(isinstance(part, nn.Identity) for part in fuse(model).modules())


@pytest.mark.parametrize('kind', ['Conv2d', 'Conv2dAdaptivePadding', 'ConvWS', 'ConvAWS', 'SAC'])
def test_a_convolution_that_changes_its_weight_keeps_its_normalisation(kind):
    importlib.import_module('mmcv.ops')  # registers SAC
    conv = mmcv.cnn.build_conv_layer(dict(type=kind), 4, 8, 3, padding=1, bias=kind != 'SAC')
    model = fill(nn.Sequential(conv, nn.BatchNorm2d(8)))
    image = numbers(4 * 12 * 12, 3).reshape(1, 4, 12, 12)
    folded = fuse(model)
    assert isinstance(folded[1], nn.Identity) == kind.startswith('Conv2d')
    with torch.no_grad():
        torch.testing.assert_close(folded(image), model(image), rtol=1e-4, atol=1e-4)


class Bounded(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).clamp(max=0.1)


class ConvReLU(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


class Block(nn.Module):
    """A user's block: registered in the order convolution, normalisation."""

    def __init__(self, conv=nn.Conv2d, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv = conv(3, 4, 1)
        self.bn = norm(4)

    @property
    def norm(self):
        return self.bn


class InTurn(Block):
    def forward(self, x):
        return self.norm(self.conv(x)).relu()


class ByStatements(Block):
    def forward(self, x):
        x = self.conv(x)
        x = self.bn(x)
        return x.relu()


class Otherwise(Block):
    """As the stem of mmdet's ResNet, of which repositories have copies."""

    def forward(self, x):
        if self.training:
            x = x * 2
        else:
            x = self.conv(x)
            if self.norm is not None:
                x = self.norm(x)
        return x.relu()


class Derived(ByStatements):
    def forward(self, x):
        return super().forward(x * 2)


class ActivatedFirst(Block):
    def forward(self, x):
        return self.bn(self.conv(x).relu())


class OutputKept(Block):
    def forward(self, x):
        y = self.conv(x)
        z = self.bn(y)
        return y + z


class LeftOut(Block):
    is_used = False

    def forward(self, x):
        x = self.conv(x)
        if self.is_used:
            x = self.bn(x)
        return x


class CalledTwice(Block):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv(x * 2)


def weight_normed(*sizes):
    return nn.utils.weight_norm(nn.Conv2d(*sizes))


@pytest.mark.parametrize(
    ('block', 'is_folded'),
    [
        (InTurn(), True),
        (ByStatements(), True),
        (Otherwise(), True),
        (Derived(), True),
        (ActivatedFirst(), False),
        (OutputKept(), False),
        (CalledTwice(), False),
        (LeftOut(), False),
        (InTurn(norm=Bounded), False),
        (InTurn(conv=ConvReLU), False),
        (InTurn(conv=weight_normed), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_users_block_computes_what_it_did_and_is_folded_where_its_code_calls_both_in_turn(block, is_folded):
    image = numbers(48, 7).reshape(1, 3, 4, 4) - 0.4
    fused = fuse(fill(block))
    with torch.no_grad():
        torch.testing.assert_close(fused(image), block(image))
    assert isinstance(fused.bn, nn.Identity) == is_folded


class FarBounded(nn.Conv2d):
    """Bounds what no usual picture reaches; folded, the bound would stand behind the normalisation."""

    def forward(self, x):
        return super().forward(x).clamp(-900, 900)


class BoundedWhereCalled(nn.BatchNorm2d):
    def __call__(self, x):
        return super().__call__(x).clamp(-200, 200)


def bounded_between(block):
    """Give a block a `forward` of its own, as plugins do that change one layer of a built model."""
    block.forward = lambda x: block.bn(block.conv(x).clamp(-900, 900)).relu()
    return block


@pytest.mark.parametrize(
    'block',
    [InTurn(conv=FarBounded), InTurn(norm=BoundedWhereCalled), bounded_between(InTurn())],
    ids=['output of the convolution', 'call of the normalisation', 'forward of the block'],
)
def test_a_bound_that_no_picture_reaches_keeps_the_normalisation(block):
    image = (numbers(48, 7).reshape(1, 3, 4, 4) - 0.4) * 1e5
    fused = fuse(fill(block))
    assert not isinstance(fused.bn, nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(fused(image), block(image))


@pytest.mark.parametrize(
    ('owner', 'name'), [(nn.modules.batchnorm._BatchNorm, 'forward'), (nn.functional, 'batch_norm')]
)
def test_a_bound_that_a_plugin_puts_into_pytorch_keeps_the_normalisation(monkeypatch, owner, name):
    plain = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: plain(*args, **kwargs).clamp(-200, 200))
    assert not isinstance(fuse(fill(InTurn())).bn, nn.Identity)


class Forgetful(InTurn):
    """Leaves out of copies what it cannot pickle, and with that a bound that no usual picture reaches."""

    bound, side = 1e9, 'right'

    def __init__(self):
        super().__init__()
        self.bound, self.side, self.lock = 25.0, 'left', threading.Lock()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name not in ('bound', 'lock')} | dict(
            side='right'
        )

    def forward(self, x):
        with self.lock:
            return self.norm(self.conv(x)).clamp(max=self.bound) * (1 if self.side == 'left' else 2)


def test_a_copy_has_the_attributes_that_its_class_leaves_out():
    block, image = fill(Forgetful()), (numbers(48, 7).reshape(1, 3, 4, 4) - 0.4) * 1e5
    fused = fuse(block)
    with torch.no_grad():
        torch.testing.assert_close(fused(image), block(image))


def test_a_loss_that_holds_a_function_of_autograd_is_copied_with_its_module():
    class Ranked(torch.autograd.Function):
        pass

    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    model.loss_rank = Ranked()
    assert isinstance(fuse(model)[1], torch.nn.Identity)
