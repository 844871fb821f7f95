"""A detector's own test path as one file: exported, proven and run like any other."""

import copy
import dataclasses
import importlib

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmcv import Config
from mmcv.ops import batched_nms
from mmdet.core.export import onnx_helper
from mmdet.models.builder import DETECTORS, HEADS
from mmdet.models.dense_heads import ATSSHead
from mmdet.models.detectors import ATSS
from torch import nn

import mmdeploy_ext
import toy_two_stage
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ExportError, UsageError
from mmdeploy_ext.cli import export_app, run_app
from mmdeploy_ext.cli.weights_app import write_weights
from mmdeploy_ext.engines.tensorrt.limits import find_refusals
from mmdeploy_ext.exporting.export import save
from mmdeploy_ext.exporting.traced.functions import ranked
from mmdeploy_ext.exporting.traced.mode import Ranking
from mmdeploy_ext.exporting.traced.whole import layouts_of
from mmdeploy_ext.families.detector import prepare_fixed
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.families.traced.family import TracedFamily, check_form
from mmdeploy_ext.families.traced.reference import TracedReference
from mmdeploy_ext.families.traced.runtime import CornerFacts, YolactFacts
from mmdeploy_ext.runtime.detections import candidates_needed
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.spec.comparison import compare_named
from mmdeploy_ext.spec.metadata import read_metadata
from toy_atss import CHECKPOINT, CONFIG, PICTURE, REPO, load_toy

TOY = f"_base_ = ['{REPO}/configs/demo/atss_toy.py']\n"
MASKS = str(REPO / 'configs/demo/mask_rcnn_toy.py')
WHOLE = ('--whole', 'traced', '--shape', '128', '160')


def with_head(folder, head, settings=''):
    config = folder / f'{head}.py'
    config.write_text(TOY + f"model = dict(bbox_head=dict(type='{head}'){settings})\n")
    return str(config)


@HEADS.register_module()
class HeadWithAThreshold(ATSSHead):
    """Boxes of a selection that no family knows."""

    def get_bboxes(self, *args, **kwargs):
        found = []
        for boxes, labels in super().get_bboxes(*args, **kwargs):
            wide = boxes[:, 2] - boxes[:, 0] > boxes[:, 3] - boxes[:, 1]
            boxes[:, 4] = boxes[:, 4] * (1 - 0.5 * wide.float())
            found.append((boxes, labels))
        return found


@HEADS.register_module()
class HeadWithABranch(ATSSHead):
    def get_bboxes(self, *args, **kwargs):
        ((boxes, labels),) = super().get_bboxes(*args, **kwargs)
        if boxes[:, 4].sum() > 1e3 * boxes[:, 4].sum() - 0.5:
            boxes = boxes * 0.5
        return [(boxes, labels)]


@HEADS.register_module()
class HeadWithSettingsOfItsOwn(ATSSHead):
    def get_bboxes(self, *args, cfg=None, **kwargs):
        cfg = cfg or self.test_cfg
        nms = dict(type='nms', iou_threshold=0.6)
        own = dict(nms_pre=100, score_thr=cfg.least, nms=nms, max_per_img=20, min_bbox_size=0)
        return super().get_bboxes(*args, cfg=Config(own), **kwargs)


@HEADS.register_module()
class HeadWithABoxForNothing(ATSSHead):
    """Where nothing is found, PyTorch returns the whole image."""

    def get_bboxes(self, *args, **kwargs):
        ((boxes, labels),) = super().get_bboxes(*args, **kwargs)
        if len(boxes) == 0:
            return [(boxes.new_ones(1, 5) * 0.5, labels.new_zeros(1))]
        return [(boxes, labels)]


@HEADS.register_module()
class HeadThatMergesInNumpy(ATSSHead):
    def get_bboxes(self, *args, **kwargs):
        ((boxes, labels),) = super().get_bboxes(*args, **kwargs)
        return [self.merged(boxes, labels, **kwargs)]

    least = 0.06

    def merged(self, boxes, labels, **kwargs):
        def kept(rows):
            return [index for index, row in enumerate(np.array(rows.cpu().numpy())) if row[4] > self.least]

        rows = kept(boxes)
        return boxes[rows], labels[rows]


