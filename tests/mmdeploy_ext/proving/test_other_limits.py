"""Limits and thresholds with other values: what no picture reaches shows in a case of its own."""

import contextlib
import dataclasses
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from marking import in_suite
from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting import deployment as deploy
from mmdeploy_ext.exporting import files
from mmdeploy_ext.families.limits import Kind, Limit, changed, limits_of, lowered, raised
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.inputs.inputs import proof_inputs
from mmdeploy_ext.proving.levels.other_limits import (
    MAX_LAYER_BYTES,
    LimitsLowered,
    LimitsRaised,
    Trials,
    cut_at_gap,
)
from mmdeploy_ext.proving.references import ImageReference
from mmdeploy_ext.runtime.panoptic import OFFSET, Segments
from planted_boxes import OF_SUPPRESSION
from planting import argument, arguments, replaced, result, settings
from toy_atss import PICTURE, REPO

IMAGE = 'toy.jpg', read_image(PICTURE)
LOWERED, PROPOSALS, RAISED = 'limits lowered', 'limits of proposals raised', 'limits raised'
THRESHOLDS, ONE = 'thresholds raised', 'one passes'
FORMS, TWO_STAGE = 'mmdeploy_ext.families.dense.forms', 'mmdeploy_ext.families.two_stage'
PROPOSAL_CODE = 'mmdeploy_ext.families.parts.proposals'


@functools.cache
def load(name):
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    return deploy.load(
        str(REPO / f'configs/demo/{name}_toy.py'), str(REPO / f'demo/checkpoints/{name}_toy.pth')
    )


def cases(name, *titles, **chosen):
    """Return the cases of a toy with these names, all where there are none; `chosen` are more options."""
    deployment = load(name)
    options = deployment.family.choose(opset=17, height=128, width=160, **chosen)
    trials = Trials(deployment, options, IMAGE).fitting_trials(finds_nothing=True)
    return [trial.case() for trial in trials if not titles or trial.name in titles]


@functools.cache
def right_cases(name):
    """Return all cases of a toy without a fault."""
    return cases(name)


def threshold(**changes):
    return f'{FORMS}:thresholds', settings(**changes)


def proposals(**changes):
    return f'{PROPOSAL_CODE}:thresholds', settings(**changes)


def without_the_last_level(levels, *_):
    return list(levels)[:-1]


def other_clip(facts, *_):
    return dict(facts, coder=dict(facts['coder'], wh_ratio_clip=0.02))


POSTPROCESS = 'mmdeploy_ext.exporting.postprocess.bbox2d:DenseBoxPostprocess.forward'
FAULTS = {
    'nms_pre 297 of 300': ('retinanet', LOWERED, threshold(nms_pre=lambda most: int(most * 0.99))),
    'max_per_img 99 of 100': ('retinanet', LOWERED, threshold(max_per_img=lambda most: most - 1)),
    'max_per_img capped at 80': ('retinanet', RAISED, threshold(max_per_img=lambda most: min(most, 80))),
    'the limit of a size': ('retinanet', RAISED, (f'{FORMS}:facts_of', result(other_clip))),
    'without the last level': (
        'retinanet',
        LOWERED,
        (
            POSTPROCESS,
            arguments(lambda self, *given: (self, *(one[:-1] for one in given[:3]), *given[3:])),
        ),
    ),
    'a single result is lost': ('retinanet', ONE, OF_SUPPRESSION['a single result is lost']),
    'proposals: nms_pre capped at 290': (
        'mask_rcnn',
        PROPOSALS,
        proposals(nms_pre=lambda most: min(most, 290)),
    ),
    'proposals: without the last level': (
        'mask_rcnn',
        PROPOSALS,
        (f'{PROPOSAL_CODE}:Proposals._levels', result(without_the_last_level)),
    ),
    'proposals: the limit of a size': (
        'mask_rcnn',
        PROPOSALS,
        (f'{PROPOSAL_CODE}:facts_of', result(other_clip)),
    ),
}


