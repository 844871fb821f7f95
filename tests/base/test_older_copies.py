"""A repository's own mmdet3d before 1.0 runs for models that the installed one lacks."""

import subprocess
import sys

import pytest

from mmdeploy_ext.base.user_modules import has_own_models
from toy_atss import REPO

OWN = """from mmdet.models.builder import DETECTORS
from torch import nn


@DETECTORS.register_module()
class SparseOwnNet(nn.Module):
    pass
"""


def repository(folder, version, kind):
    (folder / 'mmdet3d/models').mkdir(parents=True)
    (folder / 'mmdet3d/version.py').write_text(f"__version__ = '{version}'\n")
    (folder / 'mmdet3d/__init__.py').write_text(
        'import mmcv\nfrom .version import __version__\n'
        "mmcv_maximum_version = '1.4.0'\n"
        'numbers = [int(part) for part in mmcv.__version__.split(".")]\n'
        'assert numbers <= [int(part) for part in mmcv_maximum_version.split(".")]\n'
    )
    (folder / 'mmdet3d/models/__init__.py').write_text(OWN)
    (folder / 'own.py').write_text(f'model = dict(type={kind!r})\n')


@pytest.mark.parametrize(
    ('version', 'kind', 'expected'),
    [('0.15.0', 'SparseOwnNet', True), ('0.7.0', 'SparseOwnNet', False), ('0.15.0', 'CenterPoint', False)],
)
def test_a_copy_runs_only_for_models_that_the_installed_one_lacks(version, kind, expected, tmp_path):
    pytest.importorskip('mmdet3d')
    repository(tmp_path, version, kind)
    assert has_own_models(tmp_path, 'mmdet3d', lambda: [kind]) == expected


@pytest.mark.matrix
def test_check_reads_the_copy_and_names_parts(tmp_path):
    repository(tmp_path, '0.15.0', 'SparseOwnNet')
    words = [sys.executable, '-m', 'mmdeploy_ext', 'export', 'own.py', 'absent.pth']
    process = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, env={'PYTHONPATH': str(REPO)}
    )
    assert process.returncode == 2 and 'Traceback' not in process.stderr
    assert 'own mmdet3d 0.15.0 runs' in process.stderr and '--parts list' in process.stderr
