"""Checkpoints of sparse backbones: what loads computes the same, what would be silently wrong is refused."""

import collections
import itertools

import numpy as np
import pytest

torch = pytest.importorskip('torch')
spconv = pytest.importorskip('spconv.pytorch')

import toy_seeded as seeded  # noqa: E402
from mmdeploy_ext.base.errors import CheckpointError, UsageError  # noqa: E402
from mmdeploy_ext.upstream.weights import sparse_checkpoint as layouts  # noqa: E402
from mmdeploy_ext.upstream.weights.sparse_checkpoint import load_model  # noqa: E402
from scn_nets import bevfusion, centerpoint, second, sweep  # noqa: E402

WIDTHS = ((16, 16, 12), (12, 12, 16), (16, 16, 20), (20, 20))
GRID = (24, 24, 41)
NETS = {
    'bevfusion': lambda: bevfusion(GRID, WIDTHS, output_channels=16),
    'centerpoint': lambda: centerpoint(widths=(8, 12, 16, 20)),
    'second': lambda: second(),
}
PREFIXES = {'bevfusion': 'encoders.lidar.backbone.', 'centerpoint': 'backbone.', 'second': 'middle_encoder.'}


def filled(net):
    """A module with seeded weights, and the same as a spconv 1.x state dict of tensors."""
    module = NETS[net]()
    state = seeded.fill_sparse_module(module)
    return module, {key: torch.from_numpy(np.array(value)) for key, value in state.items()}


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
    return [key for (key, a), b in pairs if 'num_batches' not in key and not torch.equal(a, b)] == []


def in_layout(state, layout):
    order = {'spconv1': (0, 1, 2, 3, 4), 'spconv2': (4, 0, 1, 2, 3), 'spconv2-rskc': (0, 1, 2, 4, 3)}[layout]
    return {
        key: value.permute(order).contiguous() if value.ndim == 5 else value for key, value in state.items()
    }


def save(content, tmp_path, name='weights.pth', **options):
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


# ---- the published forms


@pytest.mark.parametrize(
    ('net', 'layout', 'form'),
    [
        *(('second', layout, 'mmcv') for layout in layouts.LAYOUTS),
        ('bevfusion', 'spconv1', 'bare'),
        ('centerpoint', 'spconv2', 'wrapped'),
    ],
)
def test_every_form_and_layout_loads_the_same_weights(net, layout, form, tmp_path):
    module, state = filled(net)
    prefix = PREFIXES[net] if form != 'bare' else ''
    content = {f'{prefix}{key}': value for key, value in in_layout(state, layout).items()}
    if form == 'wrapped':
        content = {f'module.{key}': value for key, value in content.items()}
    path = save(content if form == 'bare' else dict(state_dict=content, meta=dict(epoch=1)), tmp_path)
    loaded = NETS[net]()
    report = load_model(path, loaded)
    assert same(module, loaded)
    assert report.prefix == prefix and set(report.layouts.values()) == {layout}
    assert report.form == 'state dict' and not report.ranges


def test_the_layout_that_the_user_states_is_the_one_that_is_demanded(tmp_path):
    module, state = filled('second')
    path, loaded = save(state, tmp_path), NETS['second']()
    load_model(path, loaded, weight_layout='spconv1')
    assert same(module, loaded)
    with pytest.raises(CheckpointError, match=r'conv_input.0.weight.*spconv2.*spconv1'):
        load_model(path, NETS['second'](), weight_layout='spconv2')
    with pytest.raises(UsageError, match=r"'spconv3'.*spconv1"):
        load_model(path, NETS['second'](), weight_layout='spconv3')


# ---- 1x1x1 and ambiguous kernels


class Pointwise(torch.nn.Module):
    """One 3x3x3 convolution that decides the layout, then a 1x1x1 one."""

    def __init__(self, channels=4, outputs=4, first=3):
        super().__init__()
        self.first = spconv.SubMConv3d(first, channels, 3, bias=False)
        self.point = spconv.SubMConv3d(channels, outputs, 1, bias=False)

    def forward(self, features, coordinates):
        tensor = spconv.SparseConvTensor(features, coordinates.int(), [6, 6, 6], 1)
        return self.point(self.first(tensor)).features


