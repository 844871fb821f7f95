"""Where libraries keep what they compile, for users without a home folder."""

import os
import stat
import tempfile

import pytest

from mmdeploy_ext.base.files import use_writable_cache


def test_a_user_without_a_home_folder_caches_below_the_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'own'))
    use_writable_cache()
    assert os.environ['XDG_CACHE_HOME'] == str(tmp_path / 'own')
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)  # HOME unset, a user without a name
    monkeypatch.delenv('XDG_CACHE_HOME')
    use_writable_cache()
    assert os.path.isabs(os.environ['XDG_CACHE_HOME'])


@pytest.mark.parametrize('kind', ['ours', 'writable', 'link'])
def test_a_cache_that_others_can_write_to_is_not_used(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    known = tmp_path / f'cache-{os.getuid()}'
    if kind == 'link':
        (tmp_path / 'elsewhere').mkdir()
        known.symlink_to('elsewhere')
    else:
        known.mkdir()
        known.chmod(0o777 if kind == 'writable' else 0o700)
    use_writable_cache()
    used = os.environ['XDG_CACHE_HOME']
    assert (used == str(known)) == (kind == 'ours')
    assert stat.S_IMODE(os.lstat(used).st_mode) == 0o700
