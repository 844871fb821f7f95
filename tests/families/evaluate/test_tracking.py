"""Tracks by nuScenes-devkit's own evaluator, on generated scenes whose true tracks are known."""

import numpy as np
import pytest
import torch

import toy_nuscenes
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.families.evaluate import evaluation
from toy_atss import REPO

CONFIG = str(REPO / 'projects/configs/BEVFusion/centerpoint_toy.py')
FRAMES = 5
NAMES = ('bicycle', 'bus', 'car', 'motorcycle', 'pedestrian', 'trailer', 'truck')
"""Classes that nuScenes tracks."""


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    root = toy_nuscenes.write(folder, val_scenes=2, frames=FRAMES, image_size=(32, 32), sweeps=0)
    infos = f'{root}/toy_nuscenes_infos_val.pkl'
    cfg = load_config(CONFIG, {'data.test.ann_file': infos, 'data.test.data_root': f'{root}/'})
    return evaluation.build_dataset(cfg)


@pytest.fixture(scope='module')
def instances(dataset):
    """The number of the object of each box, info by info."""
    from nuscenes.nuscenes import NuScenes

    nusc = NuScenes(dataset.version, dataset.data_root, verbose=False)
    numbers = {}
    for info in dataset.data_infos:
        for token in nusc.get('sample', info['token'])['anns']:
            numbers.setdefault(nusc.get('sample_annotation', token)['instance_token'], len(numbers))
    return [
        np.array(
            [
                numbers[nusc.get('sample_annotation', token)['instance_token']]
                for token in nusc.get('sample', info['token'])['anns']
            ]
        )
        for info in dataset.data_infos
    ]


def truth(dataset, instances):
    """Return the annotations as results, best first."""
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    results = []
    for info, ids in zip(dataset.data_infos, instances, strict=True):
        boxes = np.concatenate([info['gt_boxes'], np.nan_to_num(info['gt_velocity'])], 1).astype(np.float32)
        labels = [dataset.CLASSES.index(name) for name in info['gt_names']]
        rows = dict(
            boxes_3d=LiDARInstance3DBoxes(torch.from_numpy(boxes), box_dim=9, origin=(0.5, 0.5, 0.5)),
            scores_3d=torch.linspace(0.9, 0.5, len(ids)),
            labels_3d=torch.tensor(labels),
            instance_ids=torch.from_numpy(ids),
        )
        results.append(dict(pts_bbox=rows))
    return results


def test_true_tracks_have_an_amota_of_one_beside_the_metrics_of_boxes(dataset, instances):
    pytest.importorskip('motmetrics', reason='optional: pip install motmetrics')
    cfg = load_config(CONFIG)
    values = evaluation.evaluate(cfg, dataset, truth(dataset, instances), ['bbox', 'tracking'])
    assert values['tracking/amota'] > 0.999
    assert values['tracking/mota'] > 0.999
    assert values['tracking/amotp'] < 1e-4
    assert values['pts_bbox_NuScenes/mAP'] > 0.99


def test_exchanged_ids_cost_amota_though_every_box_is_right(dataset, instances):
    pytest.importorskip('motmetrics', reason='optional: pip install motmetrics')
    exchanged = [ids[::-1].copy() if index % 3 == 0 else ids for index, ids in enumerate(instances)]
    values = evaluation.evaluate(load_config(CONFIG), dataset, truth(dataset, exchanged), ['tracking'])
    assert set(values) == {f'tracking/{name}' for name in evaluation.RATES}
    assert values['tracking/amota'] < 0.9


def test_boxes_without_id_below_the_threshold_or_of_other_classes_take_no_part(dataset, instances):
    results = truth(dataset, instances)
    rows = results[0]['pts_bbox']
    count = len(rows['scores_3d'])
    tracked = [dataset.CLASSES[label] in NAMES for label in rows['labels_3d'].tolist()]
    every = evaluation.track_entries(dataset, results)
    first = dataset.data_infos[0]['token']
    assert len(every[first]) == sum(tracked)
    assert set(every) == {info['token'] for info in dataset.data_infos}
    row = tracked.index(True)
    rows['instance_ids'] = rows['instance_ids'].clone()
    rows['instance_ids'][row] = -1
    assert len(evaluation.track_entries(dataset, results)[first]) == sum(tracked) - 1
    # the scores without centerness decide where there are some: row by row, whatever they belong to
    rows['cls_scores'] = torch.full((count,), 0.2)
    assert len(evaluation.track_entries(dataset, results)[first]) == sum(tracked) - 1
    rows['cls_scores'] = torch.full((count,), 0.1999)
    assert evaluation.track_entries(dataset, results)[first] == []
    dataset.tracking_threshold = 0.1
    try:
        assert len(evaluation.track_entries(dataset, results)[first]) == sum(tracked) - 1
    finally:
        del dataset.tracking_threshold


def test_an_entry_is_the_annotation_itself_in_the_map(dataset, instances):
    from nuscenes.nuscenes import NuScenes

    nusc = NuScenes(dataset.version, dataset.data_root, verbose=False)
    entries = evaluation.track_entries(dataset, truth(dataset, instances))
    info = dataset.data_infos[3]
    records = [nusc.get('sample_annotation', token) for token in nusc.get('sample', info['token'])['anns']]
    records = [
        (record, number)
        for record, number in zip(records, instances[3], strict=True)
        if any(
            name in record['category_name']
            for name in ('bicycle', 'bus', 'car', 'motor', 'adult', 'trail', 'truck')
        )
    ]
    for entry, (record, number) in zip(entries[info['token']], records, strict=True):
        np.testing.assert_allclose(entry['translation'], record['translation'], rtol=0, atol=1e-4)
        np.testing.assert_allclose(entry['size'], record['size'], rtol=0, atol=1e-5)
        assert entry['tracking_id'] == str(number)


def test_results_without_ids_are_refused(dataset, instances):
    results = truth(dataset, instances)
    del results[2]['pts_bbox']['instance_ids']
    with pytest.raises(DataError, match='track ids'):
        evaluation.track_entries(dataset, results)
