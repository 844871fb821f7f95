"""What importing a user's plugin raises is one line that says who holds a name, or which line refused."""

import sys

import pytest

from mmdeploy_ext.config.config import load_config
from mmdeploy_ext.util.errors import ConfigError


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
            'from mmcv.cnn import no_such_layer\n',
            ["cannot import name 'no_such_layer'", 'taken_plugin.py:1)'],
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


def test_all_missing_packages_are_named_at_once_by_their_distributions(tmp_path, monkeypatch):
    package = tmp_path / 'lacking_plugin'
    package.mkdir()
    (package / '__init__.py').write_text('from . import maps\nfrom .sets import Set\n')
    (package / 'maps.py').write_text('import no_such_maps\n')
    (package / 'sets.py').write_text(
        'import os\nfrom upath import UPath\nfrom Polygon import Polygon\nimport no_such_kernels\n'
        'try:\n    import no_such_extra\nexcept ImportError:\n    pass\n\n'
        'def draw():\n    import no_such_figure\n'
    )
    (package / 'setup.py').write_text("setup(name='no_such_kernels')\n")
    config = "custom_imports = dict(imports=['lacking_plugin'])\nmodel = dict(type='ATSS')\n"
    (tmp_path / 'config.py').write_text(config)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    words = rf'pip install no_such_maps universal_pathlib Polygon3 {package}$'
    with pytest.raises(ConfigError, match=words):
        load_config(str(tmp_path / 'config.py'))
