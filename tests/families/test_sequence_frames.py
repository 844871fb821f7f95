"""Which frames a proof takes of a data set."""

import pytest

from mmdeploy_ext.bench.kinds.sequence import choose_frames

TOKENS = ['a'] * 5 + ['b'] * 3 + ['c'] * 4


@pytest.mark.parametrize(
    ('count', 'expected'),
    [
        (6, [0, 1, 5, 6, 8, 9]),
        (2, [0, 1]),
        (12, list(range(12))),
        (100, list(range(12))),
        (11, [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]),
    ],
)
def test_a_proof_starts_several_scenes(count, expected):
    assert choose_frames(TOKENS, count) == expected


def test_one_scene_is_taken_as_far_as_needed():
    assert choose_frames(['a'] * 9, 7) == list(range(7))