@pytest.mark.parametrize(('outputs', 'stride'), [(4, 2), (6, 1)])
def test_a_1x1x1_kernel_of_spconv_1_computes_what_it_did_there(outputs, stride, tmp_path):
    """spconv 1 computes x @ W[0, 0, 0]; permuted as other kernels are, it would load and be wrong."""
    generator = torch.Generator().manual_seed(0)
    state = {
        'first.weight': torch.randn(3, 3, 3, 3, 4, generator=generator),
        'point.weight': torch.randn(1, 1, 1, 4, outputs, generator=generator),
    }
    module = Pointwise(4, outputs)
    if stride == 2:  # no matrix product for spconv 2: its kernel is an ordinary one
        module.point = spconv.SparseConv3d(4, outputs, 1, 2, bias=False)
    load_model(save(state, tmp_path), module)
    features, coordinates = sweep((6, 6, 6), 60, 3)
    even = (coordinates[:, 1:] % stride == 0).all(1)
    with torch.no_grad():
        between = spconv.SparseConvTensor(
            torch.from_numpy(features), torch.from_numpy(coordinates), [6, 6, 6], 1
        )
        between = module.first(between).features
        got = module(torch.from_numpy(features), torch.from_numpy(coordinates))
    expected = between[torch.from_numpy(even)] @ state['point.weight'][0, 0, 0]
    if stride == 2:  # spconv orders the sites of a strided convolution in its own way
        got, expected = got[got[:, 0].argsort()], expected[expected[:, 0].argsort()]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_kernels_of_mmcv_ops_are_those_of_spconv_1(tmp_path):
    ops = pytest.importorskip('mmcv.ops')
    module = torch.nn.Module()
    module.conv, module.point = ops.SubMConv3d(3, 5, 3, bias=False), ops.SubMConv3d(5, 4, 1, bias=False)
    state = {'conv.weight': torch.randn(5, 3, 3, 3, 3), 'point.weight': torch.randn(4, 1, 1, 1, 5)}
    assert set(load_model(save(state, tmp_path), module).layouts.values()) == {'spconv2'}
    assert torch.equal(module.conv.weight, state['conv.weight'].permute(1, 2, 3, 4, 0))
    assert torch.equal(module.point.weight.reshape(5, 4), state['point.weight'].reshape(5, 4))


# ---- files that do not fit


def test_other_names_missing_and_unexpected_keys_are_listed(tmp_path):
    _, state = filled('second')
    with pytest.raises(CheckpointError, match=r'1 \(stem.weight\)'):
        load_model(save({'stem.weight': torch.zeros(3, 3, 3, 4, 4)}, tmp_path), NETS['second']())
    changed = dict(state, extra=torch.zeros(3))
    del changed['conv_out.1.running_var'], changed['conv_input.0.weight']
    with pytest.raises(
        CheckpointError,
        match=(r'2 \(conv_input.0.weight.*conv_out.1.running_var\).*1 \(extra\)'),
    ):
        load_model(save(changed, tmp_path), NETS['second']())


KERNEL = torch.zeros(3, 3, 3, 3, 4)
BACKBONE = {'first.weight': KERNEL, 'point.weight': torch.zeros(1, 1, 1, 4, 4)}


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ({'head.weight': torch.zeros(4, 4)}, 'no kernel of 5 axes'),
        ({f'{side}.{key}': value for side in 'ab' for key, value in BACKBONE.items()}, r'a\.\* and b\.\*'),
        (dict(epoch=1), 'epoch'),
        (torch.nn.ReLU(), 'no weights'),
        (b'numbers', 'is not a PyTorch checkpoint'),
        (b'\x80\x02no pickle', 'without running its code'),
    ],
)
def test_files_without_one_sparse_backbone_are_refused(content, said, tmp_path):
    path = tmp_path / 'w.pth'
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=said):
        load_model(path, Pointwise())


def test_a_model_without_sparse_convolutions_is_named(tmp_path):
    with pytest.raises(CheckpointError, match='Linear'):
        load_model(save({'weight': KERNEL}, tmp_path), torch.nn.Linear(2, 2))


# ---- whole models


