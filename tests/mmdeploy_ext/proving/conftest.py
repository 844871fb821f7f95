"""What tests of planted faults share: right files of the toys, and the references of their inputs."""

import functools

import pytest

from conditional_faults import SIZES
from mmdeploy_ext.exporting import model as deploy
from mmdeploy_ext.exporting.files import export_files
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.references import references
from remembered import loaded_once
from toy_atss import PICTURE, REPO


@pytest.fixture(scope='module', autouse=True)
def _loaded_once():
    with loaded_once():
        yield


@pytest.fixture(scope='session')
def known(tmp_path_factory):
    """Return family -> (right file, references of its inputs), both made once."""
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    folder, images = tmp_path_factory.mktemp('right'), [('toy.jpg', read_image(PICTURE))]

    @functools.cache
    def make(name, dynamic=True):
        deployment = deploy.load(
            str(REPO / f'configs/demo/{name}_toy.py'), str(REPO / f'demo/checkpoints/{name}_toy.pth')
        )
        deployment.family = deployment.family.plain  # references keep what they gave by themselves
        options = deployment.family.choose(height=SIZES[name][0], width=SIZES[name][1], dynamic=dynamic)
        traced = deploy.prepare_fixed(deployment.rule, images[0][1], options.height, options.width)
        path = str(folder / f'{name}_{dynamic}.onnx')
        export_files(deployment, options, path, [traced])
        return path, references(deployment, options, images)

    return make
