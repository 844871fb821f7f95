"""Modules with values of several magnitudes in one output; a wrong file has another `k` than 1."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


class Net(nn.Module):
    """Seeded layers and a function of them, of the input and of `k`."""

    def __init__(self, function, k=1.0):
        super().__init__()
        torch.manual_seed(3)
        self.boxes, self.scores, self.wide = nn.Linear(8, 4), nn.Linear(8, 5), nn.Linear(8, 24)
        self.conv, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 6, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.function, self.k = function, k

    def forward(self, x):
        return self.function(self, x, self.k)


@dataclass(frozen=True)
class Case:
    """`wrong` is the fault's `k`; `samples` gives one-tuples."""

    function: Callable
    wrong: float
    samples: Callable


def rows(seeds=(0, 1, 2), count=7):
    return [(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)),) for seed in seeds]


def images():
    return [(torch.rand(1, 3, 20, 28, generator=torch.Generator().manual_seed(seed)),) for seed in (0, 1)]


def one_large_sample():
    samples = rows()
    return [samples[0], (samples[1][0] * 3e5,), samples[2]]


def one_large_row():
    samples = rows()
    for (x,) in samples:
        x[2] *= 3e5
    return samples


CASES = {}


def case(wrong, samples=rows):
    def add(function):
        CASES[function.__name__] = Case(function, wrong, samples)
        return function

    return add


def pixels(net, x):
    return net.boxes(x).sigmoid() * torch.tensor([1333.0, 800.0, 1333.0, 800.0])


@case(1.004)
def boxes_and_a_score(net, x, k):
    return torch.cat([pixels(net, x), (k * net.scores(x)[:, :1]).sigmoid()], 1)


@case(1.05)
def boxes_and_a_low_score(net, x, k):
    return torch.cat([pixels(net, x), (k * net.scores(x)[:, :1] - 7).sigmoid()], 1)


@case(1.01)
def boxes_and_scores_of_classes(net, x, k):
    return torch.cat([pixels(net, x), (k * net.wide(x)).sigmoid()], 1)[None]


@case(1.01)
def boxes_and_scores_of_classes_by_channel(net, x, k):
    return boxes_and_scores_of_classes(net, x, k).transpose(1, 2)


@case(1.01, images)
def a_map_of_distances_and_scores(net, x, k):
    maps = net.head(net.conv(x).relu())
    return torch.cat([200 * maps[:, :4].exp(), (k * maps[:, 4:]).sigmoid()], 1)


@case(1.0005)
def a_column_of_minus_1e9(net, x, k):
    return (k * net.scores(x)).masked_fill(torch.arange(5) == 4, -1e9)


@case(1.0005)
def a_column_of_the_smallest_float(net, x, k):
    return (k * net.scores(x)).masked_fill(torch.arange(5) == 4, torch.finfo(torch.float32).min)


@case(1.0005)
def rows_of_minus_1e4(net, x, k):
    return (k * net.scores(x)).masked_fill((torch.arange(7) > 4)[:, None], -1e4)


@case(1.0005)
def rows_of_minus_infinity(net, x, k):
    return (k * net.scores(x)).masked_fill((torch.arange(7) > 4)[:, None], -math.inf)


@case(1.2)
def infinity_below_a_threshold(net, x, k):
    scores = net.scores(x)
    return scores.masked_fill(scores < 0.1 * k, -math.inf)


@case(1.05)
def an_additive_mask(net, x, k):
    features = net.wide(x)
    return k * features @ features.t() / 5 - 10000.0 * (torch.arange(7) > 4)


@case(1.001)
def a_mask_of_another_value(net, x, k):
    return net.scores(x).masked_fill(torch.arange(5) == 4, -1e9 * k)


@case(1.001, one_large_sample)
def usual_samples_beside_a_large_one(net, x, k):
    scores = net.scores(x)
    return torch.where(x.abs().amax() < 100, k * scores, scores)


@case(1.01, one_large_row)
def usual_rows_beside_a_large_one(net, x, k):
    scores = net.scores(x)
    return torch.where(x.abs().amax(1, keepdim=True) < 100, k * scores, scores)


@case(1.004)
def a_box_in_metres_and_its_heading(net, x, k):
    yaw = net.scores(x)[:, :1] * k
    return torch.cat([50 * net.boxes(x)[:, :3], net.boxes(x).exp(), yaw.sin(), yaw.cos()], 1)


@case(1.01)
def probabilities_near_zero(net, x, k):
    return (20 * k * net.scores(x)).softmax(1)


@case(1.003)
def a_score_times_a_centerness(net, x, k):
    scores = net.scores(x).sigmoid()
    return (scores[:, :1] * (k * net.scores(x)[:, 1:2] - 5).sigmoid()).sqrt(), 0.01 * scores


@case(1.00002)
def a_difference_of_large_numbers(net, x, k):
    return torch.cat([(10 * net.wide(x) + 100) - 100 * k, net.boxes(x)], 1)


@case(1.001, images)
def channels_that_are_empty(net, x, k):
    return k * (net.conv(x) - 9.0 * (torch.arange(8) % 2).view(1, 8, 1, 1)).relu()


@case(1.02)
def tails_of_gelu(net, x, k):
    return nn.functional.gelu(k * net.scores(x) - 2), nn.functional.silu(net.boxes(x) - 9)


@case(1.001)
def deviations(net, x, k):
    wide = net.wide(x)
    return k * wide.std(1), nn.functional.normalize(wide), torch.cdist(x, net.boxes.weight)


@case(1.001, images)
def resized_maps(net, x, k):
    maps = net.conv(x)
    return k * nn.functional.interpolate(maps, size=(17, 23), mode='bilinear'), maps.mean((2, 3))


@case(1.01)
def attention_of_rows(net, x, k):
    out, weights = net.attention(x[None], x[None], x[None])
    return k * out, weights


@case(1.003)
def sizes_by_exp(net, x, k):
    return torch.cat([k * (4 * net.boxes(x)).exp(), net.scores(x)], 1)


@case(1.05)
def boxes_of_ten_million(net, x, k):
    return torch.cat([1e7 * net.boxes(x), (k * net.scores(x)[:, :1]).sigmoid()], 1)


@case(1.01)
def the_best_of_equal_scores(net, x, k):
    scores, places = (k * net.scores(x)).sigmoid().flatten().topk(6)
    return scores, places, pixels(net, x)[places // 5]


@case(1.001)
def integers_and_masks(net, x, k):
    scores = k * net.scores(x)
    return scores.argmax(1), scores > 0, scores


@case(1.01, lambda: rows(count=1))
def a_single_row(net, x, k):
    return boxes_and_a_score(net, x, k)


@case(1.001)
def position_embeddings(net, x, k):
    places = (k * net.boxes(x)).sigmoid()
    return torch.cat([102.4 * places - 51.2, torch.sin(6.28 * places)], 1)
