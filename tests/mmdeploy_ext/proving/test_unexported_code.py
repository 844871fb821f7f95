"""The user's code that PyTorch's side of a proof runs and no export, so that inputs have to judge."""

import importlib.util
import tempfile
from pathlib import Path

import pytest
import torch
from mmcv import ConfigDict

from mmdeploy_ext.core.users_code import RanCode, is_users_code, unwatched
from mmdeploy_ext.families.module_settings import module_settings
from mmdeploy_ext.proving.levels.unexported_code import (
    changed_settings,
    codes_of_methods,
    kept_attributes,
    unexported_code,
    users_settings,
)
from mmdeploy_ext.proving.verdict import Verdict

NECK = """
import torch


def halved(x):
    return sum(value for value in [x]) / 2


class Neck(torch.nn.Module):
    exporting, calls, grid, seen, last = False, 0, None, None, None

    def forward(self, x):
        if self.grid is None:
            self.grid = x[:1] * 0
        {line}
        return x + self.grid

    def again(self, x):
        return self.forward(x)
"""

DECORATED = """
import functools
import mmcv.runner
import torch

CODES = []


def wrapped(function):
    @functools.wraps(function)
    def call(self):
        return function(self)

    return call


def without_name(function):
    def call(self):
        return function(self)

    return call


def noted(function):
    CODES.append(function.__code__)
    return function


class Neck(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    @{decorator}
    @noted
    def factor(self):
        return self.calls

    def forward(self, x):
        self.__dict__['calls'] += 1
        return x * self.factor{call}
"""


def neck(folder, line='pass'):
    path = Path(tempfile.mkdtemp(dir=folder)) / 'users_neck.py'  # byte code of a second ago is not read
    path.write_text(NECK.format(line=line))
    spec = importlib.util.spec_from_file_location('users_neck', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Neck().eval()


def ran(module, exporting=False):
    code = RanCode()
    with code.watched():
        module.exporting = exporting
        module(torch.ones(3))
    return code


@pytest.mark.parametrize(
    ('line', 'reason'),
    [
        ('x = x if self.exporting else x.clamp(-9, 9)', 'users_neck.py:15 is run by PyTorch alone'),
        ('x = x if self.exporting else halved(x)', 'users_neck.py:15 is run by PyTorch alone'),
        ('if self.exporting: return x', 'users_neck.py:16 is run by PyTorch alone'),
        ('x = halved(x) if self.exporting else x', 'users_neck.py:15 is run by PyTorch alone'),
        ('x = halved(x)', ''),
    ],
)
def test_what_an_export_leaves_out_makes_inputs_decide(tmp_path, line, reason):
    module = neck(tmp_path, line)
    export = ran(module, exporting=True)
    module.grid = None  # as of another copy of the model
    found = unexported_code(ran(module), export, ())
    assert [code.reason for code in found][:1] == ([reason] if reason else [])
    assert Verdict({}, unexported_code=found).by_inputs.startswith(reason)


def test_a_function_that_no_export_runs_is_named_once(tmp_path):
    module = neck(tmp_path, 'x = sum(value for value in [x])')
    (found,) = unexported_code(ran(module), RanCode(), ())
    assert found.text == (
        'Neck.forward is run by PyTorch alone (users_neck.py lines 12-16); the export does not run it'
    )
    assert Verdict({}, unexported_code=[found]).to_json()['unexported_code'][0]['text'] == found.text
    assert unexported_code(ran(module), RanCode(), [type(module).forward]) == []


def test_code_of_libraries_and_ours_is_not_the_users(tmp_path):
    from mmcv.cnn import ConvModule

    from mmdeploy_ext.models.cp_fpn import CPFPN

    for method in (ConvModule.forward, CPFPN.forward, torch.nn.Linear.forward, importlib.import_module):
        assert not is_users_code(method.__code__, method.__module__), method
    assert is_users_code(neck.__code__, __name__)


@pytest.mark.parametrize(
    ('line', 'kept'),
    [
        ('self.calls += 1', ['Neck.calls']),
        ('self.last, x = x, x if self.last is None else x + self.last', ['Neck.last']),
        ('self.seen = x', []),
        ('pass', []),
    ],
)
def test_values_that_a_layer_keeps_and_reads_make_inputs_decide(tmp_path, line, kept):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), neck(tmp_path, line))
    model(torch.ones(3))
    before = users_settings(model)
    model(torch.ones(3) * 2)
    assert [code.name for code in kept_attributes(model, before, ())] == kept
    assert kept_attributes(model, before, [type(model[1]).forward]) == []  # of a memory that a family knows


