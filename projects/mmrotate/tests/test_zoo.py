"""The zoo of mmrotate's configs: which are one model at test time."""

import ast
import importlib.util
from pathlib import Path

import pytest

from dev.pages import zoo as pages
from dev.zoo import app as zoo_app
from dev.zoo import configs
from dev.zoo.records import zoo_records
from mm2onnx_mmrotate import TRAINING_KEYS
from mmdeploy_ext.base.files import read_json

MMROTATE = Path(importlib.util.find_spec('mmrotate').origin).parent
OF_TRAINING = ('loss', 'target', 'train', 'quality')
"""A function of mmrotate with such a word in its name runs in training alone."""


def readers(key):
    """Return the names of the functions of mmrotate that read an attribute, but for those of its losses."""
    names = []
    for path in (MMROTATE / 'models').rglob('*.py'):
        if path.parent.name == 'losses':
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and any(
                isinstance(node, ast.Attribute) and node.attr == key and isinstance(node.ctx, ast.Load)
                for node in ast.walk(function)
            ):
                names.append(function.name)
    return names


@pytest.mark.parametrize('key', TRAINING_KEYS)
def test_only_training_reads_the_keys_that_the_zoo_leaves_out(key):
    others = [name for name in readers(key) if not any(word in name for word in OF_TRAINING)]
    assert readers(key) and not others


def test_the_zoo_has_all_configs_of_mmrotate(capsys):
    assert zoo_app.main(['mmrotate/*/*.py', '--list']) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert len(names) == 82 and all(name.startswith('mmrotate/') for name in names)


def test_configs_of_one_model_are_proven_once_and_those_of_another_are_not():
    words = ['mmrotate/rotated_retinanet/*_1x_dota_*.py', 'mmrotate/kld/rotated_retinanet_obb_kld*.py']
    by_digest = {}
    for config in configs.read_configs(configs.config_files(words)):
        by_digest.setdefault(config.test_digest, []).append(config.name)
    models = sorted(sorted({name.rsplit('_', 1)[1] for name in names}) for names in by_digest.values())
    assert models == [['le135.py'], ['le90.py'], ['le90.py'], ['oc.py']]  # of `le90` one has a single class


def test_the_page_has_a_row_for_each_model():
    found = zoo_records(read_json(pages.DATA[pages.ROTATED]))
    text = pages.rotated_section(found)
    for record in found:
        name = (record.same_as or record.config).removeprefix(pages.ROTATED).removesuffix('.py')
        assert f'\n| `{name}` |' in text
