"""Networks of the data-set loop: dumps of batches that a family splits, parts that do not make a data set."""

import contextlib
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmdeploy_ext.base.distributed import Ranks
from mmdeploy_ext.base.dump import DumpWriter, load_dump
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.bench.kinds.images import Images
from mmdeploy_ext.families.evaluate.detector import BackendDetector, TorchDetector
from mmdeploy_ext.families.evaluate.loop import collect
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.runtime.detections import Detections, Scored
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec

SPEC = GraphSpec(
    'echo',
    (TensorSpec('input', 'float32', ('B', 3, 'H', 'W')),),
    (TensorSpec('first', 'float32', ('B',)),),
)


class Echo:
    """A family that takes the middle image of a batch alone, and a backend that gives the first pixels."""

    spec = SPEC

    def feeds(self, images, rescale):
        return dict(input=np.stack([image.tensor for image in images]))

    def infer(self, feeds):
        return dict(first=feeds['input'][:, 0, 0, 0])


def boxes_of(family, metadata, outputs, feeds):
    return [
        Detections(np.full((1, 4), value, np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
        for value in outputs['first']
    ]


@pytest.fixture(autouse=True)
def runtime(monkeypatch):
    monkeypatch.setattr('mmdeploy_ext.families.evaluate.detector.results_of', boxes_of)
    monkeypatch.setattr(
        'mmdeploy_ext.families.evaluate.detector.batches', lambda family, images: [[0, 2], [1]]
    )


def batch(views=1):
    images = torch.arange(3, dtype=torch.float32)[:, None, None, None].expand(3, 3, 2, 2) + 10
    meta = dict(img_shape=(2, 2, 3), ori_shape=(2, 2, 3), scale_factor=1.0)
    return dict(img=[images] * views, img_metas=[[meta] * 3] * views)


def detector(tmp_path):
    metadata = SimpleNamespace(spec=SPEC, classes=('thing',), family='echo')
    return BackendDetector(Echo(), Echo(), metadata, DumpWriter(tmp_path, {}, [4, 5]))


def test_results_and_dumps_of_a_split_batch_are_those_of_their_samples(tmp_path):
    found = detector(tmp_path).run(batch(), [3, 4, 5])
    assert [result[0][0, 0] for result in found] == [10, 11, 12]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['000004', '000005']
    assert [load_dump(tmp_path / f'00000{index}')[0]['first'] for index in (4, 5)] == [[11], [12]]


def test_the_border_of_a_padded_picture_reaches_the_family():
    borders = []

    class Bordered(Echo):
        def feeds(self, images, rescale):
            borders.extend(image.border for image in images)
            return super().feeds(images, rescale)

    data = batch()
    for meta in data['img_metas'][0]:
        meta['border'] = [4, 6, 8, 12]  # top, bottom, left, right of mmdet's RandomCenterCropPad
    metadata = SimpleNamespace(spec=SPEC, classes=('thing',), family='echo')
    BackendDetector(Echo(), Bordered(), metadata).run(data, [0, 1, 2])
    assert borders == [(4, 8)] * 3


def test_results_in_pytorch_are_those_of_the_models_own_test_path_and_tensors_those_of_the_stages(tmp_path):
    class Tested(ImageReference):
        def results(self, images, rescale):
            assert rescale and all(image.collected['scale_factor'] == 1 for image in images)
            return boxes_of('', None, dict(first=[self.model(image.tensor) for image in images]), {})

    network = TorchDetector(Tested(lambda tensor: 2 * tensor[0, 0, 0]), detector(tmp_path))
    assert [result[0][0, 0] for result in network.run(batch(), [3, 4, 5])] == [20, 22, 24]
    assert [load_dump(tmp_path / f'00000{index}')[0]['first'] for index in (4, 5)] == [[11], [12]]


def test_both_sides_of_compared_metrics_get_pictures_of_the_size_of_the_file(monkeypatch):
    class Fixed(Echo):
        spec = dataclasses.replace(SPEC, inputs=(TensorSpec('input', 'float32', ('B', 3, 4, 5)),))
        metadata = SimpleNamespace(spec=spec, classes=('thing',), family='echo', precision='fp32')
        computes_in = None

        def feeds(self, images, rescale):
            sizes.extend(image.tensor.shape for image in images)
            return super().feeds(images, rescale)

        def reference(self, model):
            return self

        def results(self, images, rescale):
            return boxes_of('', None, self.infer(self.feeds(images, rescale)), {})

    def run(cfg, reference, candidate, *_):
        return [network.run(batch(), [0, 1, 2]) and len(sizes) for network in (reference, candidate)]

    sizes, file = [], Fixed()
    monkeypatch.setattr(
        'mmdeploy_ext.proving.pictures.build_backend', lambda **_: contextlib.nullcontext(file)
    )
    monkeypatch.setattr('mmdeploy_ext.proving.pictures.compare_metrics', run)
    detector = SimpleNamespace(cfg=None, family=file, model=None)
    assert Images().subject().metrics(detector, ['file.onnx'], ['bbox'], {}) == [3, 6]
    assert set(sizes) == {(3, 4, 5)}


@dataclasses.dataclass(frozen=True)
class Points(Scored):
    """Results of a package from outside, with a fact about all of them."""

    xy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    unit: str = 'pixels'

    def place(self, index):
        return dict(xy=self.xy[index].tolist())


@dataclasses.dataclass(frozen=True)
class EvaluatedPoints(Points):
    def to_mmdet_result(self, num_classes):
        return self.by_class(self.xy, num_classes)


def three(kind):
    return kind(np.arange(6.0).reshape(3, 2), np.array([0.9, 0.2, 0.7], np.float32), np.array([1, 0, 1]))


def test_results_of_a_package_say_themselves_what_its_data_set_evaluates():
    first, second = three(EvaluatedPoints).to_mmdet_result(2)
    assert (first.tolist(), second.tolist()) == ([[2, 3]], [[0, 1], [4, 5]])
    with pytest.raises(ConfigError, match=r'^Points has no to_mmdet_result\(num_classes\)'):
        three(Points).to_mmdet_result(2)


def test_results_come_in_the_order_of_the_data_set():
    assert collect({1: 'b', 0: 'a'}, 2, Ranks()) == ['a', 'b']
