"""The wheel: it is built without a network, and holds all of the package."""

import subprocess
import sys
import zipfile
from pathlib import Path

import installed_wheel

FOLDER = installed_wheel.REPOSITORY / 'mmdeploy_ext'
LEFT_OUT = '.md'
"""End of files that only a checkout has, besides caches of Python and numba."""


def test_the_wheel_has_every_file_of_the_package_and_runs(tmp_path):
    wheel = installed_wheel.build_wheel(tmp_path)
    expected = {
        path.relative_to(FOLDER.parent).as_posix()
        for path in FOLDER.rglob('*')
        if path.is_file() and path.suffix != LEFT_OUT and '__pycache__' not in path.parts
    }
    version = wheel.name.split('-')[1]
    expected |= {
        f'mm2onnx-{version}.data/data/{folder}/{Path(file).name}'
        for folder, files in installed_wheel.data_files().items()
        for file in files
    }
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if '.dist-info/' not in name} == expected
        archive.extractall(tmp_path / 'site')
    code = 'import mmdeploy_ext, mmdeploy_ext.cli.command; print(mmdeploy_ext.__file__)'
    words = [sys.executable, '-c', f'import sys; sys.path.insert(0, {str(tmp_path / "site")!r}); {code}']
    imported = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == str(tmp_path / 'site/mmdeploy_ext/__init__.py')
