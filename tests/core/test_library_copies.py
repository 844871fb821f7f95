"""Older copies of a library on the path are passed over."""

import sys

import pytest

from mmdeploy_ext.core.user_modules import is_older_copy, without_older_copies


def copy_of(folder, version=None):
    package = folder / 'mmdet3d'
    package.mkdir(parents=True)
    (package / '__init__.py').touch()
    if version:
        (package / 'version.py').write_text(f"__version__ = '{version}'\n")
    return folder


@pytest.mark.parametrize(('version', 'older'), [(None, True), ('0.17.1', True), ('1.0.0rc6', False)])
def test_a_copy_is_older_by_its_version(tmp_path, version, older):
    assert is_older_copy(copy_of(tmp_path, version), 'mmdet3d') is older
    assert not is_older_copy(tmp_path / 'nothing', 'mmdet3d')
    assert not is_older_copy(tmp_path, 'mmdet')


def test_older_copies_are_not_on_the_path_for_a_while(tmp_path, monkeypatch):
    older, newer = copy_of(tmp_path / 'a'), copy_of(tmp_path / 'b', '1.0.0')
    monkeypatch.setattr(sys, 'path', before := [str(older), str(newer), *sys.path])
    monkeypatch.delitem(sys.modules, 'mmdet3d', raising=False)
    with without_older_copies('mmdet3d'):
        assert str(older) not in sys.path and str(newer) in sys.path
    assert sys.path == before
