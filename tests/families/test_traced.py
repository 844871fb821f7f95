"""A detector's own test path as one file: exported, proven and run like any other."""

import numpy as np
import onnx
import pytest
from mmdet.models.builder import HEADS
from mmdet.models.dense_heads import ATSSHead

import mmdeploy_ext
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.cli import export_app, run_app
from mmdeploy_ext.spec.metadata import read_metadata
from toy_atss import CHECKPOINT, CONFIG, PICTURE, REPO

TOY = f"_base_ = ['{REPO}/configs/demo/atss_toy.py']\n"
WHOLE = ('--whole', 'traced', '--shape', '128', '160')


def with_head(folder, head):
    config = folder / f'{head}.py'
    config.write_text(TOY + f"model = dict(bbox_head=dict(type='{head}'))\n")
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
class HeadWithABoxForNothing(ATSSHead):
    """Where nothing is found, PyTorch returns the whole image."""

    def get_bboxes(self, *args, **kwargs):
        ((boxes, labels),) = super().get_bboxes(*args, **kwargs)
        if len(boxes) == 0:
            return [(boxes.new_ones(1, 5) * 0.5, labels.new_zeros(1))]
        return [(boxes, labels)]


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
    words = [config, CHECKPOINT, '--out', str(path), '--shape', '128', '160', '--verify']
    assert export_app.main(words) == 0
    said = capsys.readouterr().out
    assert 'PROVEN' in said and 'traced whole' in said
    metadata = read_metadata(path)
    assert metadata.family == 'traced' and metadata.spec.output_names == ['dets', 'labels', 'valid']


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


FAULTS = (
    'sigmoid_get_bboxes_single_0', 'threshold_filter_scores_and_topk_1', 'sort_filter_scores_and_topk_2',
    'exp_delta2bbox_1', 'nms_boxes_bbox_post_process_0', 'nms_scores_bbox_post_process_0',
)  # fmt: skip
"""Inner tensors of the toy ATSS."""


@pytest.fixture(scope='module')
def whole_toy(tmp_path_factory):
    path = tmp_path_factory.mktemp('whole') / 'm.onnx'
    mmdeploy_ext.export(CONFIG, CHECKPOINT, path, whole='traced', height=128, width=160)
    return path


@pytest.mark.matrix
@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_in_the_graph_is_found_at_the_first_border_behind_it(name, whole_toy, tmp_path):
    model = onnx.load(whole_toy)
    (node,) = (node for node in model.graph.node if name in node.output)
    node.output[list(node.output).index(name)] = f'{name}_right'
    factor = onnx.numpy_helper.from_array(np.float32(1.02), f'{name}_factor')
    model.graph.initializer.append(factor)
    place = list(model.graph.node).index(node) + 1
    model.graph.node.insert(
        place, onnx.helper.make_node('Mul', [f'{name}_right', factor.name], [name], name=f'{name}_fault')
    )
    path = tmp_path / 'faulty.onnx'
    onnx.save(model, path)
    verdict = mmdeploy_ext.prove(CONFIG, CHECKPOINT, path, samples=[PICTURE], edited=True)
    failed = [finding.figures for finding in verdict.findings if finding.passed is False]
    assert {figures['tensor'] for figures in failed if 'tensor' in figures} == {name} and not verdict.proven


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
