"""The versions of the packages that decide about an exported file. Imports none of them."""

import contextlib
import importlib.metadata

import mmdeploy_ext

PACKAGES = ('torch', 'mmcv-full', 'mmdet', 'mmdet3d', 'onnx', 'onnxruntime', 'onnxslim')


def versions() -> dict[str, str]:
    """Return the version of this project and of every package of `PACKAGES` that is installed."""
    found = {'mm2onnx': mmdeploy_ext.__version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
