"""Old names of modules: an import says the new one; what other packages import is still there."""

import importlib
import importlib.util
from pathlib import Path

import pytest

from mmdeploy_ext import moved

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('core.unregistered', 'mmdeploy_ext.base.unregistered'),
        ('families.petr.graphs', 'mm2onnx_driving.petr'),
        ('consumers.autoware.streampetr_export', 'mm2onnx_driving.streampetr.autoware'),
        ('cutting.api', 'mmdeploy_ext.proving.parts.proof'),
        ('families.model', 'mmdeploy_ext.families.detector'),
        ('contract.options', 'mmdeploy_ext.spec.options'),
        ('exporting.ops.nms', 'mmdeploy_ext.upstream.operators.nms'),
    ],
)
def test_the_import_of_a_moved_module_says_its_new_name(old, new):
    with pytest.raises(ImportError, match=rf'\b{new}\b'):
        importlib.import_module(f'mmdeploy_ext.{old}')
    home, _, name = old.rpartition('.')
    with pytest.raises(ImportError, match=rf'\b{new}\b'):
        exec(f'from mmdeploy_ext.{home} import {name}')


def test_every_new_name_is_there():
    for old in moved.MOVED:
        name = moved.new_name(f'{moved.PACKAGE}.{old}')
        if name.startswith('mm2onnx_driving'):  # which may not be installed
            path = REPOSITORY / 'projects/driving' / name.replace('.', '/')
            assert path.is_dir() or path.with_suffix('.py').is_file(), name
        else:
            assert '/' in name or importlib.util.find_spec(name) is not None, name


@pytest.mark.parametrize(
    'name', ['models.mmdet', 'families.images', 'families.base', 'families.heads', 'families.regions']
)
def test_names_in_written_configs_and_families_of_other_packages_stay(name):
    assert importlib.import_module(f'mmdeploy_ext.{name}')


def test_what_an_older_mmrotate_package_imports_stays():
    from mmdeploy_ext.families.parts import detector_parts
    from mmdeploy_ext.families.parts.image_graphs import RawNetwork, clip_size

    assert RawNetwork and clip_size and detector_parts
