"""onnxruntime-web from npm: downloaded once, compared with its hash, unpacked beside a page."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from mmdeploy_ext.base.errors import DataError, UsageError, one_line

NAME, VERSION = 'onnxruntime-web', '1.30.0'
INTEGRITY = 'sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='
"""SHA-512 in base64, as in npm's lock files."""
LOADERS = {
    'ort.wasm.bundle.min.mjs': 'ort-wasm-simd-threaded.wasm',
    'ort.webgpu.bundle.min.mjs': 'ort-wasm-simd-threaded.asyncify.wasm',
}
"""Script that a page imports -> its WebAssembly, without and with WebGPU."""
LICENCES = ('LICENSE', 'ThirdPartyNotices.txt')
"""Taken from the Python package onnxruntime, same sources; npm's package has no licence file."""
SECONDS = 600
"""Time limit of the download of 33 MB."""


def cache_folder() -> Path:
    """`mm2onnx/npm` in the user's cache."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mm2onnx/npm'


def package() -> Path:
    """Path of the package in the cache, downloaded if needed."""
    path = cache_folder() / f'{NAME}-{VERSION}.tgz'
    if not path.is_file():
        _download(path)
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if f'sha512-{digest}' != INTEGRITY:
        raise DataError(f'{path}: got sha512-{digest}, expected {INTEGRITY}; remove the file and try again')
    return path


def _download(path: Path) -> None:
    by_hand = f'or run `npm pack {NAME}@{VERSION}` on another machine and copy its file to {path.parent}'
    npm = shutil.which('npm')
    if npm is None:
        raise UsageError(
            f'{NAME} {VERSION} is not in {path.parent}, and npm, which downloads it, is not installed: '
            f'install Node.js (on Debian: apt install npm), {by_hand}'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.npm') as folder:
        command = [npm, 'pack', '--ignore-scripts', '--silent', f'{NAME}@{VERSION}']
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            reason = one_line(error.stderr or '')[:300] or error
            raise UsageError(
                f'npm pack {NAME}@{VERSION} failed: {reason}; check the registry with npm ping and try '
                f'again, {by_hand}'
            ) from error
        os.replace(Path(folder, path.name), path)


def unpack(folder: Path) -> None:
    """Write `LOADERS`, their WebAssembly and `LICENCES` into a folder."""
    import onnxruntime  # of any of its distributions

    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(package()) as archive:
        for name in (*LOADERS, *LOADERS.values()):
            content = archive.extractfile(f'package/dist/{name}')
            (folder / name).write_bytes(content.read())
    for name in LICENCES:
        shutil.copyfile(Path(onnxruntime.__file__).with_name(name), folder / name)
