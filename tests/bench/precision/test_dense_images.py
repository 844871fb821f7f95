"""Images to calibrate on: folders, COCO annotations, and what is refused by name."""

import dataclasses
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from mmdeploy_ext.base.errors import DataError, ModelFileError, UsageError
from mmdeploy_ext.bench.precision.calibration_sets import (
    calibration_images,
    calibration_set,
    evenly,
    image_files,
)
from mmdeploy_ext.runtime.detect import prepare
from mmdeploy_ext.spec.metadata import read_metadata
from mmdeploy_ext.spec.tensors import TensorSpec
from toy_atss import PICTURE, REPO


@pytest.fixture
def coco(tmp_path):
    """Write three images in mmdet's layout; returns the annotations."""
    picture = np.full((40, 60, 3), 90, np.uint8)
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'val2017').mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / f'val2017/{number}.png'), picture)
    target = tmp_path / 'annotations/instances_val2017.json'
    target.write_text(json.dumps({'images': [{'file_name': f'{number}.png'} for number in range(3)]}))
    return target


def test_annotations_find_their_images_in_mmdets_layout_and_below_a_root(coco, tmp_path):
    expected = [tmp_path / f'val2017/{number}.png' for number in range(3)]
    assert image_files(coco) == expected
    moved = (tmp_path / 'val2017').rename(tmp_path / 'elsewhere')
    with pytest.raises(DataError, match=r'3.*3.*--data-root'):
        image_files(coco)
    assert image_files(coco, moved) == [moved / path.name for path in expected]


def test_images_are_prepared_as_the_runners_do(tmp_path):
    metadata = read_metadata(str(REPO / 'demo/atss_toy.onnx'))
    feeds = next(iter(calibration_images(metadata, [PICTURE])))
    assert feeds.keys() == set(metadata.spec.input_names)
    expected = prepare(metadata, cv2.imread(str(PICTURE))).tensor
    np.testing.assert_array_equal(feeds['input'][0], expected)


def test_a_limit_takes_images_evenly():
    assert evenly(list(range(10)), 4) == [0, 3, 6, 9]
    assert evenly(list(range(3)), 4) == evenly(list(range(3)), 0) == [0, 1, 2]


@pytest.mark.parametrize('content', [[], dict(images=[]), dict(images=5), dict(images=[dict(file_name=3)])])
def test_annotations_without_images_are_refused(content, tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"a\.json: .*COCO's format"):
        image_files(path)


def test_a_graph_that_images_cannot_fill_and_a_root_without_annotations_are_refused():
    path = REPO / 'demo/atss_toy.onnx'
    metadata = read_metadata(str(path))
    with pytest.raises(UsageError, match='--data-root'):
        calibration_set(path, metadata, PICTURE, REPO, 0)
    with pytest.raises(ModelFileError, match="'petr'"):
        calibration_images(SimpleNamespace(family='petr', preprocess=None), [])
    inputs = *metadata.spec.inputs, TensorSpec('memory', 'float32', (1, 4))
    spec = dataclasses.replace(metadata.spec, inputs=inputs)
    with pytest.raises(ModelFileError, match="'memory'"):
        calibration_images(dataclasses.replace(metadata, spec=spec), [])
