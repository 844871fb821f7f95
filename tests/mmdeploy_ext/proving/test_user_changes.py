"""Changes of `user_changes`: in a layer, in a box coder, and in the detector's own test path."""

import user_changes
from user_changes import FOLLOWED, NOT_PROVEN

EXPECTED = {
    'neck': (FOLLOWED, 'PROVEN '),
    'box coder': (NOT_PROVEN, 'MyBoxCoderOfPoints.decode ('),
    'post-processing': (NOT_PROVEN, 'MyPostProcessingOfPoints.simple_test_pts ('),
}


def test_a_layer_is_followed_and_code_around_layers_is_not_proven_in_silence(tmp_path):
    outcomes = list(user_changes.outcomes('centerpoint', tmp_path, tuple(EXPECTED)))
    assert {entry.change.title: entry.kind for entry in outcomes} == {
        title: kind for title, (kind, _) in EXPECTED.items()
    }
    for entry in outcomes:
        assert EXPECTED[entry.change.title][1] in entry.words