CAPPED = dict(
    retinanet=dict(max_candidates=600),
    mask_rcnn=dict(max_proposals=300, max_candidates=300),
)
"""Toy -> options of files with more candidates than lowered limits leave."""


@pytest.mark.parametrize('name', in_suite(CAPPED, 'retinanet'))
def test_a_file_of_constant_shapes_is_compared_with_as_many_candidates_as_lowered_limits_leave(name):
    (case,) = cases(name, LOWERED, **CAPPED[name])
    assert case.passed and case.detections[0].matched > 50, case.failures


@pytest.mark.matrix
def test_a_graph_that_gives_features_beside_proposals_is_compared_with_other_limits():
    (case,) = cases('mask_rcnn', LOWERED, form='proposals')
    assert case.passed and case.detections[0].matched > 50, case.failures


@pytest.mark.matrix
def test_masks_of_boxes_that_no_head_clips_are_compared_where_mmdet_pastes_them():
    with contextlib.ExitStack() as stack:
        model = load('mask_rcnn').model
        for head in (model.rpn_head, model.roi_head.bbox_head):
            stack.enter_context(replaced_entry(vars(head.bbox_coder), 'clip_border', False))
        found = cases('mask_rcnn', PROPOSALS, RAISED)
        pasted_anywhere = f'{TWO_STAGE}.graphs:clips_results', result(lambda clips, *_: True)
        with replaced(*pasted_anywhere), pytest.raises(RuntimeError, match='upper bound'):  # mmdet itself
            cases('mask_rcnn', RAISED)
    assert all(case.passed for case in found) and len(found) == 2


QUERY_NETWORK = 'mmdeploy_ext.families.parts.query_networks'


def without_the_last_token(scores, *_):
    return torch.where(torch.arange(scores.shape[1]) < scores.shape[1] - 1, scores, scores - 1e4)


OF_TOKENS = {
    'the last token is left out': (
        f'{QUERY_NETWORK}:DeformableNetwork.token_scores',
        result(without_the_last_token),
    ),
    'the border is wider': (f'{QUERY_NETWORK}:BORDER', lambda border: 0.06),  # a column of the first level
    'sides of another level': (f'{QUERY_NETWORK}:SIDE', lambda side: 1.01 * side),
}


@pytest.mark.parametrize('name', ['deformable_detr', 'rtdetr'])
def test_tokens_that_become_queries_are_a_list_of_their_own(name):
    (case,) = cases(name, PROPOSALS)
    (row,) = case.detections
    assert case.passed and row.reference == row.matched and row.image == 'toy.jpg: proposals'
    model = load(name).model
    (queries,) = (limit for limit in load(name).family.limits(model) if limit.list)
    assert f'{queries.key} {row.reference}' in case.name and row.reference > queries.value


@pytest.mark.parametrize('fault', OF_TOKENS)
def test_a_fault_of_tokens_that_the_decoder_hides_is_refused(fault):
    with replaced(*OF_TOKENS[fault]):
        (case,) = cases('deformable_detr', PROPOSALS)
    assert not case.passed


def test_the_decoder_does_not_run_where_tokens_are_watched():
    deployment = load('deformable_detr')
    image = deploy.prepare_fixed(deployment.rule, IMAGE[1], 128, 160)
    head = deployment.model.bbox_head
    hook = head.transformer.decoder.layers[0].register_forward_pre_hook(lambda *_: pytest.fail('it runs'))
    try:
        (rows,) = deployment.family.first_list(deployment.model, [image])
    finally:
        hook.remove()
    assert len(rows) == head.transformer.two_stage_num_proposals and 'forward' not in vars(head)


REPEATED = (
    'max_per_img capped at 80',
    'proposals: nms_pre capped at 290',
    'proposals: the limit of a size',
    'the limit of a size',
    'max_per_img 99 of 100',
)
"""Faults of the matrix. The suite has others of RetinaNet's limits, and a left-out level of proposals."""


