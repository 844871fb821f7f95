import functools

import numpy as np

from circles.runtime import draw
from mmdeploy_ext.tasks import bbox2d, matching

RESULTS, PLACE = 'circles', 'worst Δpx'
fit_pair = bbox2d.fit_pair
problem = functools.partial(matching.broken_boxes, 'circles', 3)


def pair_up(reference, candidate, pixel_bar=0.05, score_bar=1e-4):
    pixels = np.abs(reference.circles[:, None] - candidate.circles[None]).max(-1)
    pixels[reference.labels[:, None] != candidate.labels[None]] = np.inf
    return matching.pair_lists(reference, candidate, pixels <= pixel_bar, -pixels, -2.0, score_bar)


def figures(pairing, worst):
    return dict(worst_distance=worst(-pairing.nearness)), f'{worst(-pairing.nearness):.2g} pixels'


match_detections = functools.partial(
    matching.match_lists, problem=problem, pair_by=pair_up, figures=figures, score_thr=0.0, score_bar=1e-4
)
draw_pair = functools.partial(bbox2d.side_by_side, draw=draw, problem=problem, pair_by=pair_up)
