"""Whose code a model is: classes by file and by the hash of what they do."""

import ast
import functools
import importlib
import sys
import textwrap
import types

import pytest
from torch import nn

from mmdeploy_ext.core import source_code
from mmdeploy_ext.core.model_classes import changed_classes, model_classes
from mmdeploy_ext.core.source_code import (
    DECORATORS,
    code_sha256,
    functions_behind,
    is_installed,
    module_of,
    source_of_function,
)

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


def hash_of(text):
    return code_sha256(ast.parse(textwrap.dedent(text)))


@pytest.mark.parametrize(
    ('changed', 'same'),
    [
        ('def f(x):\n    return x + 1  # more', True),
        ('def f(x):\n    """Return more."""\n\n    return (x + 1)', True),
        ('def f(x):\n    return x + 1.0', False),
        ('def f(x):\n    return 1 + x', False),
        ('@g\ndef f(x):\n    return x + 1', False),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(changed, same):
    assert (hash_of('def f(x):\n    return x + 1') == hash_of(changed)) == same


def test_classes_of_a_plugin_are_named_with_their_file_and_bases_and_coders(plugin):
    module = plugin(PLUGIN)
    found = {entry.name: entry for entry in model_classes(nn.Sequential(module.Head(), nn.ReLU()))}
    assert list(found) == ['Head', 'Base', 'Coder']
    assert {entry.file for entry in found.values()} == {'toy_projects/plugin/head.py'}
    assert not any(entry.ours for entry in found.values())


def test_a_changed_class_is_noted_and_no_other_one(plugin):
    written = [entry.to_json() for entry in model_classes(plugin(PLUGIN).Head())]
    assert (
        changed_classes(written, model_classes(plugin(PLUGIN.replace('# one line', '# another')).Head()))
        == []
    )
    (line,) = changed_classes(written, model_classes(plugin(PLUGIN.replace('* 2', '* 3')).Head()))
    assert line.startswith('Head (toy_projects/plugin/head.py) was ') and 'and is ' in line
    lines = changed_classes(written, model_classes(nn.Linear(1, 1)))
    assert len(lines) == 3 and all(line.endswith('and is none') for line in lines)


def test_classes_of_the_libraries_are_nobodys_and_ours_are_ours():
    from mmdet.models import build_head

    from mmdeploy_ext.models.rtdetr.decoder import Postprocess

    head = build_head(dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1))
    assert model_classes(head) == ()
    (entry,) = model_classes(Postprocess(2, 10))
    assert entry.ours and entry.file == 'mmdeploy_ext/models/rtdetr/decoder.py' and len(entry.sha256) == 64


def test_a_method_that_a_plugin_puts_into_a_class_of_mmdet_is_named(plugin, monkeypatch):
    from mmdet.models.necks import FPN

    module = plugin(PLUGIN)
    monkeypatch.setattr(FPN, 'forward', module.Head.forward)
    (entry,) = model_classes(FPN([8, 8], 8, 2))
    assert (entry.name, entry.file) == ('FPN.forward', 'toy_projects/plugin/head.py')


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


def test_a_dataclass_without_methods_is_in_the_file_of_its_module():
    assert str(source_code.file_of_class(source_code.SourceLines)) == source_code.__file__


def test_what_decorators_wrap_is_found_and_a_wrapper_is_seen(plugin):
    from mmdet.core.bbox.coder import delta_xywh_bbox_coder

    names = [function.__name__ for function in functions_behind(delta_xywh_bbox_coder.delta2bbox)]
    assert names[-1] == 'delta2bbox' and len(names) > 1  # of mmcv's jit
    method = plugin(PLUGIN).Head.forward

    @functools.wraps(method)
    def wrapped(self, x):
        return method(self, x) * 2

    sources = [source_of_function(function) for function in functions_behind(wrapped)]
    assert sources[0].file.endswith('test_model_classes.py') and sources[0].sha256 != sources[1].sha256
    assert sources[1].file == 'toy_projects/plugin/head.py' and sources[1].first == 23


def test_a_partial_with_other_arguments_is_not_the_function_that_it_calls():
    from mmdet.models.dense_heads import ATSSHead

    assert module_of(ATSSHead.get_bboxes) in DECORATORS
    for function in (ATSSHead.get_bboxes, nn.Identity(), print):
        assert list(functions_behind(functools.partial(function, None))) == []


PROPERTY = '''
class Head:
    @property
    def stride(self):
        return {getter}

    @stride.setter
    def stride(self, value):
        self._stride = value
'''


def test_a_getter_that_was_edited_is_none_of_the_library_though_its_setter_is(tmp_path, monkeypatch):
    for folder, getter in (('installed', 8), ('same', 8), ('edited', 9)):
        (tmp_path / folder / 'mmdet').mkdir(parents=True)
        (tmp_path / folder / 'mmdet' / 'head.py').write_text(PROPERTY.format(getter=getter))
    monkeypatch.setattr(source_code, '_installed_files', lambda package: (tmp_path / 'installed/mmdet', {}))
    for folder, equal in (('same', True), ('edited', False)):
        path, names = tmp_path / folder / 'mmdet' / 'head.py', {}
        exec(compile(path.read_text(), str(path), 'exec'), names)
        stride = names['Head'].stride
        assert source_code.is_as_installed(stride.fget.__code__, 'mmdet') is equal
        assert source_code.is_as_installed(stride.fset.__code__, 'mmdet')


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


def test_the_hash_of_a_property_counts_its_getter_and_its_setter(tmp_path):
    hashes = []
    for getter in (8, 9):
        path = tmp_path / f'head_{getter}.py'
        path.write_text(PROPERTY.format(getter=getter))
        module = types.ModuleType('head')
        module.__file__ = str(path)
        hashes.append(source_code.sources_of_module(module)['Head.stride'].sha256)
    assert hashes[0] != hashes[1]
