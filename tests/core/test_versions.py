"""Versions are those of the modules that were imported, wherever these are."""

import importlib.metadata
import sys
import types

import onnx
import pytest

from mmdeploy_ext.core import source_code as core


def test_imported_modules_of_the_installed_distributions_have_its_version_and_no_path():
    found = core.versions()
    assert found['onnx'] == onnx.__version__ == importlib.metadata.version('onnx')
    assert core.versions_with_places() == found and core.other_copies() == {}


@pytest.fixture
def copy(monkeypatch, tmp_path):
    """Import another copy of onnxslim: a module of that name, from a folder of this test."""
    module = types.ModuleType('onnxslim')
    module.__version__, module.__file__ = '9.9.9', str(tmp_path / 'onnxslim/__init__.py')
    monkeypatch.setitem(sys.modules, 'onnxslim', module)
    return module


def test_another_copy_has_its_own_version_and_its_folder(copy, tmp_path):
    assert core.versions()['onnxslim'] == '9.9.9' != importlib.metadata.version('onnxslim')
    assert core.other_copies() == {'onnxslim': str(tmp_path / 'onnxslim')}
    assert core.versions_with_places()['onnxslim'] == f'9.9.9 ({tmp_path / "onnxslim"})'
    copy.__version__ = importlib.metadata.version('onnxslim')
    assert core.other_copies(), 'the same version, but not the same files'