def test_a_graph_ends_where_code_leaves_the_tensors_and_the_verdict_says_so(tmp_path):
    config, path = with_head(tmp_path, 'HeadThatMergesInNumpy'), tmp_path / 'm.onnx'
    exported = mmdeploy_ext.export(config, CHECKPOINT, path, whole='traced', height=64, width=96)
    metadata = read_metadata(path)
    assert metadata.spec.output_names == ['boxes', 'labels', 'valid']
    assert metadata.postprocess.ends_in.startswith('bbox_head.merged() ')
    verdict = exported.prove()
    assert verdict.proven, verdict.failures
    assert any('bbox_head.merged()' in note for note in verdict.notes)
    with mmdeploy_ext.open_model(path) as model, pytest.raises(UsageError, match='merged'):
        model(np.zeros((90, 120, 3), np.uint8))


def test_a_result_for_nothing_that_a_trace_does_not_have_is_not_proven(tmp_path):
    config = with_head(tmp_path, 'HeadWithABoxForNothing')
    settings = {'model.test_cfg.score_thr': 0.0}  # so that every image has results
    path = tmp_path / 'm.onnx'
    exported = mmdeploy_ext.export(
        config, CHECKPOINT, path, whole='traced', height=128, width=160, cfg_options=settings
    )
    verdict = exported.prove()
    failed = {finding.figures['input'] for finding in verdict.findings if finding.passed is False}
    assert failed == {'a threshold that nothing passes'} and not verdict.proven


def test_a_detector_whose_family_refuses_it_is_traced_whole_and_proven(tmp_path, capsys):
    path = tmp_path / 'm.onnx'
    config = with_head(tmp_path, 'HeadWithAThreshold')
    words = [config, CHECKPOINT, '--out', str(path), '--shape', '128', '160', '--batch-size', '2', '--verify']
    assert export_app.main(words) == 0
    said = capsys.readouterr().out
    assert 'PROVEN' in said and 'traced whole' in said
    metadata = read_metadata(path)
    assert metadata.family == 'traced' and metadata.spec.output_names == ['dets', 'labels', 'valid']
    assert [tensor.axes[0] for tensor in metadata.spec.outputs] == [2, 2, 2]


def test_where_neither_the_family_nor_a_trace_takes_a_detector_both_reasons_are_said(tmp_path):
    config = with_head(tmp_path, 'HeadWithAThreshold')
    offset = {'model.test_cfg.nms.offset': 1}
    with pytest.raises(ExportError, match=r'test_cfg\.nms.*cannot be traced.*offset'):
        mmdeploy_ext.export(config, CHECKPOINT, tmp_path / 'm.onnx', height=64, width=96, cfg_options=offset)


def test_settings_that_no_family_knows_leave_weights_and_export_to_the_test_path(tmp_path):
    config = with_head(tmp_path, 'HeadWithSettingsOfItsOwn', ', test_cfg=dict(_delete_=True, least=0.05)')
    checkpoint, path = tmp_path / 'm.pth', tmp_path / 'm.onnx'
    scores, _ = write_weights(config, checkpoint)
    exported = mmdeploy_ext.export(config, checkpoint, path, height=128, width=160)
    assert scores and read_metadata(path).family == 'traced' and 'model.test_cfg' in exported.detector.refused


@DETECTORS.register_module()
class DetectorWithMasksByClass(ATSS):
    def simple_test(self, img, img_metas, rescale=False):
        maps = self.extract_feat(img)[0]
        scores, channels = maps[0].flatten(1).mean(1).sigmoid().topk(5)
        masks = nn.functional.interpolate(maps[:, channels], tuple(img_metas[0]['ori_shape'][:2]))[0] > 0
        boxes, masks = self.segm2result(masks, channels % 6, scores)
        return [(boxes, masks)]

    def segm2result(self, mask_preds, det_labels, cls_scores):
        masks, labels, scores = (one.numpy() for one in (mask_preds, det_labels, cls_scores))
        boxes = np.zeros((len(scores), 5), np.float32)
        boxes[:, 4] = scores
        by_class = [[mask for mask, label in zip(masks, labels, strict=True) if label == k] for k in range(6)]
        return [boxes[labels == k] for k in range(6)], by_class


@pytest.mark.matrix
def test_masks_that_code_sorts_by_class_in_numpy_are_proven(tmp_path):
    config, path = tmp_path / 'm.py', tmp_path / 'm.onnx'
    config.write_text(TOY + "model = dict(type='DetectorWithMasksByClass')\n")
    exported = mmdeploy_ext.export(str(config), CHECKPOINT, path, whole='traced', height=128, width=160)
    assert read_metadata(path).spec.output_names == ['scores', 'labels', 'masks', 'valid']
    verdict = exported.prove()
    assert verdict.proven, verdict.claim


