"""A repository's own StreamPETR: its classes are the model, its layers the graph, and changes of it fail."""

import pytest

import forked


@pytest.fixture(scope='module')
def verdicts(tmp_path_factory):
    root = forked.write_streampetr(tmp_path_factory.mktemp('fork'))
    return forked.verdicts(root, 'ScaledOutputs')


def test_the_fork_is_proven_against_its_own_classes(verdicts):
    verdict = verdicts['']
    assert verdict['title'].startswith('PROVEN ON'), verdict['reasons']
    assert any('StreamPETRHead.forward differs' in method for method in verdict['methods'])
    assert all('projects/mmdet3d_plugin/' in method for method in verdict['methods'])


def test_a_fork_whose_memory_takes_scaled_outputs_is_not_proven(verdicts):
    verdict = verdicts['ScaledOutputs']
    assert verdict['title'] == 'NOT PROVEN'
    assert any('memory embedding' in reason for reason in verdict['reasons'])


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_no_change_of_a_method_that_the_graphs_replace_is_proven(tmp_path):
    names = (
        *('MeanOfMemory', 'ReferencePoints', 'Velocities', 'Rays', 'Heights'),
        *('Labels', 'Sizes', 'NoReset', 'Order'),
    )
    verdicts = forked.verdicts(forked.write_streampetr(tmp_path), *names)
    titles = {name: verdicts[name]['title'] for name in names}
    assert titles == dict.fromkeys(names, 'NOT PROVEN')


def test_a_class_derived_from_ours_is_named_where_it_has_methods_of_its_own(monkeypatch):
    import toy_streampetr_deploy as deployed

    deployment = deployed.deployment()
    head = deployment.model.pts_bbox_head
    assert deployment.family.differing_methods(deployment.model) == []

    class Higher(type(head)):
        def get_bboxes(self, *args, **kwargs):
            results = super().get_bboxes(*args, **kwargs)
            for boxes, _, _ in results:
                boxes.tensor[:, 2] += 1
            return results

    monkeypatch.setattr(head, '__class__', Higher)
    (method,) = deployment.family.differing_methods(deployment.model)
    assert method.name == 'Higher.get_bboxes'
