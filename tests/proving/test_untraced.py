"""What a graph cannot show of a user's neck is named; state that runs change is not proven."""

import pytest

import mmdeploy_ext
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


@pytest.mark.matrix
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
