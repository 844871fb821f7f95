"""A user's backbone that keeps the size it was traced at is refused, with its lines, before an export."""

import importlib.util
import textwrap

import pytest
import torch
from torch import nn

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.bench.lint.dynamic_sizes import check_dynamic_parts

BACKBONES = """
import torch
from torch import nn


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        side = int(x.shape[2])
        return (x * torch.linspace(0, 1, side)[:, None],)


class Levels(Fixed):
    def forward(self, x):
        x = self.conv(x)
        return (x,) * (1 + int(x.shape[2] > 64))


class Dropped(Fixed):
    def forward(self, x):
        return (nn.functional.dropout(self.conv(x)),)


class Free(Fixed):
    def forward(self, x):
        x = self.conv(x)
        if x.shape[1] == 4:
            x = x * torch.arange(x.shape[2])[:, None] / x.shape[2]
        return (x,)
"""


@pytest.fixture
def backbones(tmp_path):
    path = tmp_path / 'user_backbones.py'
    path.write_text(textwrap.dedent(BACKBONES))
    spec = importlib.util.spec_from_file_location('user_backbones', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Detector(nn.Module):
    def __init__(self, backbone, neck=None):
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.eval()


@pytest.mark.parametrize('name', ['Fixed', 'Levels', 'Dropped'])
def test_a_backbone_that_keeps_its_size_or_draws_numbers_is_refused_with_the_line(backbones, name):
    with pytest.raises(UsageError) as error:
        check_dynamic_parts(Detector(getattr(backbones, name)()))
    lines = dict(Fixed='side = int(x.shape', Levels='x.shape[2] > 64', Dropped='dropout(self.conv(x))')
    assert f'{name} (' in str(error.value) and lines[name] in str(error.value)
    assert ('random' in str(error.value)) == (name == 'Dropped')


def test_a_backbone_of_any_size_passes_and_one_of_mmdet_is_not_tried(backbones, monkeypatch):
    from mmdet.models import build_backbone, build_neck

    check_dynamic_parts(Detector(backbones.Free()))
    monkeypatch.setattr(torch.jit, 'trace', None)
    backbone = build_backbone(dict(type='ResNet', depth=18, norm_eval=False))
    neck = build_neck(dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=8, num_outs=4))
    check_dynamic_parts(Detector(backbone, neck))
