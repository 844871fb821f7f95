"""The test loader: a sample is the same one, whatever its pipeline draws and whoever reads it."""

import inspect
import random
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from mmcv.runner import DistEvalHook
from mmcv.utils import Config
from mmdet.datasets import DATASETS, CocoDataset

from mmdeploy_ext.core.errors import ConfigError, DataError
from mmdeploy_ext.evaluate.evaluation import build_dataset, build_loader, check_evaluation, evaluate


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


class Evaluated:
    """A data set whose evaluator gives numbers of several types, and text."""

    def evaluate(self, results, metric):
        return dict(mAP=0.5, recall=np.float32(0.25), count=np.int64(3), table='a | b')


def test_what_a_config_states_for_the_hook_of_a_training_does_not_reach_the_evaluator():
    hook = inspect.signature(DistEvalHook.__init__).parameters.values()
    keys = [parameter.name for parameter in hook if parameter.default is not parameter.empty]
    assert {'by_epoch', 'broadcast_bn_buffer'} < set(keys)
    cfg = Config(dict(evaluation={key: None for key in keys if key != 'out_dir'}))
    assert evaluate(cfg, Evaluated(), [], ['bbox'])['mAP'] == 0.5


class Folder:
    """A data set of a package from outside, whose annotations are a folder of files."""

    def __init__(self, ann_file, test_mode):
        self.files = sorted(path.name for path in Path(ann_file).iterdir())

    def __len__(self):
        return len(self.files)


def test_annotations_may_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS.module_dict, 'Folder', Folder)
    (tmp_path / 'one.txt').touch()

    def config(folder):
        return Config(dict(data=dict(test=dict(type='Folder', ann_file=str(folder)))))

    assert build_dataset(config(tmp_path)).files == ['one.txt']
    with pytest.raises(DataError, match=r'ann_file=.*none: no such file or folder'):
        build_dataset(config(tmp_path / 'none'))
