"""The test loader: a sample is the same one, whatever its pipeline draws and whoever reads it."""

import random
from unittest.mock import Mock

import numpy as np
import pytest
from mmdet.datasets import CocoDataset

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.evaluate.evaluation import build_loader, check_evaluation


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
