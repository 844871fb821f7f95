"""The test loader: a sample is the same one, whatever its pipeline draws and whoever reads it."""

import json
import os
import random
import signal
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mmcv import Config
from mmdet.datasets import CocoDataset

from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.families.evaluate.evaluation import (
    build_dataset,
    build_loader,
    check_evaluation,
    evaluate,
    settings_text,
)
from mmdeploy_ext.families.evaluate.loop import Network, run_dataset
from toy_atss import CONFIG


class Drawing:
    """A data set whose pipeline draws, as mmdet3d's choice of past sweeps does."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return dict(img=np.float64([index, np.random.rand(), random.random()]))


def read(indices, workers):
    batches = build_loader(Drawing(), indices, workers_per_gpu=workers)
    return {int(batch['img'][0][0]): batch['img'][0].tolist() for batch in batches}


def test_what_a_pipeline_draws_follows_from_the_sample_alone():
    whole = read(range(6), 0)
    assert len({tuple(row) for row in whole.values()}) == 6 and whole[1][1] != whole[2][1]
    assert read([4, 1], 0) == {index: whole[index] for index in (4, 1)}
    assert read(range(6), 2) == whole


def test_a_metric_that_coco_has_not_is_refused_before_there_are_results(monkeypatch):
    monkeypatch.setattr(CocoDataset, '__init__', lambda self: None)
    monkeypatch.setattr(CocoDataset, '__len__', lambda self: 3)
    dataset = CocoDataset()
    dataset.coco, dataset.CLASSES = Mock(), ()
    cfg = Mock(filename='x.py')
    check_evaluation(cfg, dataset, ['bbox', 'segm'])
    with pytest.raises(ConfigError, match=r'x\.py: --eval bbox boox: metric boox is not supported'):
        check_evaluation(cfg, dataset, ['bbox', 'boox'])


def test_options_of_the_command_go_before_those_of_the_config_without_the_keys_of_the_hook():
    asked = []

    class Judge:
        def evaluate(self, results, **settings):
            asked.append(settings)
            return dict(bbox_mAP=np.float32(0.5), table='| bbox |')

    cfg = dict(evaluation=dict(interval=2, tmpdir='t', metric='segm', classwise=True, iou_thrs=[0.5]))
    options = dict(iou_thrs=[0.6], jsonfile_prefix='x')
    assert evaluate(cfg, Judge(), [], ['segm', 'bbox'], options) == dict(bbox_mAP=0.5)
    assert asked == [dict(options, classwise=True, metric=['segm', 'bbox'])]
    text = settings_text(cfg, ['segm', 'bbox'], options)
    assert json.loads(text) == dict(iou_thrs=[0.6], metric=['bbox', 'segm'])


@pytest.mark.parametrize(('one_by_one', 'sizes'), [(False, [4, 2]), (True, [1] * 6)])
def test_batches_are_those_of_the_config_and_results_have_to_be_finite(one_by_one, sizes):
    scores, found = torch.arange(6.0), []

    class Scores(Network):
        def run(self, data, indices):
            found.append(len(indices))
            return [dict(pts_bbox=dict(scores_3d=scores[index : index + 1])) for index in indices]

    Scores.one_by_one = one_by_one
    cfg = Config(dict(data=dict(workers_per_gpu=0, test_dataloader=dict(samples_per_gpu=4))))
    results = run_dataset(Scores(), cfg, Drawing())
    assert found == sizes and [float(one['pts_bbox']['scores_3d']) for one in results] == scores.tolist()
    scores[3] = torch.nan
    with pytest.raises(DataError, match='sample 3'):
        run_dataset(Scores(), cfg, Drawing())


@pytest.mark.parametrize('in_section', [True, False])
def test_a_list_of_data_sets_is_joined_and_images_of_a_batch_are_padded(tmp_path, in_section):
    from mmdeploy_ext.families.synthetic.coco import ensure_toy_coco
    from mmdeploy_ext.proving.inputs import data_set_pictures

    ensure_toy_coco(tmp_path, train_images=1, val_images=5)  # the last one has another size
    shapes = []

    class Shapes(Network):
        def run(self, data, indices):
            shapes.append(tuple(data['img'][0].data[0].shape))
            return [np.zeros((0, 5))] * len(indices)

    cfg = load_config(CONFIG)
    test = cfg.data.test
    test.ann_file, test.img_prefix = f'{tmp_path}/annotations/instances_val2017.json', f'{tmp_path}/val2017/'
    cfg.data.test, cfg.data.workers_per_gpu = [test, {**test}], 0
    (test if in_section else cfg.data.setdefault('test_dataloader', test.__class__()))['samples_per_gpu'] = 5
    dataset = build_dataset(cfg)
    assert len(run_dataset(Shapes(), cfg, dataset)) == len(dataset) == 10
    assert shapes == [(5, 3, 256, 320)] * 2
    files = data_set_pictures(cfg)[1]
    assert len(files) == 3 and files[0].is_file()
    cfg.data.test = dict(type='RepeatDataset', times=2, dataset=test)
    with pytest.raises(ConfigError, match='RepeatDataset'):
        check_evaluation(cfg, build_dataset(cfg), ['bbox'])


class Killed(Drawing):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_loader_is_one_error_with_what_to_do():
    cfg = Config(dict(data=dict(workers_per_gpu=1)))
    with pytest.raises(DataError, match='workers_per_gpu=0'):
        run_dataset(Mock(spec=Network, one_by_one=True, start=lambda _: None), cfg, Killed())
