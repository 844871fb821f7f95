"""Models of pictures of n bands: read, exported, proven and run."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from mmdet.datasets.builder import PIPELINES

from mmdeploy_ext.base.errors import ConfigError, ImageError
from mmdeploy_ext.cli.run_app import main as run_main
from mmdeploy_ext.families import detector as deploy
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.proving.inputs import PictureSamples, read_picture, with_bands, write_array
from mmdeploy_ext.proving.preprocessing import compare_pictures
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.spec.metadata import read_metadata
from proofs import prove_samples
from toy_atss import CHECKPOINT, CONFIG, PICTURE

PIPELINE = 'data.test.pipeline'
NORMALIZE = f'{PIPELINE}.1.transforms.2'
BANDS = {
    'model.backbone.in_channels': 4,
    f'{PIPELINE}.0.color_type': 'unchanged',
    f'{NORMALIZE}.mean': [103.5, 116.3, 123.7, 103.5],
    f'{NORMALIZE}.std': [57.4, 57.1, 58.4, 57.4],
    f'{NORMALIZE}.to_rgb': False,
}


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    """Return the trained toy; the fourth band shares the weights of blue."""
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    content = torch.load(CHECKPOINT, map_location='cpu', weights_only=False)
    red, green, blue = content['state_dict']['backbone.conv1.weight'].unbind(dim=1)
    weights = torch.stack([blue / 2, green, red, blue / 2], dim=1)
    content['state_dict']['backbone.conv1.weight'] = weights
    path = tmp_path_factory.mktemp('bands') / 'bands.pth'
    torch.save(content, path)
    return deploy.load(CONFIG, str(path), BANDS)


@pytest.fixture(scope='module')
def picture(toy):
    return read_picture(DEFAULT_PICTURE, toy.rule)


@pytest.fixture(scope='module')
def bands_file(toy, picture, tmp_path_factory):
    path = str(tmp_path_factory.mktemp('bands') / 'bands.onnx')
    options = toy.family.choose(opset=17, height=128, width=160)
    export_files(toy, options, path, [deploy.prepare_fixed(toy.rule, picture, 128, 160)])
    return path


def test_a_file_of_four_bands_is_proven(toy, picture, bands_file):
    verdict = prove_samples(toy, [bands_file], [('toy', picture)])
    assert verdict.proven, verdict.failures


@PIPELINES.register_module()
class LoadArray:
    """A loader as people write it."""

    def __call__(self, results):
        array = np.load(results['img_info']['filename'])
        results.update(img=array, img_shape=array.shape, ori_shape=array.shape, img_fields=['img'])
        results.update(filename=results['img_info']['filename'], ori_filename='')
        return results


LOADERS = {
    'LoadImageFromFile': dict(color_type='unchanged', to_float32=True),
    'LoadMultiChannelImageFromFiles': {},
    'LoadArray': {},
}


@pytest.mark.parametrize(
    ('loader', 'bands', 'dtype'),
    [
        ('LoadImageFromFile', 3, 'uint16'),
        ('LoadMultiChannelImageFromFiles', 5, 'uint8'),
        ('LoadArray', 6, 'float32'),
        ('LoadArray', 1, 'uint8'),
    ],
)
def test_pictures_of_bands_are_prepared_as_by_the_pipeline(toy, bands_file, loader, bands, dtype):
    cfg = copy.deepcopy(toy.unbuilt_cfg)
    steps = cfg.data.test.pipeline
    steps[1].transforms[2].update(mean=[100.0 + band for band in range(bands)], std=[57.4] * bands)
    following = steps[1:]
    if 'Multi' in loader:  # after which mmdet's Resize takes no scale
        following = [
            {**step, 'flip_ratio': 0.0} if 'Flip' in step.type else step for step in steps[1].transforms
        ]
    cfg.data.test.pipeline = [dict(type=loader, **LOADERS[loader]), *following]
    metadata = read_metadata(bands_file)
    options, rule = dict(metadata.options, dynamic=True), toy.family.preprocess_rule(cfg)
    metadata = dataclasses.replace(metadata, preprocess=rule, options=options)
    picture = with_bands(read_image(PICTURE), bands).astype(dtype)
    result, prepared = compare_pictures(cfg, metadata, [DEFAULT_PICTURE], picture)
    assert result.passed, (result.error, result.differences)
    assert len(prepared) == 3 and {len(one.tensor) for one in prepared} == {bands}


def test_run_finds_in_a_picture_of_four_bands_what_pytorch_finds(toy, picture, bands_file, tmp_path):
    path = write_array(tmp_path / 'four.tiff', picture)
    target = tmp_path / 'found.json'
    assert run_main([bands_file, str(path), '--out', str(tmp_path), '--json', str(target)]) == 0
    found = json.loads(target.read_text())['images'][0]['detections']
    image = deploy.prepare_fixed(toy.rule, read_image(path, 'unchanged'), 128, 160)
    (expected,) = toy.family.reference(toy.model).results([image], rescale=True)
    assert expected.scores[0] > 0.5 and len(found) == len(expected)
    boxes = [one['bbox_xyxy'] for one in found]
    np.testing.assert_allclose(boxes, expected.bboxes_xyxy, atol=1e-2)


def test_another_number_of_bands_is_refused(toy, bands_file, tmp_path, capsys):
    assert run_main([bands_file, str(PICTURE), '--out', str(tmp_path)]) != 0
    assert 'preprocess.mean' in capsys.readouterr().err
    with pytest.raises(ImageError, match='mean of Normalize'):
        PictureSamples(toy, [str(PICTURE)])


@pytest.mark.parametrize(
    ('changes', 'key'),
    [
        ({f'{NORMALIZE}.to_rgb': True}, 'to_rgb'),
        ({f'{NORMALIZE}.std': [1.0, 1.0, 1.0]}, 'std'),
        ({'model.backbone.in_channels': 5}, r'backbone\.conv1'),
    ],
)
def test_configs_with_another_number_of_bands_are_refused(changes, key):
    model = deploy.read_config(CONFIG, cfg_options={**BANDS, **changes})
    with pytest.raises(ConfigError, match=key):
        deploy.build(model)
        deploy.check_picture_options(model.family.choose(), model.unbuilt_cfg, model.family, model.model)
