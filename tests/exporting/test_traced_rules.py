"""What Python decides in a traced test path stays in the graph, or `valid` says where it does not hold."""

import copy
import importlib
import sys
from unittest import mock

import numpy as np
import onnxruntime
import pytest
import torch
from mmcv.ops import CornerPool
from mmcv.ops import batched_nms as mmcv_nms
from torch import nn
from torch.nn import functional as F

from mmdeploy_ext.engines.tensorrt.limits import find_refusals
from mmdeploy_ext.exporting.copy import AXES, replace_class
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.exporting.traced import instance_masks
from mmdeploy_ext.exporting.traced.functions import batched_nms, bbox2roi, multiclass_nms
from mmdeploy_ext.exporting.traced.mode import SHADOWS, Caps, Limit, Tracing, is_traced
from mmdeploy_ext.exporting.traced.whole import first_difference, layout_of

len, min, max, int = (SHADOWS[name] for name in ('len', 'min', 'max', 'int'))


class UnderTheMode(nn.Module):
    """A function of boxes (n, 5) as a traced test path sees it, and `valid`."""

    def __init__(self, function, caps=None):
        super().__init__()
        self.function, self.caps = function, caps

    def forward(self, boxes):
        if not is_traced():
            return self.function(boxes)
        with Tracing([boxes], caps=self.caps) as self.mode:
            result = self.function(boxes)
        return result.clone(), self.mode.valid()


def boxes(count, seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, 5, generator=draw) * 100 * scale


def traced(function, example):
    module = UnderTheMode(function).eval()
    model = export_module(module, [example], input_names=['boxes'], dynamic={'boxes': {0: 'n'}})
    return module.mode, onnxruntime.InferenceSession(model.SerializeToString())


def answers(function, example, *others):
    """Return for each input whether the file's result is PyTorch's, and whether it says `valid`."""
    _, session = traced(function, example)
    found = []
    for other in (example, *others):
        expected = function(other.clone()).numpy()
        result, valid = session.run(None, {'boxes': other.numpy()})
        is_equal = result.shape == expected.shape and np.allclose(result, expected, atol=1e-3)
        found.append((is_equal, bool(valid)))
    return found


# kept in the graph
def cut(rows):
    limit = Limit(7) if is_traced() else 7
    return rows[rows[:, 4].topk(limit)[1]] if rows.shape[0] > limit else rows


def fewest_and_most(rows):
    return rows[: min(len(rows), 4)] * max(rows.shape[0], 6)


