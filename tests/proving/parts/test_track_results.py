"""Results of trackers: boxes are matched within their class and the number of their track."""

import numpy as np
import pytest

from mmdeploy_ext.proving.parts.results import paired

TRACKS = [
    np.float32([[7, 10, 10, 50, 60, 0.9], [8, 100, 20, 180, 90, 0.6]]),
    np.float32([[3, 30, 30, 80, 70, 0.8]]),
]
"""Per class the number of a track, x1, y1, x2, y2 and score."""


def moved(tracks):
    return [tracks[0] + np.float32([0, 0, 0, 5e-3, 0, 0]), tracks[1]]


def exchanged(tracks):
    return [tracks[0][[1, 0]] * [1, 0, 0, 0, 0, 0] + tracks[0] * [0, 1, 1, 1, 1, 1], tracks[1]]


def of_another_class(tracks):
    return [np.concatenate(tracks[::-1])[:0], np.concatenate(tracks)]


@pytest.mark.parametrize(
    ('change', 'passes'),
    [
        (moved, True),
        (lambda tracks: [tracks[0][::-1], tracks[1]], True),
        (exchanged, False),
        (of_another_class, False),
    ],
)
def test_a_track_is_compared_by_its_box_and_keeps_its_number_and_class(change, passes):
    candidate = dict(track_results=change(TRACKS))
    assert (not paired('results', dict(track_results=TRACKS), candidate).failures) == passes
