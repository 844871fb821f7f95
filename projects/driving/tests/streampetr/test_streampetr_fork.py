"""A repository's own StreamPETR: methods that no graph runs are named, heads without layers are refused."""

import pytest
from torch import nn

import toy_streampetr_deploy as deployed
from mm2onnx_driving.streampetr import steps
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.proving.not_shown import untraced_methods


def methods_of(detector):
    found = untraced_methods(detector.family, detector.model, detector.cfg)
    return [method.subject.partition(' ')[0] for method in found]


def test_a_class_derived_from_ours_is_named_where_it_has_methods_of_its_own(monkeypatch):
    detector = deployed.detector()
    head = detector.model.pts_bbox_head
    assert methods_of(detector) == []

    class Higher(type(head)):
        def get_bboxes(self, *args, **kwargs):
            results = super().get_bboxes(*args, **kwargs)
            for boxes, _, _ in results:
                boxes.tensor[:, 2] += 1
            return results

    monkeypatch.setattr(head, '__class__', Higher)
    (method,) = methods_of(detector)
    assert method == 'Higher.get_bboxes'


def test_a_head_without_the_layers_that_graphs_run_is_refused_by_their_names():
    model, head = nn.Module(), nn.Module()
    model.pts_bbox_head = head
    head.with_ego_pos = True
    for name in (*steps.LAYERS[1:], *steps.HEAD_METHODS[1:], 'ego_pose_pe'):
        setattr(head, name, None)
    head.post_update_memory = lambda data, scores, boxes, outs_dec: None
    with pytest.raises(ConfigError, match=r'^a\.py.*ego_pose_memory'):
        steps.check_parts('a.py', model)
    head.transformer = head.ego_pose_memory = nn.Identity()
    steps.check_parts('a.py', model)
    head.post_update_memory = lambda data, rows: None
    with pytest.raises(ConfigError, match=r'outs_dec.*post_update_memory'):
        steps.check_parts('a.py', model)
