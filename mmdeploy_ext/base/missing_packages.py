"""Packages that a user's modules import and that are not installed, with the arguments of `pip install`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ON_PYPI = {
    'IPython': 'ipython',
    'PIL': 'pillow',
    'Polygon': 'Polygon3',
    'aitodpycocotools': 'git+https://github.com/jwwangchn/cocoapi-aitod#subdirectory=aitodpycocotools',
    'clip': 'git+https://github.com/openai/CLIP',
    'cv2': 'opencv-python-headless',
    'detectron2': 'git+https://github.com/facebookresearch/detectron2',
    'flash_attn': 'flash-attn',
    'google': 'protobuf',
    'lyft_dataset_sdk': '--no-deps lyft_dataset_sdk',
    'mmcls': 'mmcls<1',
    'nuscenes': 'nuscenes-devkit',
    'osgeo': 'gdal',
    'panopticapi': 'git+https://github.com/cocodataset/panopticapi.git',
    'pytorch_lightning': 'pytorch-lightning',
    'skimage': 'scikit-image',
    'sklearn': 'scikit-learn',
    'torch_scatter': 'torch-scatter',
    'upath': 'universal_pathlib',
    'yaml': 'pyyaml',
}
"""Import name -> argument of `pip install`, where the two differ."""
SAME_ON_PYPI = (
    'addict albumentations av2 casadi einops fairscale filterpy fvcore h5py imageio imgaug ipdb kornia lap '
    'lmdb lvis matplotlib motmetrics natten nncf numba onnx onnxruntime open3d openvino pandas plyfile '
    'prettytable pycocotools pyquaternion pytorchcv requests scipy seaborn shapely spconv tensorboard '
    'tensorboardX terminaltables thop timm torchmetrics tqdm transformers trimesh wandb xformers yapf'
)
"""Packages whose name on PyPI is known to be the same project."""


def pip_install(argument: str) -> str:
    return f'{sys.executable} -m pip install {argument}'


def not_installed(package: str, file: str) -> str:
    """Return that a package that a file of the user's imports is missing, and what to do.

    A package that the repository builds is the folder of its setup.py.
    """
    for folder in Path(file).resolve().parents[:3]:
        setup = folder / 'setup.py'
        if setup.is_file() and re.search(
            rf'name=[\'"]{package}[\'"]', setup.read_text(encoding='utf-8', errors='replace')
        ):
            return f'{package} is not installed: {pip_install(str(folder))}'
    if package in ON_PYPI or package in SAME_ON_PYPI.split():
        return f'{package} is not installed: {pip_install(ON_PYPI.get(package, package))}'
    return f'{package} is not installed, and PyPI is not known to have it: see the repository'
