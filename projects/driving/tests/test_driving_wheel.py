"""The wheel of the driving systems has every module of its package, and none of mm2onnx or its tests."""

import email
import shutil
import zipfile

from packaging.requirements import Requirement

import installed_wheel
from mmdeploy_ext import __version__

FOLDER = installed_wheel.REPOSITORY / 'projects/driving'
LEFT_OUT = ('.md', '.pyc')
"""Ends of files that only a checkout has."""


def test_the_wheel_has_every_file_of_the_package_and_asks_for_mm2onnx_of_its_version(tmp_path):
    ignored = shutil.ignore_patterns('__pycache__', '*.egg-info', 'tests')
    shutil.copytree(FOLDER, tmp_path / 'source', ignore=ignored)
    installed_wheel.pip('wheel', '--no-deps', '--no-build-isolation', '-w', tmp_path, tmp_path / 'source')
    (wheel,) = tmp_path.glob('*.whl')
    expected = {
        path.relative_to(FOLDER).as_posix()
        for path in (FOLDER / 'mm2onnx_driving').rglob('*')
        if path.is_file() and not path.name.endswith(LEFT_OUT)
    }
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if '.dist-info/' not in name} == expected
        (metadata,) = (name for name in archive.namelist() if name.endswith('/METADATA'))
        fields = email.message_from_bytes(archive.read(metadata))
    (requirement,) = map(Requirement, fields.get_all('Requires-Dist'))
    assert requirement.name == 'mm2onnx' and __version__ in requirement.specifier
    assert fields['Version'] == __version__
