"""Files of seeded toys of the rest of the zoo are proven."""

import functools

import pytest

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
import toy_corner
import toy_query
import toy_two_stage
from marking import in_suite
from mmdeploy_ext.core.config import without_augmentation
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.seeded.weights import write_seeded
from toy_atss import PICTURE

SIZE = (128, 192)
IMAGES = [('toy.jpg', read_image(PICTURE)[: SIZE[0], : SIZE[1]])]
TOYS = dict(
    plain=toy_query.toy,
    panoptic=toy_query.toy,
    maskformer=toy_query.toy,
    fused=lambda kind: toy_two_stage.toy('panoptic'),
    corner=toy_corner.toy,
    judged=toy_two_stage.toy,
    points=toy_two_stage.toy,
)
"""Kind -> what gives its config."""


@pytest.fixture(scope='module')
def deployment_of(tmp_path_factory):
    """Return kind -> its toy with seeded weights, written once."""

    @functools.cache
    def load(kind):
        folder = tmp_path_factory.mktemp(kind)
        cfg = TOYS[kind](kind)
        without_augmentation(cfg)
        for step in cfg.data.test.pipeline:
            if 'img_scale' in step:
                step['img_scale'] = SIZE[::-1]
        config = toy_two_stage.write_config(cfg, folder / 'm.py')
        write_seeded(config, folder / 'm.pth')
        return deploy.load(config, str(folder / 'm.pth'))

    return load


def verdict_of(deployment, path):
    """Return the verdict on a file that is exported by the code as it is now, any size and batch."""
    options = deployment.family.choose(height=SIZE[0], width=SIZE[1], opset=17, dynamic=True)
    picture = deploy.prepare_fixed(deployment.rule, IMAGES[0][1], *SIZE)
    export_files(deployment, options, str(path), [picture])
    return prove(deployment, str(path), IMAGES, timed=False)[0]


@pytest.mark.parametrize('kind', in_suite(TOYS, 'plain'))
def test_a_file_is_proven(kind, deployment_of, tmp_path):
    verdict = verdict_of(deployment_of(kind), tmp_path / 'm.onnx')
    assert verdict.passed, verdict.failures
