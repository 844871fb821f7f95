"""What a graph cannot show of a user's neck is named; state that runs change is not proven."""

import pytest
import torch

import mmdeploy_ext
from mmdeploy_ext.exporting.export import export_module, recorded_warnings
from mmdeploy_ext.proving.open_points import copied_package, warning_lines
from toy_atss import CHECKPOINT, CONFIG, PICTURE

NECKS = """import torch
from mmdet.models.builder import NECKS
from mmdet.models.necks import FPN


@NECKS.register_module()
class AskingNeck(FPN):
    def forward(self, inputs):
        maps = super().forward(inputs)
        if maps[0].max() > 9e9:
            maps = maps[::-1]
        if torch.equal(maps[0], maps[1]):
            maps = maps[::-1]
        if torch.onnx.is_in_onnx_export():
            maps = tuple(maps)
        return maps


@NECKS.register_module()
class CountingNeck(FPN):
    calls = 0

    def forward(self, inputs):
        self.calls += 1
        return tuple(level * self.calls for level in super().forward(inputs))

"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('repository')
    (folder / 'users_necks.py').write_text(NECKS)
    return folder


@pytest.fixture
def verdict_on(folder, tmp_path, monkeypatch):
    """Return a function that exports the toy with another neck and proves the file."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))

    def verdict_on(neck):
        options = {'custom_imports': dict(imports=['users_necks']), 'model.neck.type': neck}
        exported = mmdeploy_ext.export(
            CONFIG, CHECKPOINT, tmp_path / 'm.onnx', picture=PICTURE, cfg_options=options, form='raw'
        )
        return exported.prove()[0]

    return verdict_on


def test_values_that_decide_and_code_for_exports_are_named_with_their_lines(verdict_on):
    verdict = verdict_on('AskingNeck')
    assert verdict.title == 'PROVEN'
    assert verdict.untraced == [
        'users_necks.py:10: PyTorch warns "Converting a tensor to a Python boolean ..."',
        'users_necks.py:12: calls equal(), of which PyTorch does not warn',
        'AskingNeck (users_necks.py:6): asks is_in_onnx_export()',
    ]


def test_a_neck_that_multiplies_by_the_number_of_its_calls_is_not_proven(verdict_on):
    verdict = verdict_on('CountingNeck')
    assert verdict.title == 'NOT PROVEN'
    assert verdict.failures == [
        'the model gives other results when the first input is run again at the end '
        '(state that runs change): outputs of neck'
    ]


def test_a_file_of_a_copied_package_is_in_the_copy_and_a_new_file_beside_it_is_not(tmp_path):
    package = tmp_path / 'mmdet'
    package.mkdir()
    (package / '__init__.py').touch()
    assert copied_package(str(package / 'models' / 'necks' / 'fpn.py')) == package
    assert copied_package(str(package / 'models' / 'necks' / 'mine.py')) is None
    assert copied_package(str(tmp_path / 'models' / 'necks' / 'fpn.py')) is None


class Silent(torch.nn.Module):
    def forward(self, x):
        return x * 2 if torch.is_nonzero(x.sum()) and x.allclose(x) else x


def test_functions_and_methods_that_do_not_warn_are_recorded_once_and_only_while_they_are_traced():
    records = []
    with recorded_warnings(records):
        Silent()(torch.ones(2))
        assert records == []
        export_module(Silent().eval(), [torch.ones(2)])
        export_module(Silent().eval(), [torch.ones(2)])
    assert [line.reason for line in warning_lines(records)] == [
        'calls is_nonzero(), of which PyTorch does not warn',
        'calls allclose(), of which PyTorch does not warn',
    ]
    export_module(Silent().eval(), [torch.ones(2)])
    assert len(records) == 2
