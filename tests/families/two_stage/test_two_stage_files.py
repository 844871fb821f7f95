"""Files of Mask R-CNN, of each form, through the whole proof."""

import pytest

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from marking import in_suite
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.proving.proof import open_file
from mmdeploy_ext.seeded.weights import write_seeded
from toy_atss import PICTURE, REPO
from toy_two_stage import toy, write_config

SIZE = (128, 192)
IMAGES = [('toy.jpg', read_image(PICTURE)[: SIZE[0], : SIZE[1]])]


def exported(config, folder, form):
    write_seeded(config, folder / 'm.pth')
    own_size = {'data.test.pipeline.1.img_scale': SIZE[::-1], 'model.test_cfg.rcnn.max_per_img': 20}
    deployment = deploy.load(config, str(folder / 'm.pth'), own_size)
    options = deployment.family.choose(form=form, opset=17, height=SIZE[0], width=SIZE[1])
    picture = deploy.prepare_fixed(deployment.rule, IMAGES[0][1], *SIZE)
    export_files(deployment, options, str(folder / 'm.onnx'), [picture])
    return deployment, str(folder / 'm.onnx')


@pytest.mark.parametrize('form', in_suite(['full', 'regions', 'proposals'], 'full'))
def test_a_file_is_proven(form, tmp_path):
    deployment, path = exported(f'{REPO}/configs/demo/mask_rcnn_toy.py', tmp_path, form)
    verdict, _ = prove(deployment, path, IMAGES, timed=False)
    assert verdict.proven, verdict.failures


@pytest.mark.matrix
def test_a_size_that_no_box_is_clipped_to_is_an_input_of_no_use(tmp_path):
    cfg = toy('faster')
    for head in (cfg.model.rpn_head, cfg.model.roi_head.bbox_head):
        head.bbox_coder.clip_border = False
    deployment, path = exported(write_config(cfg, tmp_path / 'm.py'), tmp_path, 'full')
    assert prove(deployment, path, IMAGES, timed=False)[0].proven
    assert open_file(path).metadata.spec.tensor('img_shape').unused
