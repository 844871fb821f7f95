"""Every engine behind the same interface: same names, same errors, options that are honoured or refused."""

import numpy as np
import pytest
import torch
from torch import nn

from mmdeploy_ext.base.errors import ConfigError, EngineError, ShapeError, UsageError
from mmdeploy_ext.base.session_options import providers_with_options
from mmdeploy_ext.engines import BACKENDS, build_backend, build_exact
from mmdeploy_ext.engines.base import Clock
from mmdeploy_ext.engines.onnxruntime import SPINNING, OnnxRuntimeBackend
from mmdeploy_ext.engines.registry import check_engine_kind, engine_settings
from mmdeploy_ext.exporting import export
from mmdeploy_ext.spec.metadata import Metadata
from mmdeploy_ext.spec.options import IMAGE, Options
from mmdeploy_ext.spec.preparation import PreprocessRule
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec


class First(nn.Module):
    """Convolve and scale."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image, factor):
        features = self.conv(image)
        return features, features * factor[:, :, None, None]


class Second(nn.Module):
    """Sum."""

    def forward(self, scaled):
        return scaled.sum(dim=1)


def spec(batch='B', height='H', width='W'):
    return GraphSpec(
        'toy/full',
        (
            TensorSpec('input', 'float32', (batch, 3, height, width)),
            TensorSpec('factor', 'float32', (batch, 1), default=2.0),
        ),
        (
            TensorSpec('total', 'float32', (batch, height, width)),
            TensorSpec('features', 'float32', (batch, 4, height, width)),
        ),
    )


def stages():
    torch.manual_seed(0)
    return [
        Stage('first', First().eval(), ('input', 'factor'), ('features', 'scaled')),
        Stage('second', Second().eval(), ('scaled',), ('total',)),
    ]


def write(path, contract, dynamic):
    example = dict(input=torch.zeros(1, 3, 8, 12), factor=torch.ones(1, 1))
    model = export.export_stages(stages(), example, contract, Options(IMAGE, dynamic=dynamic))
    facts = dict(config='toy.py', config_sha256='c' * 64, checkpoint_sha256='d' * 64)
    facts.update(postprocess={}, options=dict(opset=17, exporter='torchscript'), versions={})
    export.save(model, path, Metadata('toy', 'full', contract, PreprocessRule(), (), **facts))
    return str(path)


FIXED, DYNAMIC = spec(1, 8, 12), spec()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    return dict(
        fixed=write(folder / 'fixed.onnx', FIXED, False),
        dynamic=write(folder / 'dynamic.onnx', DYNAMIC, True),
    )


ENGINES = ['TorchBackend', 'OnnxRuntimeBackend', 'OpenVinoBackend']


def open_backend(kind, files, name='dynamic'):
    if kind == 'OpenVinoBackend':
        pytest.importorskip('openvino', reason='openvino is an optional extra: pip install openvino')
    if kind == 'TorchBackend':
        return build_backend(kind, stages(), FIXED if name == 'fixed' else DYNAMIC)
    return build_backend(kind, files[name])


def feeds(batch=2, height=10, width=7, seed=0):
    rng = np.random.default_rng(seed)
    return dict(
        input=rng.normal(size=(batch, 3, height, width)).astype(np.float32),
        factor=rng.normal(size=(batch, 1)).astype(np.float32),
    )


def reference(given):
    first, second = (stage.module for stage in stages())
    factor = given.get('factor', np.full((len(given['input']), 1), 2.0, np.float32))
    with torch.no_grad():
        features, scaled = first(torch.from_numpy(given['input']), torch.from_numpy(factor))
        return dict(total=second(scaled).numpy(), features=features.numpy())


@pytest.mark.parametrize('kind', ENGINES)
@pytest.mark.parametrize('optional', [True, False], ids=['factor fed', 'factor left out'])
@pytest.mark.parametrize('batch', [1, 2])
def test_engines_give_the_outputs_of_the_modules_in_spec_order(kind, optional, batch, files):
    given = feeds(batch)
    if not optional:
        del given['factor']
    with open_backend(kind, files) as backend:
        found = backend.infer(given)
        assert backend.spec == DYNAMIC
        assert (backend.metadata is None) == (kind == 'TorchBackend')
    assert list(found) == ['total', 'features']
    for name, wanted in reference(given).items():
        assert found[name].dtype == wanted.dtype
        assert np.abs(found[name] - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize('kind', ENGINES[:2])
def test_a_wrong_shape_is_refused_by_every_engine(kind, files):
    with open_backend(kind, files, 'fixed') as backend, pytest.raises(ShapeError, match=r'input.*1x3x8x12'):
        backend.infer(feeds(1, 8, 16))


@pytest.mark.parametrize(('level', 'threads'), [('none', 1), ('all', 0)])
@pytest.mark.usefixtures('threads_by_default')
def test_onnxruntime_options_are_honoured(files, level, threads):
    options = dict(graph_optimization=level, threads=threads)
    options |= dict(plan_memory=not threads, spinning='run' if threads else 'never')
    with OnnxRuntimeBackend(files['dynamic'], **options) as backend:
        set_options = backend.session.get_session_options()
        assert set_options.intra_op_num_threads == threads
        assert set_options.enable_mem_pattern is not bool(threads)
        key, value = next(iter(SPINNING[options['spinning']].items()))
        assert set_options.get_session_config_entry(key) == value
        assert level[:3].upper() in str(set_options.graph_optimization_level).replace('DISABLE_ALL', 'NONE')
        wanted = reference(feeds())['total']
        assert np.abs(backend.infer(feeds())['total'] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert backend.session is None


def test_an_execution_provider_that_is_not_here_is_an_error_and_no_fallback(files):
    with pytest.raises(EngineError, match=r'NoSuchProvider.*CPUExecutionProvider'):
        OnnxRuntimeBackend(files['dynamic'], providers=['NoSuchProvider', 'CPUExecutionProvider']).activate()
    with pytest.raises(EngineError, match='execution provider NoSuchProvider was asked for'):
        OnnxRuntimeBackend(files['dynamic'], providers='NoSuchProvider').activate()


@pytest.mark.parametrize(
    ('kind', 'options', 'message'),
    [
        ('NoBackend', {}, r"backend_config.type='NoBackend': expected one of TorchBackend, OnnxRuntime"),
        ('OnnxRuntimeBackend', dict(speed=9), r"OnnxRuntimeBackend: .*'speed'"),
        ('OnnxRuntimeBackend', dict(graph_optimization='most'), r"'most': expected one of none, basic"),
        ('OnnxRuntimeBackend', dict(spinning='ever'), r"'ever': expected one of always, run, never"),
    ],
)
def test_unknown_backends_and_options_are_refused_by_name(files, kind, options, message):
    with pytest.raises(ConfigError, match=message):
        build_backend(kind, files['dynamic'], **options)


def test_what_is_in_float64_runs_where_float64_is(files):
    """Matrices of a rig: OpenVINO and TensorRT would compute them in float32 in silence."""
    path = files['dynamic']
    with build_exact('OpenVinoBackend', path, threads=1, device='CPU', inference_precision='fp32') as backend:
        assert isinstance(backend, OnnxRuntimeBackend)
    with build_exact('OnnxRuntimeBackend', path, spinning='run') as backend:
        assert isinstance(backend, OnnxRuntimeBackend)
    others = {name for name, row in BACKENDS.items() if not row.float64}
    assert others == {'OpenVinoBackend', 'TensorRtBackend'}


def test_cuda_computes_without_tf32_and_other_providers_keep_their_defaults():
    chosen = providers_with_options(['CUDAExecutionProvider', 'CPUExecutionProvider'])
    assert chosen == [('CUDAExecutionProvider', {'use_tf32': '0'}), ('CPUExecutionProvider', {})]


def test_the_first_of_several_runs_of_an_engine_does_not_count():
    clock = Clock()
    clock.seconds = dict(one=[0.2], several=[9.0, 0.1, 0.3, 0.1])
    assert clock.medians('one', 'several') == dict(one=200, several=100)
    assert clock.medians('one', 'none') == {}


def test_engines_take_their_own_options_and_kinds_of_models_alone():
    settings = dict(threads=2, providers=['CPUExecutionProvider'])
    assert engine_settings(**settings) == dict(engine='OnnxRuntimeBackend', **settings)
    with pytest.raises(UsageError, match='--inference-precision goes with --engine openvino'):
        engine_settings(inference_precision='bf16')
    check_engine_kind('OpenVinoBackend', 'fp32')
    with pytest.raises(EngineError, match='OnnxRuntimeBackend or OpenVinoBackend'):
        check_engine_kind('TensorRtBackend')
    with pytest.raises(UsageError, match='bf16'):
        check_engine_kind('OpenVinoBackend', 'bf16')
