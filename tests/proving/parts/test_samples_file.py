"""Samples of a test path: a file with the keys of the user's pipeline, and what a sample lacks."""

import pytest
from mmcv import Config
from mmdet.datasets.builder import DATASETS, PIPELINES

import toy_atss
import toy_parts
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.cli import export_app
from mmdeploy_ext.proving.parts.export import read_model
from mmdeploy_ext.proving.parts.samples import run_test_path, samples_of, skeleton_of


@PIPELINES.register_module()
class CollectOfCameras:
    def __init__(self, keys, meta_keys=('filename', 'img_shape', 'lidar2img', 'angles')):
        self.keys, self.meta_keys = keys, meta_keys


@DATASETS.register_module()
class DriveOfCameras:
    def get_data_info(self, index):
        info = dict(sample_idx=index, lidar2img=[])
        info['can_bus'] = [0.0] * 18
        return info


def made(text):
    content = {}
    exec(text, content)
    return list(content['make']())


def test_the_file_has_the_keys_of_pipeline_and_data_set():
    crop = dict(type='CropOfCameras', data_aug_conf=dict(final_dim=(256, 704)))
    pipeline = [crop, dict(type='CollectOfCameras', keys=['img', 'depths'])]
    cfg = Config(dict(data=dict(test=dict(type='DriveOfCameras', pipeline=pipeline))))
    sample, *rest = made(skeleton_of(cfg))
    ((meta,),) = sample['img_metas']
    assert set(meta) == {'filename', 'img_shape', 'lidar2img', 'angles', 'sample_idx', 'can_bus'}
    assert sample['img'][0].shape == (1, len(meta['lidar2img']), 3, 256, 704) and 'depths' in sample
    assert len(rest) >= 1  # a proof wants two


def test_the_file_of_a_config_of_pictures_runs(tmp_path, capsys):
    words = [toy_atss.CONFIG, toy_atss.CHECKPOINT, '--parts', 'samples']
    assert export_app.main(words) == 0
    (tmp_path / 'samples.py').write_text(capsys.readouterr().out)
    factory = read_model(*words[:2])
    samples, _ = samples_of(factory.cfg, [f'{tmp_path}/samples.py:make'])
    assert len(run_test_path(factory.make(), samples[0])) == 1


def test_what_a_sample_lacks_is_named_with_the_users_line():
    sample = toy_parts.samples()[0]
    del sample['img_metas'][0]['lidar2img']
    with pytest.raises(ConfigError, match=r'toy_parts\.py:\d+\): matrices = .*img_metas has no lidar2img;'):
        run_test_path(toy_parts.Detector(), sample)