@pytest.mark.parametrize('name', in_suite(['retinanet', 'mask_rcnn'], 'retinanet'))
def test_what_is_right_passes_with_every_row_of_every_list(name):
    found = right_cases(name)
    titles = {
        'retinanet': [LOWERED, RAISED, THRESHOLDS, ONE],  # the list of whose results is full
        'mask_rcnn': [LOWERED, PROPOSALS, RAISED, ONE],
    }[name]
    assert [case.name.split(':')[0] for case in found] == titles
    assert all(case.passed for case in found)
    counts = {case.name.split(':')[0]: [row.reference for row in case.detections] for case in found}
    assert counts.pop(ONE)[0] == 1 and min(map(min, counts.values())) > 15
    assert all(row.matched == row.reference for case in found for row in case.detections)


@pytest.mark.suite('without the last level', 'a single result is lost')
@pytest.mark.parametrize('fault', in_suite(FAULTS, *(fault for fault in FAULTS if fault not in REPEATED)))
def test_a_fault_that_pictures_hide_is_refused(fault):
    name, title, change = FAULTS[fault]
    with replaced(*change):
        (case,) = cases(name, title)
    assert not case.passed


WRITTEN = 'mmdeploy_ext.families.dense.family:DenseFamily.postprocess_facts'
SELECT = 'mmdeploy_ext.families.dense.runtime:postprocess_image'
OF_RUNTIME = {
    'metadata: nms_pre 297 of 300': (WRITTEN, settings(nms_pre=lambda most: most - max(most // 100, 1))),
    'nms_pre of all levels together': (SELECT, argument(1, lambda sizes: [sum(sizes)])),
}


@pytest.mark.parametrize('form', in_suite(['decode', 'raw'], 'raw'))
def test_a_form_that_ends_before_the_results_has_the_cases_of_the_full_one(form):
    right = right_cases('retinanet'), cases('retinanet', form=form)
    full, early = ({case.name: case for case in found} for found in right)
    assert full.keys() == early.keys() and all(case.passed for case in early.values())
    for name, case in early.items():
        assert [row.matched for row in case.detections] == [row.matched for row in full[name].detections]


@pytest.mark.parametrize('form', in_suite(['decode', 'raw'], 'raw'))
@pytest.mark.parametrize('fault', OF_RUNTIME)
def test_a_fault_of_a_form_that_ends_before_the_results_is_refused(fault, form):
    with replaced(*OF_RUNTIME[fault]):
        (case,) = cases('retinanet', LOWERED, form=form)
    assert not case.passed


@pytest.mark.suite('1.0')
@pytest.mark.parametrize('share', [1.0, 1.02])
def test_a_threshold_of_a_full_list_decides_of_results_in_a_case_of_its_own(share):
    with replaced(*threshold(score_thr=lambda least: least * share)):
        (case,) = cases('retinanet', THRESHOLDS)
    assert case.passed == (share == 1.0)
    assert 10 < case.detections[0].reference < 100


@pytest.mark.parametrize(('trial', 'area'), [(LimitsLowered, 49), (LimitsRaised, 51)])
def test_a_limit_of_areas_is_near_the_area_of_a_segment_that_it_decides_of(trial, area):
    limit = Limit(dict(stuff_area_limit=4096), 'stuff_area_limit', Kind.AREA)
    areas, ids = np.array([40, 50, 60, 55]), np.array([3, 4, 5, 1 + OFFSET])
    masks = (np.arange(100) < areas[:, None]).reshape(4, 10, 10)

    class OneMap:
        limits = (limit,)

        def lists(self):
            assert limit.value == 1
            return {'': Segments(masks, np.ones(4), ids % OFFSET, ids)}

    assert trial(OneMap()).with_areas([]) == [(limit, area)]
    assert limit.value == 4096


@pytest.mark.parametrize('trial', [LimitsLowered, LimitsRaised])
def test_the_share_that_may_be_covered_is_near_that_of_a_mask_that_it_decides_of(trial):
    limit = Limit(dict(mask_overlap=0.5), 'mask_overlap', Kind.COVERED)
    covered_shares = np.array([0.1, 0.3, 0.3, 0.99])

    class OneMap:
        limits = (limit,)

        def lists(self):
            ids = np.flatnonzero(covered_shares <= limit.value)
            return {'': Segments(np.zeros((len(ids), 2, 2), bool), np.ones(len(ids)), ids, ids)}

    ((_, share),) = trial(OneMap()).with_covered_share([])
    assert (0.1 <= share < 0.1 * 1.02) if trial is LimitsLowered else (0.1 / 1.02 < share < 0.1)


@pytest.mark.parametrize(('name', 'share'), [('proposals', 1.0), ('', 0.2)])
def test_thresholds_are_lowered_until_raised_limits_of_candidates_let_rows_in(name, share):
    """Limits of candidates for proposals are not raised with those of results: no row depends on them."""
    candidates = Limit(dict(nms_pre=500), 'nms_pre', Kind.CANDIDATES, list=name)
    threshold = Limit(dict(score_thr=0.5), 'score_thr', Kind.SCORE)

    class ManyResults:
        task, first, trial_rows = 'bbox2d', 'proposals', 400

        def scores_of(self, model, images, name):
            scores = np.linspace(1, 0, 1001)[: 10**9 if candidates.list else candidates.value]
            return scores[scores > threshold.value]

    deployment = SimpleNamespace(family=ManyResults(), model=None)
    limits = [candidates, threshold]
    trials = SimpleNamespace(
        deployment=deployment, limits=limits, image=None, computed_once=contextlib.nullcontext
    )
    raised_limits = [] if name else [(candidates, 550)]
    assert LimitsRaised(trials)._thresholds(raised_limits, '', 100, 2500) == [(threshold, 0.5 * share)]


@pytest.mark.matrix
def test_results_that_layers_run_on_are_as_many_as_memory_holds():
    family = vars(load('retinanet').family)
    with replaced_entry(family, 'bytes_per_result', lambda model: MAX_LAYER_BYTES // 150):
        few, more = cases('retinanet', LOWERED, RAISED)
    assert few.passed and more.passed
    assert 100 < more.detections[0].reference <= 150 >= few.detections[0].reference


@pytest.mark.matrix
def test_the_bytes_of_a_grid_are_those_of_its_largest_layer_for_one_box():
    from mmdet.models.builder import build_head

    from mmdeploy_ext.families.two_stage.boxes import grid_bytes

    head, sizes = build_head(dict(type='GridHead', num_convs=2, in_channels=32, point_feat_channels=8)), []
    for layer in head.modules():
        layer.register_forward_hook(
            lambda *given: sizes.append(given[-1].nbytes if torch.is_tensor(given[-1]) else 0)
        )
    head.eval()(torch.zeros(1, 32, 14, 14))
    assert max(sizes) == grid_bytes(SimpleNamespace(grid_head=head)) and grid_bytes(None) == 0


def test_corners_of_every_second_band_point_at_centres_of_small_boxes():
    from mmdeploy_ext.families.corner.family import BAND, CLOSER, closer

    shifts = torch.full((1, 2, 2 * BAND, 4), 13.0).log()
    near, far = closer(shifts).exp().split(BAND, 2)
    torch.testing.assert_close(near, torch.full_like(near, 13.0 / CLOSER))
    torch.testing.assert_close(far, torch.full_like(far, 13.0))


def test_a_part_runs_again_when_a_layer_inside_it_gives_other_outputs():
    """Heads with regions exaggerate a layer of a head that ran before for the same regions."""
    trials = Trials(load('retinanet'), load('retinanet').family.choose(height=128, width=160), IMAGE)
    model = trials.deployment.model
    sums = []
    for layer in (None, model.bbox_head.cls_convs[0].conv, None):
        with contextlib.ExitStack() as stack:
            if layer is not None:
                hook = layer.register_forward_hook(lambda *values: values[-1] * 0.5)
                stack.callback(hook.remove)
            stack.enter_context(trials.computed_once())
            with torch.no_grad():
                scores, _ = model.bbox_head(model.extract_feat(torch.ones(1, 3, 64, 64)))
            sums.append(float(scores[0].double().sum()))
    assert sums[0] == sums[2] != sums[1]


def test_trials_reuse_what_parts_of_the_model_return_in_the_run_of_the_traced_picture():
    deployment = load('retinanet')
    options = deployment.family.choose(opset=17, height=128, width=160)
    (traced, *_), runs = proof_inputs(deployment, options, [IMAGE]), []
    reference, trials = ImageReference(deployment, traced), Trials(deployment, options, IMAGE)
    with torch.no_grad(), deployment.model.backbone.register_forward_hook(lambda *_: runs.append(1)):
        trials.keep_outputs(reference)
        assert len(runs) == 1 and 'forward' not in vars(deployment.model.backbone)
        assert len(trials.lists()['']) and len(runs) == 1
    (rows,), (alone,) = reference.results, ImageReference(deployment, traced).results
    assert np.array_equal(rows.bboxes_xyxy, alone.bboxes_xyxy) and np.array_equal(rows.scores, alone.scores)


def test_the_network_of_a_file_runs_once_for_the_lists_that_trials_make_of_it(monkeypatch):
    deployment, networks = load('rtdetr'), []
    options = deployment.family.choose(opset=17, height=64, width=96)
    picture = deploy.prepare_fixed(deployment.rule, IMAGE[1], 64, 96)
    ((file, _),) = files.export_graphs(deployment, options, [picture])
    run = Runner.run
    monkeypatch.setattr(Runner, 'run', lambda runner, feeds: networks.append(feeds) or run(runner, feeds))
    trials = Trials(deployment, options, IMAGE, file)
    feeds = deployment.family.feeds([trials.image], rescale=True)
    names = deployment.family.stages(deployment.model, options)[0].outputs
    first, again = (trials._network_outputs(feeds, names) for _ in range(2))
    assert len(networks) == 1 and all(np.array_equal(first[name], again[name]) for name in names)
    trials._network_outputs(feeds, names[:1])
    mirrored = {name: np.ascontiguousarray(array[..., ::-1]) for name, array in feeds.items()}
    assert not np.array_equal(trials._network_outputs(mirrored, names)[names[0]], first[names[0]])
    assert len(networks) == 3


def test_files_of_a_model_share_the_cases_of_trials_that_run_nothing_of_the_file(monkeypatch):
    deployment = dataclasses.replace(load('retinanet'), shared={})
    options, ran = deployment.family.choose(opset=17, height=128, width=160), []
    monkeypatch.setattr(LimitsLowered, '_case', lambda trial: ran.append(trial) or len(ran))

    def case(**changes):
        file = SimpleNamespace(name='a file')
        return LimitsLowered(Trials(deployment, options.replace(**changes), IMAGE, file)).case()

    assert case() == case(dynamic=True) == case(batch=2) == 1
    assert case(height=160) == 2
    (limit,) = [limit for limit in deployment.family.limits(deployment.model) if limit.kind is Kind.ROWS]
    with changed([(limit, limit.value // 2)]):
        assert case() == 3
    monkeypatch.setattr(Trials, 'runs_file', True)
    assert [case(), case()] == [4, 5]


def test_the_model_is_as_before():
    deployment = load('retinanet')
    before = str(deployment.model.bbox_head.test_cfg)
    cases('retinanet', LOWERED)
    assert str(deployment.model.bbox_head.test_cfg) == before
    assert not {'extract_feat'} & set(vars(deployment.model))
    assert not deployment.model.bbox_head._forward_hooks and 'forward' not in vars(deployment.model.bbox_head)


def test_limits_are_restored_where_something_fails():
    config = dict(nms_pre=300)
    limit = Limit(config, 'nms_pre', Kind.CANDIDATES)
    with contextlib.suppress(ValueError), changed([(limit, 19)]):
        assert limit.value == 19
        raise ValueError
    assert config == dict(nms_pre=300)


@pytest.mark.parametrize(
    ('kind', 'value', 'smaller', 'larger'),
    [
        (Kind.CANDIDATES, 300, 19, 330),
        (Kind.CANDIDATES, 10, 9, 12),
        (Kind.OVERLAP, 0.5, 1.0, 0.6),
        (Kind.SHARE, 0.5, 0.4, 0.6),
        (Kind.NUMBER, 2.0, 1.6, 2.5),
        (Kind.NUMBER, 1, 0.8, 1.25),
        (Kind.AREA, 100, 80, 125),
        (Kind.SIDE, 0, 0, 6.0),
        (Kind.SWITCH, False, False, True),
    ],
)
def test_every_kind_of_limit_has_other_values(kind, value, smaller, larger):
    limit = Limit(dict(entry=value), 'entry', kind)
    assert (lowered(limit), raised(limit)) == (smaller, larger)
    assert raised(dataclasses.replace(limit, available=value)) == value or kind is not Kind.CANDIDATES
    keeping_all = lowered(dataclasses.replace(limit, keeps_all=2.0))
    assert keeping_all == (2.0 if kind is Kind.OVERLAP else smaller)


def test_an_export_that_gives_none_of_the_lists_fails():
    trial, family = object.__new__(LimitsLowered), SimpleNamespace(task='bbox2d', first_task='bbox2d')
    trial.trials = SimpleNamespace(deployment=SimpleNamespace(family=family), title='toy.jpg')
    trial.expected, trial.exported = lambda: dict(proposals=[1, 2]), dict
    (row,) = trial._compare_lists()
    assert not row.passed and row.missing == 2 and "none of the lists 'proposals'" in row.reason


def test_a_list_is_cut_where_rounding_mixes_nothing():
    scores = np.linspace(0.9, 0.5, 100)
    scores[97:] -= 0.1
    assert cut_at_gap(scores, 1) == 97 and cut_at_gap(scores, 98) >= 98
    assert cut_at_gap(scores[:3], 3) == 0


def test_a_graph_whose_input_are_proposals_has_no_case_of_their_limits():
    assert cases('mask_rcnn', PROPOSALS, form='regions') == []


@pytest.mark.matrix  # in the suite, nothing is shared: proofs of several files are those of the zoo
def test_proofs_that_share_results_export_again_for_other_limits_alone(monkeypatch):
    deployment = dataclasses.replace(load('atss'), shared={})
    options = deployment.family.choose(opset=17, height=128, width=160)
    exported = []
    export = files.export_graph
    monkeypatch.setattr(files, 'export_graph', lambda *args: exported.append(args) or export(*args))

    def judged():
        exported.clear()
        trials = Trials(deployment, options, IMAGE).fitting_trials(finds_nothing=True)
        cases = [trial.case() for trial in trials]
        assert all(case.passed for case in cases)
        return cases, len(exported)

    first, count = judged()
    assert count == len(first)
    assert judged() == (first, 0)
    (limit,) = [limit for limit in deployment.family.limits(deployment.model) if limit.kind is Kind.ROWS]
    with changed([(limit, limit.value // 2)]):
        _, again = judged()
    assert 0 < again <= count


class Remade(torch.nn.Module):
    """A head whose settings are another object whenever they are read."""

    @property
    def test_cfg(self):
        return dict(max_per_img=99)


def test_settings_that_are_made_anew_whenever_they_are_read_are_refused_by_name():
    kept = torch.nn.Module()
    kept.test_cfg = dict(max_per_img=99)
    assert [limit.key for limit in limits_of(torch.nn.ModuleDict(dict(head=kept)))] == ['max_per_img']
    with pytest.raises(ConfigError, match=r'head: the test_cfg of Remade is another object'):
        limits_of(torch.nn.ModuleDict(dict(head=Remade())))
