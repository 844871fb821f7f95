"""The versions of the packages that decide about an exported file. Imports none of them.

They build a model, or write, simplify or run its graph. The distribution `mm2onnx` installs `mmdeploy_ext`.
"""

import contextlib
import importlib.metadata
import json
import sys
import urllib.parse
from pathlib import Path

import mmdeploy_ext

PACKAGES = {
    'torch': 'torch',
    'mmcv-full': 'mmcv',
    'mmdet': 'mmdet',
    'mmdet3d': 'mmdet3d',
    'onnx': 'onnx',
    'onnxruntime': 'onnxruntime',
    'onnxslim': 'onnxslim',
}
"""Distribution -> the module that it installs."""


def versions() -> dict[str, str]:
    """Return 'mm2onnx' and each distribution of `PACKAGES` that is imported or installed -> its version.

    That of an imported module is its own: another copy than the installed one may have been imported.
    Packages that are neither imported nor installed have no entry.
    """
    by_package = {'mm2onnx': mmdeploy_ext.__version__}
    for package, module in PACKAGES.items():
        version = getattr(sys.modules.get(module), '__version__', None)
        if version is None and (distribution := _distribution(package)) is not None:
            version = distribution.version
        if version is not None:
            by_package[package] = str(version)
    return by_package


def other_copies() -> dict[str, str]:
    """Return distribution -> folder of its module, if one is imported that is not of the installed one.

    The checkout of an editable install is the installed one, also of one by a link (`.egg-link`). A module
    that is imported without any installed distribution is listed.
    """
    folders = {}
    for package, module in PACKAGES.items():
        file = getattr(sys.modules.get(module), '__file__', None)
        if file is None:
            continue
        folder, distribution = Path(file).resolve().parent, _distribution(package)
        if distribution is None or folder not in _possible_folders(distribution, module):
            folders[package] = str(folder)
    return folders


def versions_with_places() -> dict[str, str]:
    """Return `versions`; behind the version of a module of `other_copies` stands its folder in brackets."""
    folders = other_copies()
    return {
        package: f'{version} ({folders[package]})' if package in folders else version
        for package, version in versions().items()
    }


def _distribution(package: str) -> importlib.metadata.Distribution | None:
    """Return the distribution of a package, which may have the name of its module: mmcv with operators."""
    for name in (package, PACKAGES[package]):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.distribution(name)
    return None


def _possible_folders(distribution: importlib.metadata.Distribution, module: str) -> list[Path]:
    """Return the folders that may hold a module of a distribution; an editable one is in its checkout."""
    folders = [Path(str(distribution.locate_file(module)))]
    origin = json.loads(distribution.read_text('direct_url.json') or '{}')
    if origin.get('dir_info', {}).get('editable'):
        checkout = Path(urllib.parse.unquote(urllib.parse.urlparse(origin['url']).path))
        folders += [checkout / module, checkout / 'src' / module]
    return [folder.resolve() for folder in folders]