class Detector(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.middle_encoder, self.head = NETS['second'](), torch.nn.Linear(2, 2)


def test_the_rest_of_a_model_is_loaded_where_the_file_has_it_and_said_to_be_absent_otherwise(tmp_path):
    module, state = filled('second')
    state = {f'middle_encoder.{key}': value for key, value in state.items()}
    rest = {'head.weight': torch.ones(2, 2), 'head.bias': torch.ones(2)}
    model = Detector()
    report = load_model(save(dict(state, **rest, other=torch.ones(1)), tmp_path), model, 'middle_encoder')
    assert same(module, model.middle_encoder) and torch.equal(model.head.weight, rest['head.weight'])
    assert report.rest == 'loaded' and report.unused == ('other',)
    report = load_model(save(state, tmp_path), model, 'middle_encoder')
    assert report.rest == 'absent'
    with pytest.raises(CheckpointError, match=r'1 \(head.bias\)'):
        load_model(save(dict(state, **{'head.weight': torch.ones(2, 2)}), tmp_path), model, 'middle_encoder')


# ---- pickled modules


class Quantiser(torch.nn.Module):
    """Stands for pytorch-quantization's TensorQuantizer: one buffer, and settings of classes of its own."""

    def __init__(self, amax):
        super().__init__()
        self.register_buffer('_amax', torch.tensor(amax))
        self.register_buffer('_scratch', torch.zeros(3), persistent=False)
        self.settings = collections.defaultdict(list, bits=[8])


def fold_as_ptq_does(module, keep=''):
    """Fold every BatchNorm behind a convolution into it and take it out, as NVIDIA's PTQ scripts do."""
    for path, part in list(module.named_modules()):
        if path == keep:
            continue
        children = dict(part.named_children())
        names = list(children)
        for conv, norm in itertools.pairwise(names):
            if isinstance(children[norm], torch.nn.BatchNorm1d):
                fold(children[conv], children[norm])
                delattr(part, norm)
        if names and names[0].isdigit():
            part._modules = {str(index): child for index, child in enumerate(part._modules.values())}
    return module


def fold(conv, norm):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = 0 if conv.bias is None else conv.bias
    conv.weight.data = conv.weight.data * scale.reshape(-1, 1, 1, 1, 1).data
    conv.bias = torch.nn.Parameter(((bias - norm.running_mean) * scale + norm.bias).data)


def quantise(module):
    for path, part in list(module.named_modules()):
        if isinstance(part, spconv.SubMConv3d | spconv.SparseConv3d):
            part._input_quantizer = Quantiser(len(path) / 8)
            part._weight_quantizer = Quantiser([[[[[0.5] * part.out_channels]]]])
    return module


@pytest.mark.parametrize(('net', 'zipped'), [('bevfusion', False), ('centerpoint', True)])
def test_a_pickled_ptq_module_gives_its_weights_and_ranges(net, zipped, tmp_path):
    module, _ = filled(net)
    features, coordinates = map(torch.from_numpy, sweep(GRID if net == 'bevfusion' else GRID[::-1], 150, 5))
    size = ([*GRID[:2], GRID[2] - 1],) if net == 'centerpoint' else ()
    with torch.no_grad():
        expected = module(features, coordinates, 1, *size)
    wrapper = torch.nn.Module()
    # CenterPoint's script keeps the BatchNorm of the first convolution
    wrapper.module = quantise(fold_as_ptq_does(module, 'conv_input' if net == 'centerpoint' else None))
    path = save(wrapper, tmp_path, _use_new_zipfile_serialization=zipped)
    loaded = NETS[net]()
    report = load_model(path, loaded)
    with torch.no_grad():
        got = loaded(features, coordinates, 1, *size)
    if net == 'centerpoint':
        expected, got = expected[0], got[0]
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert report.form == 'pickled module' and len(report.folded) == (20 if net == 'centerpoint' else 21)
    assert len(report.ranges) == 42
    last = 'conv_out.0' if net == 'bevfusion' else 'extra_conv.0'
    assert report.ranges[f'{last}._weight_quantizer'].shape == (loaded.get_submodule(last).out_channels,)
    if net == 'centerpoint':  # in the file it is conv2.2.conv1, by whose length it was ranged
        assert report.ranges['conv2.3.conv1._input_quantizer'] == len('conv2.2.conv1') / 8