def slice_of_an_int(rows):
    return rows[: int(rows[:, 3].mean()) // 8]


def written_columns(rows):
    rows = rows.clone()
    rows[:, 0:4:2].clamp_(0, 50)
    return rows


def written_view_of_a_view(rows):
    rows = rows.clone()
    rows[:, :4][:, 1:].mul_(2)
    return rows


def items_of_a_view(rows):
    rows = rows.clone()
    left = rows[:, :2]
    left[left > 40] = 0
    return rows


def added_to_a_view(rows):
    rows = rows.clone()
    left = rows[:, 0]
    left += 3
    return rows


def tensor_of_sizes(rows):
    return rows / rows.new_tensor([rows.shape[0], 1, 2, 3, 4])


def only_what_is_left(rows):
    kept = rows[rows[:, 4] > 60]
    if len(kept):
        kept = kept[:5]
    return kept


def data_of_a_tensor(rows):
    return rows + rows.data[:, 2:3].mean()


def deep_copy(rows):
    return copy.deepcopy(rows * 2)


def empty_selection(rows):
    kept = rows[rows[:, 4] > 95]
    if len(kept) == 0:
        return kept
    return kept * 2


def selected_only_if_needed(rows):
    mask = rows[:, 4] > 20
    if not mask.all():
        rows = rows[mask]
    return rows


def reshaped_selection(rows):
    kept = rows[rows[:, 4] > 40]
    if kept.shape[0] == 0:
        return kept
    return kept.reshape(kept.shape[0], -1) + 1


def reshaped_maps_of_a_selection(rows):
    maps = rows[rows[:, 4] > 40][:, :4, None].expand(-1, -1, 3)
    if maps.shape[0] == 0:
        return maps.new_zeros(0, 2, 6)
    return maps.reshape(maps.shape[0], 2, -1) + 1


def split_of_one(rows):
    return torch.cat(rows.split((len(rows),))) * 2


def normalised(rows):
    return F.layer_norm(rows, rows.shape[1:])


def computed_convolution(rows):
    weights = rows[:, :3, None, None] / 100
    return F.conv2d(torch.ones(1, 3, 4, 4), weights).flatten(1)


def pooled_without_an_image(rows):
    values, places = F.max_pool2d_with_indices(rows[None], 3, stride=1, padding=1)
    return torch.cat([values, places.to(values), F.max_pool2d(rows[None], 3, stride=1, padding=1)], 1)


def pooled_to_the_size_of_other_maps(rows):
    maps = rows[:, None, :4, None].expand(-1, 1, 4, 6)
    return F.adaptive_avg_pool2d(maps * rows[:, :1, None, None], maps[:, :, ::2, ::3].shape[-2:]).flatten(1)


KEPT = (
    cut, fewest_and_most, slice_of_an_int, written_columns, written_view_of_a_view, items_of_a_view,
    added_to_a_view, tensor_of_sizes, data_of_a_tensor, deep_copy, empty_selection, selected_only_if_needed,
    reshaped_selection, split_of_one, normalised, computed_convolution, pooled_without_an_image,
    pooled_to_the_size_of_other_maps,
)  # fmt: skip


@pytest.mark.parametrize('function', KEPT, ids=lambda function: function.__name__)
def test_a_decision_that_tensors_can_make_stays_in_the_graph(function):
    found = answers(function, boxes(12), boxes(12, 1), boxes(9, 2, 0.9), boxes(20, 3, 0.8))
    assert found == [(True, True)] * 4


@pytest.mark.parametrize(
    'function', [empty_selection, reshaped_selection, reshaped_maps_of_a_selection, only_what_is_left]
)
def test_an_example_without_a_selected_row_does_not_decide_for_other_pictures(function):
    assert answers(function, boxes(12, scale=0.1), boxes(12, 1), boxes(12, 2, 0.1)) == [(True, True)] * 3


# held of the example, and known
def branch(rows):
    return rows * 2 if rows[:6, 2].mean() > rows[6:, 2].mean() else rows


def quantile_of_numpy(rows):
    return rows[rows[:, 2] > float(np.quantile(rows[:, 2].numpy(), 0.5))]


def list_of_rows(rows):
    return rows[[index for index, value in enumerate(rows[:, 2].tolist()) if value > 50]]


def loop(rows):
    return torch.stack([row * 1.5 for row in rows if row[2] > 10])


def printed_number(rows):
    return rows + float(f'{rows[0, 0]:.3f}')


def item(rows):
    return rows + rows[0, 0].item()


def equal_halves(rows):
    return rows * (2 if torch.equal(rows[:6], rows[6:]) else 3)


def close_halves(rows):
    return rows * (2 if torch.allclose(rows[:6], rows[6:], atol=30) else 3)


def contained(rows):
    return rows * (2 if 0.0 in rows else 3)


def other_any(rows):
    has_large = (rows > 150).any()
    return rows * 2 if has_large else rows


HELD = (
    branch, quantile_of_numpy, list_of_rows, loop, printed_number, item, equal_halves, close_halves,
    contained, other_any,
)  # fmt: skip
UNLIKE = dict(
    equal_halves=torch.cat([boxes(6), boxes(6)]),
    close_halves=torch.full((12, 5), 1.0),
    contained=boxes(12) * torch.tensor([0.0, 1, 1, 1, 1]),
    other_any=boxes(12) + 100,
    branch=boxes(12).flip(0),
)


@pytest.mark.parametrize('function', HELD, ids=lambda function: function.__name__)
def test_a_fact_of_the_example_is_guarded_by_valid_and_named_by_its_line(function):
    other = UNLIKE.get(function.__name__, boxes(12, 1))
    found = answers(function, boxes(12), other)
    assert found == [(True, True), (False, False)]
    mode, _ = traced(function, boxes(12))
    held = [escape for escape in mode.escapes if escape.kind == 'value' and not escape.constant]
    assert {escape.file for escape in held} == {__file__}
    assert all(escape.line >= function.__code__.co_firstlineno for escape in held)


def harmless(rows):
    if len(rows) == 0:
        return rows
    assert rows.shape[1] == 5
    if rows.shape[-1] != 5:
        raise ValueError
    print('', end=f'{rows.shape[1] // 100 or ""}')
    return rows[:5]


def test_a_number_of_columns_is_no_fact_of_the_example():
    mode, _ = traced(harmless, boxes(12))
    assert [escape for escape in mode.escapes if escape.kind == 'value' and not escape.constant] == []
    assert answers(harmless, boxes(12), boxes(30, 1)) == [(True, True)] * 2


def test_scores_and_thresholds_where_rounding_decides_are_borders():
    mode, _ = traced(cut, boxes(12))
    assert list(mode.borders) == ['topk_cut_0']


def read_after_a_copy(rows):
    columns = (rows * 2).t()
    return columns.contiguous() + columns


def scaled_by_its_size(rows):
    return rows * float(rows.shape[0])


def graphs(function, *examples):
    return [torch.jit._get_trace_graph(UnderTheMode(function).eval(), (one,))[0] for one in examples]


def test_two_traces_differ_by_what_they_compute_and_not_by_how_pytorch_stores_it():
    assert first_difference(*graphs(read_after_a_copy, boxes(1), boxes(12))) == ''
    assert 'test_traced_rules.py' in first_difference(*graphs(scaled_by_its_size, boxes(1), boxes(12)))


class Maps(nn.Module):
    """A backbone of two maps and a head, then boxes of the best cells."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Conv2d(3, 6, 8, 8), nn.Conv2d(6, 6, 1)

    def simple_test(self, image, metas, rescale):
        maps = [self.head(self.backbone(image))]
        return dict(zip(('dets', 'labels'), self.found(maps, metas), strict=True))

    def found(self, maps, metas):
        rows = maps[0][0].flatten(1).t()
        dets = rows[rows[:, 4].topk(5)[1]][:, :5] * metas[0]['scale_factor'][0]
        return dets, torch.zeros_like(dets[:, 0]).long()


class ListHead(nn.Conv2d):
    def forward(self, x):
        return [super().forward(x)]


class WritesToTheList(Maps):
    def __init__(self):
        super().__init__()
        self.head = ListHead(6, 6, 1)

    def simple_test(self, image, metas, rescale):
        maps = self.head(self.backbone(image))
        maps[0] = maps[0].permute(0, 2, 3, 1)
        return dict(zip(('dets', 'labels'), self.found([maps[0].permute(0, 3, 1, 2)], metas), strict=True))


class Remembering(nn.Conv2d):
    def forward(self, x):
        self.seen = x.mean()
        return super().forward(x)


class ReadsAnInnerTensor(Maps):
    def __init__(self):
        super().__init__()
        self.head = Remembering(6, 6, 1)

    def found(self, maps, metas):
        return super().found([maps[0] + self.head.seen], metas)


class Clipping(nn.Conv2d):
    size = 8

    def forward(self, x):
        return super().forward(x) * self.size


class KnowsTheSizeOfTheImage(Maps):
    def __init__(self):
        super().__init__()
        self.head = Clipping(6, 6, 1)

    def simple_test(self, image, metas, rescale):
        self.head.size = metas[0]['img_shape'][0]
        return super().simple_test(image, metas, rescale)


class IdleHead(nn.Conv2d):
    def forward(self, x):
        return super().forward(x), x * 2


class ReadsAMapInVain(Maps):
    def __init__(self):
        super().__init__()
        self.head = IdleHead(6, 6, 1)

    def found(self, maps, metas):
        scores, idle = maps[0]
        idle[0].detach()
        return super().found([scores], metas)


class OfOneImage(Maps):
    def found(self, maps, metas):
        (_,) = metas
        return super().found(maps, metas)


@pytest.mark.parametrize(
    ('model', 'network'),
    [
        (Maps, ['backbone', 'head']),
        (OfOneImage, ['backbone', 'head']),
        (WritesToTheList, ['backbone', 'head']),
        (ReadsAMapInVain, ['backbone']),
        (ReadsAnInnerTensor, ['backbone']),
        (KnowsTheSizeOfTheImage, ['backbone']),
    ],
)
def test_the_network_ends_where_later_code_takes_its_maps_and_nothing_else(model, network):
    layout = layout_of(model().eval(), [(64, 64), (72, 80)])
    assert list(layout.cut.calls) == network and layout.difference == ''


@pytest.mark.parametrize('mode', AXES)
@pytest.mark.parametrize('size', [(1, 1), (40, 33)])
def test_pooling_of_corners_by_steps_is_that_of_mmcv(mode, size):
    x, pool = torch.randn(2, 3, *size), CornerPool(mode)
    wanted = pool(x)
    replace_class(pool)
    assert torch.equal(pool(x), wanted)


# constant shapes
CAPS = Caps(candidates=30, proposals=0, wanted=-1, results=30, sorted=30, plugin_classes=0)


def rows_above(rows):
    return rows[rows[:, 4] > 60]


def best_of_masked(rows):
    keep = rows[:, 4] > 60
    corners, (scores, order) = rows[:, :4][keep], rows[:, 4][keep].sort(descending=True)
    return torch.cat([corners[order[:9]], scores[:9, None]], 1)


def pairs_above(rows):
    mask = rows[:, :4] > 80
    scores, places = rows[:, :4][mask], torch.nonzero(mask)
    scores, order = scores.sort(descending=True)
    number = min(6, places.size(0))
    row, column = places[order[:number]].unbind(dim=1)
    return torch.cat([rows[row, :3], column[:, None].float(), scores[:number, None]], 1)


def product_of_masked(rows):
    first, second = rows[:, 3] / 100, rows[:, 4] / 100
    keep = first * second >= 0.3
    scores = (first[keep] * second[keep]).sqrt()
    return torch.cat([rows[keep, :4], scores[:, None]], 1)


def places_of_masked(rows):
    places = (rows[:, 4] > 60).nonzero(as_tuple=False).squeeze(1)
    return torch.cat([rows[:, :4][places], rows[:, 4][places][:, None]], 1)


def tuple_of_places(rows):
    (places,) = torch.where(rows[:, 4] > 60)
    return torch.cat([rows[:, :4][places], rows[:, 4][places][:, None]], 1)


def suppressed(rows):
    rows = rows[rows[:, 4] > 30]
    corners = torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)
    nms = batched_nms(mmcv_nms) if is_traced() else mmcv_nms
    return nms(corners, rows[:, 4] / 100, (rows[:, 0] > 50).long(), dict(type='nms', iou_threshold=0.5))[0]


def first_class(corners, scores):
    scores = scores[:, 0]
    keep = scores > 0.1
    return torch.cat([corners[keep], scores[keep][:, None]], 1)


def regions_of_proposals(rows):
    proposals = suppressed(rows)
    if is_traced():
        bbox2roi([proposals])
    nms = multiclass_nms(first_class) if is_traced() else first_class
    return nms(proposals[:, :4], proposals[:, :1] / 300)


@pytest.mark.parametrize(
    'function',
    [
        rows_above,
        best_of_masked,
        pairs_above,
        product_of_masked,
        places_of_masked,
        tuple_of_places,
        suppressed,
        regions_of_proposals,
    ],
)
def test_a_dropped_row_of_a_constant_graph_has_a_score_below_zero(function):
    model = export_module(UnderTheMode(function, CAPS).eval(), [boxes(20)], input_names=['boxes'])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = set()
    for example in (boxes(20), boxes(20, 1), boxes(20, 2, 0.5)):
        expected = function(example.clone()).numpy()
        result, valid = session.run(None, {'boxes': example.numpy()})
        found.add(result.shape)
        kept = result[result[:, 4] >= 0]
        kept, expected = (rows[np.argsort(-rows[:, 4], kind='stable')] for rows in (kept, expected))
        np.testing.assert_allclose(kept, expected, atol=1e-4)
        assert valid
    assert len(found) == 1 and not find_refusals(model, rtx=True)


def test_a_trace_imports_beside_copies_of_mmdet_that_lack_later_names():
    heads = 'mmdeploy_ext.upstream.models.instance_masks'
    with mock.patch.dict(sys.modules, {heads: None}):
        importlib.reload(instance_masks)