def test_boxes_of_one_score_are_suppressed_in_the_order_of_their_places_as_by_onnx():
    draw = torch.Generator().manual_seed(0)
    corners = torch.randint(200, (3000, 2), generator=draw).float()
    boxes, labels = torch.cat([corners, corners + 20], 1), torch.randint(5, (3000,), generator=draw)
    scores = torch.randint(1, 4, (3000,), generator=draw) / 3
    order, cfg = scores.argsort(descending=True, stable=True), dict(type='nms', iou_threshold=0.5)
    _, best = batched_nms(boxes[order], torch.arange(3000.0, 0, -1), labels[order], cfg)
    with ranked(nn.Module(), {}):
        dets, keep = importlib.import_module('mmcv.ops.nms').batched_nms(boxes, scores, labels, cfg)
    assert torch.equal(keep, order[best]) and torch.equal(dets[:, 4], scores[keep])


def test_masks_of_a_small_picture_are_pasted_where_its_boxes_are_also_without_its_scale():
    family, model = TracedFamily(), copy.deepcopy(toy_two_stage.seeded('mask'))
    family.layout(model, traced=True)
    for rescale in (True, False):
        images = toy_two_stage.images(2)
        sizes = family.feeds(images, rescale)['ori_shape'].tolist()
        results = family.reference(model).results(images, rescale)
        assert [list(one.masks.shape[1:]) for one in results] == sizes
        assert all(one.masks.any((1, 2)).mean() > 0.9 for one in results)


def test_a_trace_is_written_by_torchscript_alone(tmp_path):
    options = dict(whole='traced', exporter='dynamo', opset=18)
    with pytest.raises(UsageError, match=r'^--exporter dynamo: '):
        mmdeploy_ext.export(CONFIG, CHECKPOINT, tmp_path / 'm.onnx', **options)


@pytest.mark.matrix
@pytest.mark.parametrize(
    'toy', ['retinanet', 'yolox', 'mask_rcnn', 'deformable_detr', 'solov2', 'decoupled_solo']
)
def test_a_trained_toy_of_every_kind_is_proven_whole_at_any_size(toy, tmp_path):
    files = [str(REPO / f'configs/demo/{toy}_toy.py'), str(REPO / f'demo/checkpoints/{toy}_toy.pth')]
    words = ['--whole', 'traced', '--dynamic-export', '--shape', '128', '160', '--verify']
    assert export_app.main([*files, '--out', str(tmp_path / 'm.onnx'), *words]) == 0


@pytest.mark.matrix
@pytest.mark.parametrize(
    ('toy', 'words'),
    [
        ('retinanet', []),
        ('retinanet', ['--outputs', 'efficient-nms', '--nms-plugin']),
        ('yolox', ['--batch-size', '2']),
        ('mask_rcnn', ['--batch-size', '2']),
    ],
)
def test_a_trained_toy_is_proven_with_constant_shapes(toy, words, tmp_path):
    files = [str(REPO / f'configs/demo/{toy}_toy.py'), str(REPO / f'demo/checkpoints/{toy}_toy.pth')]
    path = tmp_path / 'm.onnx'
    sized = ['--whole', 'traced', '--shape', '128', '160', '--for', 'tensorrt', '--verify']
    assert export_app.main([*files, '--out', str(path), *sized, *words]) == 0
    plugins = {'EfficientNMS_TRT'} if words[2:] else set()
    assert {refusal.operator for refusal in find_refusals(onnx.load(path), rtx=True)} == plugins


def test_boxes_above_a_limit_are_refused_with_a_limit_that_suffices(tmp_path):
    path = tmp_path / 'm.onnx'
    options = dict(whole='traced', height=128, width=160, max_candidates=300)
    mmdeploy_ext.export(CONFIG, CHECKPOINT, path, **options)
    verdict = mmdeploy_ext.prove(CONFIG, CHECKPOINT, path, samples=[PICTURE])
    shapes = {tensor.name: tensor.axes for tensor in read_metadata(path).spec.outputs}
    assert shapes['dets'] == (1, 100, 5) and shapes['candidates'] == (1,)
    limits = [
        candidates_needed(finding.text).get('max_candidates', 0)
        for finding in verdict.findings
        if finding.passed is False
    ]
    assert limits and min(limits) > 300
    assert not find_refusals(onnx.load(path), rtx=True)


