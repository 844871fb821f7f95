"""RT-DETR with the goldens' weights gives what the original gave, also for non-square inputs."""

import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
import rtdetr_golden as golden
import toy_rtdetr
from marking import in_suite
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.upstream.models.rtdetr.decoder import Anchors
from mmdeploy_ext.upstream.models.rtdetr.encoder import PositionEmbedding

CASES = ('r18vd', 'b'), ('r18vd', 'b_rowmajor'), ('r50vd', 'a'), ('r50vd', 'b'), ('r50vd', 'b_rowmajor')


@pytest.mark.parametrize('name', ['r18vd', 'r50vd'])
def test_the_state_dict_has_the_originals_keys_and_shapes(name):
    wanted = golden.keys('original', name)
    with torch.device('meta'):
        own = golden.empty_model(name).state_dict()
    assert {key: list(value.shape) for key, value in own.items()} == wanted


@pytest.mark.parametrize(('name', 'case'), in_suite(CASES, ('r18vd', 'b')))
def test_every_tensor_and_detection_is_the_originals(name, case):
    golden.compare(name, case, golden.run_model(golden.golden_model(name, case), name, case))


@pytest.mark.matrix
def test_a_file_gives_the_originals_queries_at_another_size(tmp_path):
    detector = toy_rtdetr.load_toy(tmp_path, config=golden.config_of('r18vd'))
    path = toy_rtdetr.export_toy(detector, tmp_path / 'raw.onnx', form='raw', height=640, width=640)
    with build_backend('OnnxRuntimeBackend', path, threads=1) as backend:
        outputs = backend.infer({'images': golden.golden_image('r18vd', 'b').numpy()})
    golden.compare_queries('r18vd', 'b', outputs)


def test_the_position_embeddings_differ_for_non_square_maps_only():
    original, row_major = PositionEmbedding(32), PositionEmbedding(32, 'row_major')
    square, wide = torch.zeros(1, 32, 4, 4), torch.zeros(1, 32, 3, 5)
    assert torch.equal(original(square), row_major(square))
    omega = 10000 ** -(torch.arange(8) / 8)
    token = 2 * 5 + 3  # y * w + x
    for embedding, y, x in ((row_major, 2, 3), (original, token // 3, token % 3)):  # divided by the height
        places = torch.cat([(y * omega).sin(), (y * omega).cos(), (x * omega).sin(), (x * omega).cos()])
        torch.testing.assert_close(embedding(wide)[0, token], places)


def test_centres_of_anchors_count_as_in_float32_comparisons_at_every_size():
    for size in (*range(1, 40), 50, 150, 250, 350, 450, 750):  # the last have a centre on the margin itself
        anchors, valid = Anchors()([torch.zeros(1, 1, 1, size), torch.zeros(1, 1, size, 1)])
        centres = (torch.arange(size) + 0.5) / size
        inside = (centres > 0.01) & (centres < 0.99)
        expected = torch.cat([inside, inside])
        assert torch.equal(valid[:, 0].bool(), expected), size
        assert torch.equal(anchors.isinf().all(-1), ~expected), size
