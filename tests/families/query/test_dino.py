"""DINO and DDQ DETR are mmdet 3's by names, shapes and numbers; they are exported as detectors of queries."""

import copy
import json

import numpy as np
import pytest
import torch
from mmdet.models import builder
from torch import nn

import dino_golden as golden
import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from drawn_weights import drawn
from marking import in_suite
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.families.common.query_networks import NETWORKS, DinoNetwork
from mmdeploy_ext.graphs.run import Runner
from mmdeploy_ext.upstream.weights.convert.mmdet3_model import to_mmdet2_model
from mmdeploy_ext.upstream.weights.convert.mmdet3_names import to_mmdet2_names

EXPECTED = json.loads(golden.FILE.read_text())


def built(kind):
    """Return the translated model, with the weights that mmdet 3 had."""
    built = builder.build_detector(to_mmdet2_model(copy.deepcopy(golden.MODELS[kind]))).eval()
    state, shapes = built.state_dict(), EXPECTED[kind]['shapes']
    names = {name: theirs for theirs, name in to_mmdet2_names(shapes, state, kind).items()}
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {
        name: shapes[theirs] for name, theirs in names.items()
    }
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(drawn(names[name], tensor))
    return built


@pytest.fixture(scope='module')
def model():
    return built('DINO')


@pytest.fixture(scope='module', params=golden.MODELS)
def case(request):
    return built(request.param), EXPECTED[request.param]['outputs']


def outputs(model):
    """Return logits and boxes of the head, as mmdet 2.28 asks it."""
    metas = [dict(batch_input_shape=golden.SIZE[2:], img_shape=(*shape, 3)) for shape in golden.SHAPES]
    with torch.no_grad():
        logits, boxes, *_ = model.bbox_head(model.extract_feat(golden.pictures()), metas)
    return logits[-1], boxes[-1]


def network_of(model):
    """Return the module that is exported."""
    return NETWORKS[type(model.bbox_head).__name__](model)


def network_outputs(model):
    with torch.no_grad():
        found = network_of(model)(golden.pictures(), torch.tensor(golden.SHAPES, dtype=torch.float32))
    return found[:2]


def test_names_shapes_and_outputs_are_those_of_mmdet_3(case):
    model, expected = case
    for logits, boxes in (outputs(model), network_outputs(model)):
        np.testing.assert_allclose(golden.sampled([logits.sigmoid(), boxes]), expected, atol=1e-4)


@pytest.mark.parametrize('exporter', in_suite(['torchscript', 'dynamo'], 'torchscript'))
def test_its_graph_gives_the_same(case, exporter):
    model, _ = case
    image, shapes = golden.pictures(), torch.tensor(golden.SHAPES, dtype=torch.float32)
    names = dict(input_names=['input', 'img_shape'], output_names=['logits', 'boxes', 'token_scores'])
    network = network_of(model)
    opset = dict(torchscript=17, dynamo=18)[exporter]
    file = export_module(network, (image, shapes), exporter=exporter, opset=opset, **names)
    found = Runner(file).run(dict(input=image.numpy(), img_shape=shapes.numpy()))
    for name, wanted in zip(names['output_names'], outputs(model), strict=False):
        np.testing.assert_allclose(found[name], wanted.numpy(), atol=1e-4)


class CoDETR(nn.Module):
    """The parts of Co-DETR's detector that its head of queries needs, around the layers of a DINO."""

    def __init__(self, model, test_cfg, with_attn_mask=True):
        super().__init__()
        model = copy.deepcopy(model)
        self.backbone, self.neck, self.query_head = model.backbone, model.neck, model.bbox_head
        self.bbox_head = nn.ModuleList([nn.Linear(1, 1)])  # a head that trains
        self.extract_feat, self.with_attn_mask = model.extract_feat, with_attn_mask
        head, decoder = self.query_head, self.query_head.transformer.decoder
        head.test_cfg = test_cfg
        head.transformer.query_embed = head.query_embedding
        first, second = decoder.ref_point_head.layers
        decoder.ref_point_head = nn.Sequential(first, nn.ReLU(), second)
        del head.query_embedding


def test_layers_of_co_detr_give_what_those_of_dino_give(model, monkeypatch):
    pictures = golden.pictures()
    sizes = torch.tensor([[*shape] for shape in golden.SHAPES], dtype=torch.float32)
    monkeypatch.setattr(DinoNetwork, 'least_odds_of_results', 1e-3)
    with torch.no_grad():
        plain = DinoNetwork(model)(pictures, sizes)
        other = DinoNetwork(CoDETR(model, {}))(pictures, sizes)
        whole = DinoNetwork(CoDETR(model, {}, with_attn_mask=False))(pictures, sizes)
        unpadded = DinoNetwork(model)(pictures, torch.zeros_like(sizes))
    for ours, theirs in zip((*other, *whole), (*plain, *unpadded), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    'nms',
    [dict(type='soft_nms', iou_threshold=0.5), None],
)
def test_co_detr_suppresses_as_many_of_the_best_pairs_as_it_has_queries(model, nms):
    from mmcv.ops import batched_nms

    from mmdeploy_ext.families.query.postprocess import QueryFullForm

    torch.manual_seed(0)
    test_cfg = dict(max_per_img=6, score_thr=0.4, nms=nms)
    detector = CoDETR(model, test_cfg)
    head = detector.query_head
    logits, boxes = torch.randn(1, head.num_query, head.num_classes), torch.rand(1, head.num_query, 4)
    scale = torch.tensor([[0.5, 0.5, 2.0, 2.0]])
    image, size = torch.zeros(1, 3, 40, 60), torch.tensor([[30.0, 50.0]])
    dets, labels = QueryFullForm(detector)(image, size, scale, logits, boxes)
    scores, index = logits[0].sigmoid().flatten().topk(head.num_query if nms else 6)
    kept = scores > 0.4
    scores, index = scores[kept], index[kept]
    centre, half = boxes[0][index // head.num_classes].split(2, 1)
    expected = torch.cat([centre - half / 2, centre + half / 2], 1) * torch.tensor([50.0, 30, 50, 30])
    expected = torch.minimum(expected.clamp(min=0), torch.tensor([50.0, 30, 50, 30])) / scale
    expected, classes = torch.cat([expected, scores[:, None]], 1), index % head.num_classes
    if nms:
        expected, rows = batched_nms(expected[:, :4], scores, classes, nms)
        expected, classes = expected[:6], classes[rows][:6]
    count = len(expected)
    torch.testing.assert_close(dets[0, :count], expected)
    assert labels[0].tolist() == [*classes.tolist(), *[-1] * (6 - count)] and dets.shape == (1, 6, 5)