@pytest.mark.parametrize(
    ('config', 'options', 'named'),
    [
        (CONFIG, dict(max_candidates=9, dynamic=True), '--dynamic-export'),
        (CONFIG, dict(max_candidates=9, max_proposals=9), '--max-candidates'),
        (MASKS, dict(max_candidates=9), '--max-proposals'),
    ],
)
def test_limits_that_leave_a_shape_open_are_refused(config, options, named):
    family = TracedFamily()
    chosen = family.choose(whole='traced', height=128, width=160, **options)
    with pytest.raises(UsageError, match=rf'^--max-\w+ 9: .*{named}'):
        family.check(load_config(config), chosen)


FAULTS = (
    'sigmoid_get_bboxes_single_0', 'threshold_filter_scores_and_topk_1', 'sort_filter_scores_and_topk_2',
    'exp_delta2bbox_1', 'nms_boxes_bbox_post_process_0', 'nms_scores_bbox_post_process_0',
)  # fmt: skip
"""Inner tensors of the toy ATSS."""


@pytest.fixture(scope='module')
def exported_toy(tmp_path_factory):
    path = tmp_path_factory.mktemp('whole') / 'm.onnx'
    return mmdeploy_ext.export(CONFIG, CHECKPOINT, path, whole='traced', height=128, width=160)


@pytest.fixture(scope='module')
def whole_toy(exported_toy):
    return exported_toy.files[0]


@pytest.fixture(scope='module')
def forms(exported_toy, tmp_path_factory):
    """Form -> file of the toy, of one trace."""
    detector, folder = exported_toy.detector, tmp_path_factory.mktemp('forms')
    images, files = [prepare_fixed(detector.rule, read_image(PICTURE), 128, 160)], dict(full=exported_toy)
    for form in ('raw', 'post', 'decode'):
        options = exported_toy.options.replace(form=form)
        paths, _ = export_files(detector, options, str(folder / f'{form}.onnx'), images)
        files[form] = dataclasses.replace(exported_toy, files=paths, options=options)
    return files


def outputs_of(exported, feeds):
    session = onnxruntime.InferenceSession(exported.files[0])
    names = [value.name for value in session.get_outputs()]
    taken = [value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())]
    found = session.run(names, {name: feeds[name] for name in taken if name in feeds})
    return dict(zip(names, found, strict=True))


def feeds_of(detector):
    image = prepare_fixed(detector.rule, read_image(PICTURE), 128, 160)
    return detector.family.feeds([image], rescale=True)


def test_two_halves_of_a_trace_give_what_the_whole_gives(forms):
    feeds = feeds_of(forms['full'].detector)
    whole = outputs_of(forms['full'], feeds)
    halves = outputs_of(forms['post'], feeds | outputs_of(forms['raw'], feeds))
    assert len(whole['labels'][0]) > 10 and halves.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_allclose(halves[name], array, rtol=1e-5)


def test_suppressed_candidates_are_the_results(forms):
    feeds = feeds_of(forms['full'].detector)
    whole = outputs_of(forms['full'], feeds)
    found = outputs_of(forms['decode'], feeds)
    boxes, scores, labels = (torch.from_numpy(found[f'candidate_{name}'][0]) for name in CANDIDATES)
    dets, kept = batched_nms(boxes, scores, labels, forms['full'].detector.model.test_cfg.nms)
    np.testing.assert_allclose(dets[:100].numpy(), whole['dets'][0], rtol=1e-5)
    np.testing.assert_array_equal(labels[kept][:100].numpy(), whole['labels'][0])


CANDIDATES = 'boxes', 'scores', 'labels'
PLANTED = [
    ('raw', 'bbox_head_3'), ('post', 'dets'), ('decode', 'candidate_scores'), ('decode', 'candidate_boxes'),
]  # fmt: skip


@pytest.mark.matrix
@pytest.mark.parametrize('form', ['raw', 'post', 'decode'])
def test_each_half_is_proven(form, forms):
    verdict = forms[form].prove()
    assert verdict.proven, verdict.failures


