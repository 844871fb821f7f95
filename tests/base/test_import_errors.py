"""What importing a user's plugin raises is one line that says who holds a name, or which line refused."""

import sys

import pytest

from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.compat import stand_ins


@pytest.mark.parametrize(
    ('code', 'words'),
    [
        (
            'from mmcv.utils import Registry\nHEADS = Registry("models")\n'
            + 2 * '@HEADS.register_module()\nclass OwnHead: pass\n',
            [
                "'OwnHead is already registered in models'",
                'taken_plugin.py:',
            ],
        ),
        (
            'raise RuntimeError("needs a GPU")\n',
            ['RuntimeError: needs a GPU', 'taken_plugin.py:1)'],
        ),
    ],
)
def test_a_config_whose_plugin_fails_says_why_in_one_line(tmp_path, monkeypatch, code, words):
    import mmdet.models  # noqa: F401

    (tmp_path / 'taken_plugin.py').write_text(code)
    config = "custom_imports = dict(imports=['taken_plugin'])\nmodel = dict(type='ATSS')\n"
    (tmp_path / 'config.py').write_text(config)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    for module in ('taken_plugin', 'stub_of_x'):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ConfigError) as error:
        load_config(str(tmp_path / 'config.py'))
    said = str(error.value)
    assert '\n' not in said and all(word in said for word in words), said


def test_a_plugin_is_read_without_the_packages_that_it_imports(tmp_path, monkeypatch):
    package = tmp_path / 'lacking_plugin'
    package.mkdir()
    (package / '__init__.py').write_text('from . import maps\nfrom .sets import Set\n')
    (package / 'maps.py').write_text('import no_such_maps\n')
    (package / 'sets.py').write_text('from upath import UPath\nclass Set(UPath): pass\n')
    config = "custom_imports = dict(imports=['lacking_plugin'])\nmodel = dict(type='ATSS')\n"
    (tmp_path / 'config.py').write_text(config)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    stand_ins.forget()
    load_config(str(tmp_path / 'config.py'))
    assert list(stand_ins.lacks) == ['no_such_maps', 'upath']


def test_a_plugin_that_is_not_there_is_named_with_where_it_was_looked_for(tmp_path):
    config = "custom_imports = dict(imports=['no_such_plugin'])\nmodel = dict(type='ATSS')\n"
    (tmp_path / 'config.py').write_text(config)
    with pytest.raises(ConfigError, match=f'no_such_plugin is not in .*{tmp_path}'):
        load_config(str(tmp_path / 'config.py'))
