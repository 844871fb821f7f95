"""A config that no family takes: its refusal ends with the command for its parts, which `--check` tries."""

import pytest
import torch
from mmdet.models.builder import DETECTORS, HEADS
from mmdet.models.detectors import BaseDetector
from torch import nn

from mmdeploy_ext.cli import export_app
from toy_atss import REPO

CONFIG = f"""_base_ = ['{REPO}/configs/demo/atss_toy.py']
model = dict(_delete_=True, type='DetectorOfPoints', head=dict(type='HeadOfPoints'))
"""


@HEADS.register_module()
class HeadOfPoints(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Conv2d(3, 2, 3, stride=16)

    def forward(self, picture):
        return self.scores(picture).sigmoid()


@DETECTORS.register_module()
class DetectorOfPoints(BaseDetector):
    def __init__(self, head, train_cfg=None, test_cfg=None):
        super().__init__()
        self.head = HEADS.build(head)

    def simple_test(self, img, img_metas, rescale=False):
        scores, classes = self.head(img).flatten(2).max(2)
        boxes = torch.cat([classes[0][:, None].expand(-1, 4).float(), scores[0][:, None]], 1).numpy()
        return [[boxes[:1], boxes[1:]]]

    def extract_feat(self, imgs):
        raise NotImplementedError

    def aug_test(self, imgs, img_metas, **kwargs):
        raise NotImplementedError


def test_a_refusal_ends_with_the_command_for_parts(tmp_path, capsys):
    (tmp_path / 'user.py').write_text(CONFIG)
    checkpoint = str(tmp_path / 'user.pth')
    torch.save(nn.ModuleDict(dict(head=HeadOfPoints())).state_dict(), checkpoint)
    assert export_app.main([str(tmp_path / 'user.py'), checkpoint]) == 1
    assert capsys.readouterr().err.rstrip().endswith(f'{tmp_path}/user.py {checkpoint} --parts list')


@pytest.mark.matrix
def test_check_names_the_parts_that_export(tmp_path, capsys):
    (tmp_path / 'user.py').write_text(CONFIG)
    assert export_app.main([str(tmp_path / 'user.py'), '--check']) == 1
    captured = capsys.readouterr()
    assert 'parts: head (exports)' in captured.out
    assert captured.err.rstrip().endswith('CHECKPOINT --parts head')


def test_a_test_path_that_raises_is_told_and_not_the_refusal_again(tmp_path, capsys, monkeypatch):
    def simple_test(self, img, img_metas, rescale=False):
        raise RuntimeError('not compiled')

    monkeypatch.setattr(DetectorOfPoints, 'simple_test', simple_test)
    (tmp_path / 'user.py').write_text(CONFIG)
    assert export_app.main([str(tmp_path / 'user.py'), '--check']) == 2
    _, _, reason = capsys.readouterr().err.partition('parts were not tried')
    assert 'RuntimeError: not compiled' in reason and 'no family' not in reason
