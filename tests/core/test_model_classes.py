"""Whose code a model is: classes by file and line, and by the hashes of their files."""

import dataclasses
import importlib
import sys
import textwrap

import pytest
from torch import nn

from mmdeploy_ext.core import source_code
from mmdeploy_ext.core.source_code import changed_files, is_installed, model_classes, users_method

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

    from mmdeploy_ext.models.rtdetr.decoder import Postprocess

    head = build_head(dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1))
    assert model_classes(head) == ()
    (entry,) = model_classes(Postprocess(2, 10))
    assert entry.ours and entry.file == 'mmdeploy_ext/models/rtdetr/decoder.py' and len(entry.sha256) == 64


def test_a_method_of_a_plugin_is_named_also_in_a_class_of_mmdet(plugin, monkeypatch):
    from mmdet.models.necks import FPN

    module = plugin(PLUGIN)
    place = 'toy_projects/plugin/head.py:23'
    assert users_method(module.Head, 'forward') == f'Head.forward ({place})'
    assert users_method(module.Head, 'decode') == users_method(FPN, 'forward') == ''
    monkeypatch.setattr(FPN, 'forward', module.Head.forward)
    assert users_method(FPN, 'forward') == f'FPN.forward ({place})'


def test_a_file_of_mmdet_that_was_edited_in_place_is_not_the_installed_one(tmp_path, monkeypatch):
    root = tmp_path / 'mmdet'
    root.mkdir()
    (root / 'head.py').write_text('x = 1\n')
    digest = source_code._sha256_urlsafe(root / 'head.py', 0)
    monkeypatch.setattr(source_code, '_installed_files', lambda package: (root, {'mmdet/head.py': digest}))
    (root / 'added.py').write_text('x = 1\n')
    assert is_installed('mmdet', root / 'head.py') and not is_installed('mmdet', root / 'added.py')
    (root / 'head.py').write_text('x = 2\n')
    assert not is_installed('mmdet', root / 'head.py')
    assert not is_installed('mmdet', tmp_path / 'fork' / 'mmdet' / 'head.py')


def test_a_checkout_of_mmdet_that_an_egg_link_installs_is_not_the_installed_one(tmp_path, monkeypatch):
    for folder in ('mmdet', 'mmdet.egg-info'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'mmdet.egg-info' / 'PKG-INFO').write_text('Metadata-Version: 2.1\nName: mmdet\nVersion: 2\n')
    head = tmp_path / 'mmdet' / 'head.py'
    head.write_text('x = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(source_code, '_installed_files', source_code._installed_files.__wrapped__)
    assert is_installed('mmdet', head), 'a distribution without a list of its files'
    (tmp_path / 'setup.py').touch()
    assert not is_installed('mmdet', head)


def test_a_dataclass_without_methods_is_in_the_file_of_its_module(monkeypatch):
    kind = dataclasses.make_dataclass('Plain', ['x'], namespace=dict(__module__=source_code.__name__))
    assert str(source_code.file_of(kind)) == source_code.__file__


def test_a_class_that_a_repository_adds_to_its_copy_of_a_library_is_not_in_the_library(tmp_path, monkeypatch):
    folder = tmp_path / 'installed' / 'mmdet' / 'heads'
    folder.mkdir(parents=True)
    (folder / '__init__.py').write_text('class InPackage: pass\n')
    (folder / 'head.py').write_text('class Head: pass\n')
    monkeypatch.setattr(source_code, '_installed_files', lambda package: (folder.parent, {}))
    modules = dict(Head='heads.head', InPackage='heads', Added='heads.head', New='heads.new')
    kinds = [type(name, (), dict(__module__=f'mmdet.{module}')) for name, module in modules.items()]
    assert [source_code.is_in_library(kind) for kind in kinds] == [True, True, False, False]
    assert not source_code.is_in_library(type('Head', (), dict(__module__='own.heads.head')))
    monkeypatch.setattr(source_code, '_installed_files', lambda package: (None, {}))
    assert source_code.is_in_library(kinds[3]), 'of a checkout nobody knows what was added'