@pytest.mark.matrix
@pytest.mark.parametrize(('form', 'name'), PLANTED)
def test_a_fault_of_one_half_is_found(form, name, forms, tmp_path):
    path = with_factor(forms[form].files[0], name, tmp_path)
    verdict = mmdeploy_ext.prove(CONFIG, CHECKPOINT, path, samples=[PICTURE], edited=True)
    assert not verdict.proven


def test_a_test_path_without_an_nms_has_no_candidates(forms):
    layout = dataclasses.replace(layouts_of(forms['full'].detector.model)[True], candidates=())
    with pytest.raises(UsageError, match=r'^--postprocess decode: '):
        check_form(layout, forms['decode'].options)


def with_factor(file, name, folder):
    """Return the path of a copy of a file, with one tensor times 1.02."""
    model = onnx.load(file)
    (node,) = (node for node in model.graph.node if name in node.output)
    node.output[list(node.output).index(name)] = f'{name}_right'
    factor = onnx.numpy_helper.from_array(np.float32(1.02), f'{name}_factor')
    model.graph.initializer.append(factor)
    place = list(model.graph.node).index(node) + 1
    model.graph.node.insert(
        place, onnx.helper.make_node('Mul', [f'{name}_right', factor.name], [name], name=f'{name}_fault')
    )
    path = folder / 'faulty.onnx'
    onnx.save(model, path)
    return path


@pytest.mark.matrix
@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_in_the_graph_is_found_at_the_first_border_behind_it(name, whole_toy, tmp_path):
    path = with_factor(whole_toy, name, tmp_path)
    verdict = mmdeploy_ext.prove(CONFIG, CHECKPOINT, path, samples=[PICTURE], edited=True)
    failed = [finding.figures for finding in verdict.findings if finding.passed is False]
    assert {figures['tensor'] for figures in failed if 'tensor' in figures} == {name} and not verdict.proven


@pytest.fixture(scope='module')
def toy_borders():
    """The toy's test path on one image, and its own borders as if they were a file's."""
    detector = load_toy()
    image = prepare_fixed(detector.rule, read_image(PICTURE), 128, 160)
    reference = TracedReference(detector.model)
    with ranked(detector.model, {}) as mode:
        reference.results([image], True)
    return reference, {name: tensor.numpy() for name, tensor in mode.found.items()}


def failing(reference, tensors):
    rows = compare_named(*reference.inner_tensors(tensors), 1e-4)
    return [row.tensor for row in rows if not row.passed]


def halved_where_it_fails(name, array):
    return np.where(array < 0.05, array / 2, array) if name.startswith('threshold_filter') else array


def without_a_candidate(name, array):
    return array[:-1] if name.startswith('nms_') else array


def without_the_last(name, array):
    return array[..., :-1] if name.startswith('sort_') else array


@pytest.mark.parametrize(
    ('fault', 'place'),
    [
        (halved_where_it_fails, 'threshold_filter_scores_and_topk'),
        (without_a_candidate, 'nms_boxes_bbox_post_process_0'),
        (without_the_last, 'sort_filter_scores_and_topk'),
    ],
)
def test_a_fault_that_no_result_shows_is_found_at_its_border(fault, place, toy_borders):
    reference, tensors = toy_borders
    assert failing(reference, tensors) == []
    faulty = {name: fault(name, array) for name, array in tensors.items()}
    assert failing(reference, faulty)[0].startswith(place)


