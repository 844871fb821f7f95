"""Pictures of detections: where colours and labels are, never how the picture looks as a whole."""

import numpy as np
import pytest

from mmdeploy_ext.runtime import draw
from mmdeploy_ext.runtime.detections import Detections, Instances

GREY = np.full((300, 400, 3), 127, np.uint8)


def one(box, score=0.9, label=0) -> Detections:
    return Detections(np.array([box], np.float32), np.array([score], np.float32), np.array([label]))


def test_a_box_is_drawn_in_the_colour_of_its_class_and_the_image_is_left_alone():
    picture = draw.draw_detections(GREY, one([50, 100, 200, 250], label=1), ['cat', 'dog'])
    assert tuple(picture[175, 50]) == tuple(picture[250, 125]) == draw.class_colour(1)
    assert (GREY == 127).all() and picture.shape == GREY.shape


def outlined(points, label=0) -> Detections:
    class Outlined(Detections):
        outlines = points

    results = one([50, 100, 200, 250], label=label)
    return Outlined(results.bboxes_xyxy, results.scores, results.labels)


def test_outlines_are_drawn_in_place_of_boxes():
    diamond = np.array([[[125, 100], [200, 175], [125, 250], [50, 175]]])
    picture = draw.draw_detections(GREY, outlined(diamond, label=1), ['cat', 'dog'])
    colour = draw.class_colour(1)
    assert all(tuple(picture[y, x]) == colour for x, y in diamond[0])
    assert (picture[250, 50] == 127).all()  # a corner of the upright box


def test_boxes_below_the_threshold_are_left_out():
    assert (draw.draw_detections(GREY, one([50, 100, 200, 250], score=0.2), ['cat'], 0.3) == GREY).all()
    assert (draw.draw_detections(GREY, one([50, 100, 200, 250], score=0.2), ['cat'], 0.1) != GREY).any()


def test_results_become_those_of_supervision_with_boxes_of_masks():
    pytest.importorskip('supervision')
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 2:4, 1:5] = True
    found = Instances(masks, np.float32([0.5]), np.array([0])).to_supervision(('disc',))
    assert found.xyxy.tolist() == [[1, 2, 5, 4]] and found.data['class_name'].tolist() == ['disc']
    assert found.mask.sum() == 8 and found.confidence.tolist() == [0.5]