@pytest.mark.parametrize(
    'decorator',
    [
        'mmcv.runner.auto_fp16()',
        'torch.no_grad()',
        'functools.lru_cache(None)',
        'wrapped',
        'without_name',
        'property',
    ],
)
def test_a_value_that_is_read_behind_a_decorator_is_seen(tmp_path, decorator):
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / 'users_decorated.py'
    path.write_text(DECORATED.format(decorator=decorator, call='' if decorator == 'property' else '()'))
    spec = importlib.util.spec_from_file_location('users_decorated', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Neck().eval()
    model(torch.ones(3))
    before = users_settings(model)
    model(torch.ones(3))
    assert [code.name for code in kept_attributes(model, before, ())] == ['Neck.calls']
    codes = {module.Neck.forward.__code__, *module.CODES}
    assert {id(code) for code in codes} <= codes_of_methods(model)


@pytest.mark.parametrize('name', ['methods', 'buffers'])
def test_an_attribute_with_the_name_of_a_hidden_setting_is_a_setting(name):
    layer = torch.nn.Identity()
    layer.__dict__[name] = 1
    before = module_settings(layer)
    layer.__dict__[name] = 2
    assert module_settings(layer) != before


def test_code_of_class_methods_and_static_ones_is_found():
    class Layer(torch.nn.Identity):
        @classmethod
        def of_class(cls):
            return cls

        @staticmethod
        def of_nothing():
            return 0

    codes = {id(Layer.of_class.__func__.__code__), id(Layer.of_nothing.__code__)}
    assert codes <= codes_of_methods(Layer())


def test_what_runs_unwatched_is_not_recorded(tmp_path):
    module, code = neck(tmp_path), RanCode()
    with code.watched(), unwatched():
        module(torch.ones(3))
    assert code.codes == {}
    with code.watched():
        module(torch.ones(3))
    assert [entry.co_name for entry, _ in code.codes.values()] == ['forward']


class Coder:
    def __init__(self):
        self.factor, self.grids = 0.5, {}


@pytest.mark.parametrize(
    ('line', 'text'),
    [
        (
            'self.test_cfg["nms"]["iou_threshold"] = 0.4',
            'Neck.test_cfg.nms.iou_threshold is set by a run (0.4 in place of 0.6, the detector); '
            'the graph has the value that it had before',
        ),
        (
            'self.coder.factor = 2.0',
            'Neck.coder.factor is set by a run (2.0 in place of 0.5, the detector); '
            'the graph has the value that it had before',
        ),
        ('self.test_cfg["nms"]["iou_threshold"] = 0.6', ''),
        ('self.coder.grids[tuple(x.shape)] = x; self.coder.shape = x.shape', ''),
        ('self.last_frame["place"] = 1', ''),
    ],
)
def test_a_setting_that_a_run_changes_makes_inputs_decide(tmp_path, line, text):
    module = neck(tmp_path, line)
    module.test_cfg, module.coder = ConfigDict(nms=dict(iou_threshold=0.6)), Coder()
    module.last_frame = {'place': 0}
    loaded = module_settings(module)
    module(torch.ones(3))
    assert [entry.text for entry in changed_settings(module, loaded)] == ([text] if text else [])
