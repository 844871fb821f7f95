"""What `mmdeploy_ext` offers to other programs: a few names, imported when they are used."""

import functools
import importlib
import inspect
import pkgutil
from pathlib import Path

import numpy as np
import pytest
from mmcv import Config

import mmdeploy_ext
from mmdeploy_ext.api import ProofRequest
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.cli import options, verify_app

PUBLIC = {
    'Family',
    'export',
    'export_parts',
    'open_model',
    'prove',
    'prove_module',
    'register_family',
    'with_parts',
}
OPTIONAL = {
    'tensorrt_rtx',
    'tensorrt',
    'openvino',
    'nncf',
    'matplotlib',
}


def test_the_list_is_all_that_is_public():
    assert set(mmdeploy_ext.__all__) == PUBLIC
    assert set(dir(mmdeploy_ext)) == PUBLIC | {'__version__'}
    with pytest.raises(AttributeError, match=r'.nothing.'):
        mmdeploy_ext.nothing  # noqa: B018


def test_functions_are_functions_after_every_module_was_imported():
    for module in pkgutil.walk_packages(mmdeploy_ext.__path__, 'mmdeploy_ext.'):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name.split('.')[0] in OPTIONAL, error
    for name in PUBLIC:
        assert callable(getattr(mmdeploy_ext, name)), name


@pytest.mark.parametrize(
    ('name', 'value'), [('samples', 'a.jpg'), ('samples', Path('a')), ('metrics', 'bbox')]
)
def test_a_text_for_a_list_is_refused_by_its_name(name, value):
    with pytest.raises(UsageError, match=rf"{name}='{value}': expected a list"):
        mmdeploy_ext.prove('no.py', 'no.pth', 'no.onnx', **{name: value})


@pytest.mark.parametrize(
    ('name', 'values', 'word'),
    [('mean', [1, 2], 'finite'), ('mean', np.full(3, np.nan), 'finite'), ('std', [1, 0, 1], 'positive')],
)
def test_a_normalisation_that_is_none_is_refused_before_anything_is_loaded(name, values, word):
    for function in (mmdeploy_ext.export, functools.partial(mmdeploy_ext.prove, onnx_file='no.onnx')):
        with pytest.raises(UsageError, match=rf'--{name} .*expected three {word} numbers'):
            function('no.py', 'no.pth', **{name: values})


def test_objects_in_memory_in_place_of_files_are_named_in_one_line():
    config = Config(dict(model=dict(type='FCOS')))
    for given in ((config, 'w.pth'), ('c.py', {'conv.weight': 1})):
        with pytest.raises(UsageError, match='expected the path of a file') as error:
            mmdeploy_ext.export(*given)
        assert len(str(error.value)) < 200


def test_the_parameters_of_a_function_are_the_options_of_its_command():
    line = 'c.py w.pth m.onnx --images a --eval bbox --ignore-keys k --mean 1 2 3 --strict'
    request = options.request_of(ProofRequest, verify_app.build_parser().parse_args(line.split()))
    assert request == ProofRequest(
        'c.py', 'w.pth', 'm.onnx', samples=['a'], metrics=['bbox'], ignored_keys=['k'], mean=[1, 2, 3],
        cfg_options={}, asked=None, strict=True,
    )  # fmt: skip
    parameters = inspect.signature(mmdeploy_ext.prove).parameters
    assert {'samples', 'metrics', 'asked'} < parameters.keys() and 'settings' not in parameters
    assert all(f'\n    {name}: ' in mmdeploy_ext.prove.__doc__ for name in parameters)
    with pytest.raises(TypeError, match='smaples'):
        mmdeploy_ext.prove('c.py', 'w.pth', 'm.onnx', smaples=['a'])
