"""Whose code a model is: classes by file and line, and by the hashes of their files."""

import importlib
import sys
import textwrap

import pytest
from torch import nn

from mmdeploy_ext.base.source_code import changed_files, model_classes

PLUGIN = '''
"""A plugin."""
from torch import nn


class Coder:
    def decode(self, boxes):
        return boxes


class Base(nn.Module):
    scale = 1.0


class Head(Base):
    """A head."""

    def __init__(self):
        super().__init__()
        self.coder = Coder()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        # one line of comment
        return self.conv(x) * 2
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Return what imports the module of a text below `projects/toy_plugin/`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def imported(text):
        folder = tmp_path / 'toy_projects' / 'plugin'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'head.py').write_text(textwrap.dedent(text))
        for name in [name for name in sys.modules if name.startswith('toy_projects')]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return importlib.import_module('toy_projects.plugin.head')

    return imported


def test_classes_of_a_plugin_are_named_with_their_file_and_bases_and_coders(plugin):
    module = plugin(PLUGIN)
    found = {entry.name: entry for entry in model_classes(nn.Sequential(module.Head(), nn.ReLU()))}
    assert list(found) == ['Head', 'Base', 'Coder']
    assert {entry.file for entry in found.values()} == {'toy_projects/plugin/head.py'}
    assert not any(entry.ours for entry in found.values())
    assert found['Head'].place == 'toy_projects/plugin/head.py:15'


def test_a_changed_file_is_named_and_no_other_one(plugin):
    written = [entry.to_json() for entry in model_classes(plugin(PLUGIN).Head())]
    assert changed_files(written, model_classes(plugin(PLUGIN).Head())) == []
    changed = model_classes(plugin(PLUGIN.replace('* 2', '* 3')).Head())
    assert changed_files(written, changed) == ['toy_projects/plugin/head.py']
    assert changed_files(written, model_classes(nn.Linear(1, 1))) == ['toy_projects/plugin/head.py']


def test_classes_of_the_libraries_are_nobodys_and_ours_are_ours():
    from mmdet.models import build_head

    from mmdeploy_ext.upstream.models.rtdetr.decoder import Postprocess

    head = build_head(dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1))
    assert model_classes(head) == ()
    (entry,) = model_classes(Postprocess(2, 10))
    assert (
        entry.ours
        and entry.file == 'mmdeploy_ext/upstream/models/rtdetr/decoder.py'
        and len(entry.sha256) == 64
    )