class TwoBoxes(nn.Module):
    """A suppression of two boxes, with an IoU of 0.5, and what is left in order."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self):
        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 8]])
        dets, _ = batched_nms(
            boxes, torch.tensor([0.9, 0.8]), torch.zeros(2), dict(iou_threshold=self.threshold)
        )
        return dets[:, 4].sort()


class OfTwoBoxes(TracedReference):
    def __init__(self, model):
        super().__init__(model)
        self.last = (None,), True  # one image

    def result(self):
        return self.model()


@pytest.mark.parametrize(('threshold', 'failed'), [(0.5, []), (0.6, ['sort_forward_0'])])
def test_a_suppression_differs_by_rounding_only_where_pytorch_is_at_a_tie(threshold, failed):
    tensors = dict(
        nms_boxes_forward_0=np.float32([[0, 0, 4, 4], [0, 0, 4, 8]]),
        nms_scores_forward_0=np.float32([0.9, 0.8]),
        sort_forward_0=np.float32([0.9]),
    )
    assert failing(OfTwoBoxes(TwoBoxes(threshold)), tensors) == failed


def test_a_level_without_candidates_does_not_move_the_names_of_the_next():
    given = dict(exp_sizes_0=torch.zeros(0, 4), exp_sizes_1=torch.ones(3, 4))

    def sizes(levels):
        for level in levels:
            if len(level):
                level.exp()

    with Ranking(given) as mode:
        sizes([torch.zeros(0, 4), torch.zeros(3, 4)])
    assert list(mode.found) == ['exp_sizes_1']


def test_the_classes_of_a_detector_with_masks_alone_are_those_of_its_last_mask_head():
    heads = nn.ModuleList([nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)])
    heads[1].num_classes = 7
    model = nn.Module()
    model.roi_head = nn.Module()
    model.roi_head.mask_head = heads
    assert TracedFamily().num_classes(model) == 7


def test_pytorch_ranks_the_levels_that_a_trace_of_an_older_mmdet_ranks():
    limit = torch.tensor(1000)
    with ranked(load_toy().model, {}):
        assert int(onnx_helper.get_k_for_topk(limit, 48)) == 48
    assert onnx_helper.get_k_for_topk(limit, 48) == -1


def test_a_root_in_a_function_with_a_gradient_of_its_own_starts_from_the_file():
    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx, product):
            return product.sqrt()

    with Ranking({'sqrt_forward_0': torch.full((1, 2, 3, 3), 4.0)}):
        assert torch.equal(Root.apply(torch.ones(1, 2, 3, 3)), torch.full((1, 2, 3, 3), 2.0))


@pytest.fixture(scope='module')
def branching(tmp_path_factory):
    folder = tmp_path_factory.mktemp('branching')
    path = folder / 'm.onnx'
    config = with_head(folder, 'HeadWithABranch')
    mmdeploy_ext.export(config, CHECKPOINT, path, whole='traced', height=128, width=160)
    return config, path


def test_a_branch_on_scores_is_named_with_its_line_in_the_file(branching):
    (line,) = read_metadata(branching[1]).postprocess.escapes
    assert 'test_traced.py:' in line and 'boxes[:, 4].sum()' in line


def test_an_input_that_takes_the_other_branch_is_not_proven(branching):
    config, path = branching
    verdict = mmdeploy_ext.prove(config, CHECKPOINT, path, samples=[PICTURE])
    failed = [finding for finding in verdict.findings if finding.passed is False]
    assert {finding.figures['tensor'] for finding in failed} == {'valid'} and not verdict.proven


@pytest.mark.parametrize(
    'facts',
    [
        CornerFacts(
            corner_topk=100, max_per_img=100, local_maximum_kernel=3, distance_threshold=0.5, num_classes=3
        ),
        YolactFacts(
            score_thr=0.1, iou_thr=0.5, mask_thr=0.5, nms_pre=9, top_k=9, max_per_img=9, num_classes=3
        ),
    ],
)
def test_files_of_families_of_older_versions_run(facts, branching, tmp_path):
    family, metadata = type(facts).__name__.removesuffix('Facts').lower(), read_metadata(branching[1])
    spec = dataclasses.replace(metadata.spec, outputs=metadata.spec.outputs[:-1])  # they have no `valid`
    older = dataclasses.replace(metadata, family=family, postprocess=facts, spec=spec)
    path, image, model = str(tmp_path / 'old.onnx'), np.zeros((90, 120, 3), np.uint8), onnx.load(branching[1])
    del model.graph.output[-1]
    save(model, path, older)
    with mmdeploy_ext.open_model(path) as old:
        scores = old(image).scores
    with mmdeploy_ext.open_model(branching[1]) as new, pytest.warns(UserWarning, match='valid'):
        np.testing.assert_array_equal(scores, new(image).scores)
    assert run_app.main([path, str(PICTURE), '--out', str(tmp_path / 'out')]) == 0


def test_run_warns_of_an_invalid_image_and_strict_refuses_it(branching, tmp_path, capsys):
    import cv2

    black = str(tmp_path / 'black.png')
    cv2.imwrite(black, np.zeros((90, 120, 3), np.uint8))
    words = [str(branching[1]), black, '--out', str(tmp_path / 'out')]
    with mmdeploy_ext.open_model(branching[1]) as model, pytest.warns(UserWarning, match="'valid' is false"):
        model(np.zeros((90, 120, 3), np.uint8))
    assert run_app.main(words) == 0
    assert "'valid' is false" in capsys.readouterr().err
    assert run_app.main([*words, '--strict']) == 1
