"""Where libraries keep what they compile, for users without a home folder."""

import os

from mmdeploy_ext.util.files import use_writable_cache


def test_a_user_without_a_home_folder_caches_below_the_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'own'))
    use_writable_cache()
    assert os.environ['XDG_CACHE_HOME'] == str(tmp_path / 'own')
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)  # HOME unset, a user without a name
    monkeypatch.delenv('XDG_CACHE_HOME')
    use_writable_cache()
    assert os.path.isabs(os.environ['XDG_CACHE_HOME'])
