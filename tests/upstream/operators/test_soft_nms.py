"""Soft NMS: the Loop of ONNX gives what mmcv's kernel gives, image by image."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from mmdeploy_ext.exporting import export
from mmdeploy_ext.spec.options import IMAGE, Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec
from mmdeploy_ext.upstream.operators.nms import NO_CANDIDATE, SOFT_NMS

MOST = 40


class SoftNms(nn.Module):
    """The operator alone."""

    def __init__(self, method, min_score):
        super().__init__()
        self.method, self.min_score = method, min_score

    def forward(self, bboxes, scores):
        return SOFT_NMS[self.method](bboxes, scores, MOST, 0.4, 0.5, self.min_score)


def boxes(seed, batch, count, dead=0.3):
    """Return boxes (B, N, 4) and scores (B, N), all different; a share of them is no candidate."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 60, (batch, count, 2)), rng.uniform(1, 40, (batch, count, 2))
    scores = rng.permuted(np.tile(np.arange(1, count + 1) / (count + 1), (batch, 1)), axis=1)
    scores[rng.random(scores.shape) < dead] = NO_CANDIDATE
    return np.concatenate([corner, corner + size], 2).astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize('exporter', ['torchscript', pytest.param('dynamo', marks=pytest.mark.matrix)])
@pytest.mark.parametrize('method', SOFT_NMS)
def test_the_loop_chooses_and_scores_as_mmcv_does(method, exporter):
    spec = GraphSpec(
        'soft_nms',
        (TensorSpec('b', 'float32', ('B', 'N', 4)), TensorSpec('s', 'float32', ('B', 'N'))),
        (TensorSpec('rows', 'int64', ('B', MOST)), TensorSpec('best', 'float32', ('B', MOST))),
    )
    example = {name: torch.from_numpy(value) for name, value in zip('bs', boxes(0, 2, 6), strict=True)}
    for min_score in (0.0, 0.2):
        module = SoftNms(method, min_score)
        stage = Stage('soft_nms', module, ('b', 's'), ('rows', 'best'))
        options = Options(IMAGE, opset=18, dynamic=True, exporter=exporter)
        model = export.export_stages([stage], example, spec, options)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
        for seed, batch, count, dead in ((1, 3, 90, 0.3), (2, 1, 1, 0), (3, 2, 30, 0.9), (4, 1, 5, 1)):
            given = boxes(seed, batch, count, dead)
            rows, best = session.run(None, dict(zip('bs', given, strict=True)))
            wanted_rows, wanted = (one.numpy() for one in module(*map(torch.from_numpy, given)))
            np.testing.assert_allclose(best, wanted, rtol=0, atol=1e-6)
            present = wanted > NO_CANDIDATE
            assert np.array_equal(rows[present], wanted_rows[present]) and present.any() == (dead < 1)
            assert (np.diff(best, axis=1) <= 0).all()
