"""YAML configs as torchpack reads them: defaults of folders, expressions."""

import pytest

from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / '.git').mkdir()

    def write(**texts):
        for name, text in texts.items():
            path = tmp_path / f'{name.replace("__", "/")}.yaml'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_values_are_merged_over_the_defaults_of_all_folders_above(folder):
    root = folder(
        default='model: {type: A, head: {queries: 200, layers: [1, 2]}, fuser: {a: 1}}\nrange: [-1, 1]\n',
        det__default='model: {head: {layers: [3]}, fuser: null, neck: null}\n',
        det__lidar__small='model: {type: B, head: {queries: 40}, neck: {levels: 2}}\n',
    )
    cfg = load_config(str(root / 'det/lidar/small.yaml'))
    assert cfg.model == dict(type='B', head=dict(queries=40, layers=[3]), fuser=None, neck=dict(levels=2))
    assert cfg.range == [-1, 1]


def test_expressions_see_the_top_level_as_it_is_at_last_and_each_other(folder):
    root = folder(
        default=(
            'size: [64, 96]\nroot: data/\nepochs: 20\naugment: {resize: [[0.1, 0.2], [0.5, 0.5]]}\n'
            'runner: {epochs: "${epochs}"}\n'
            'model: {cells: "${[size[0] // 8, size[1] // 8]}", file: "${root + \'infos.pkl\'}"}\n'
            'steps: [{resize: "${augment.resize[1]}"}, {cells: "${model.cells}"}]\n'
        ),
        small='size: [32, 48]\nepochs: 6\n',
    )
    cfg = load_config(str(root / 'small.yaml'))
    assert cfg.model == dict(cells=[4, 6], file='data/infos.pkl')
    assert cfg.runner.epochs == 6
    assert cfg.steps == [dict(resize=[0.5, 0.5]), dict(cells=[4, 6])]


def test_expressions_of_folders_above_the_repository_do_not_run(tmp_path):
    root = tmp_path / 'downloads/repository'
    (root / '.git').mkdir(parents=True)
    (tmp_path / 'default.yaml').write_text('a: "${1 / 0}"\n')
    (root / 'default.yaml').write_text('model: {type: A}\n')
    (root / 'x.yaml').write_text('b: 1\n')
    cfg = load_config(str(root / 'x.yaml'))
    assert cfg.model == dict(type='A') and 'a' not in cfg


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('model: {a: "${sizes[0]}"}\n', ['model.a', 'sizes', 'NameError']),
        ('a: [\n', ['is not YAML']),
    ],
)
def test_what_cannot_be_read_is_refused_by_file_and_key(folder, text, words):
    path = folder(default=text) / 'default.yaml'
    with pytest.raises(ConfigError) as error:
        load_config(str(path))
    for word in [str(path), *words]:
        assert word in str(error.value)
