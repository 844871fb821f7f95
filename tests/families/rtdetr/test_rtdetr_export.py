"""RT-DETR graphs: proven against the detector at other sizes and batches; bad input is refused."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

import toy_rtdetr
from mmdeploy_ext.core.errors import ConfigError, ShapeError, UsageError
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.rtdetr import runtime
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.inputs.inputs import proof_inputs
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.runtime import detect
from proofs import check_files
from verdicts import cases_of, checks_of, graphs_of, matched_of


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('rtdetr_export')


@pytest.fixture(scope='module')
def toy(folder):
    return toy_rtdetr.load_toy(folder)


@pytest.fixture(scope='module')
def full(toy, folder):
    return toy_rtdetr.export_toy(toy, folder / 'full.onnx')


@pytest.fixture(scope='module')
def raw(toy, folder):
    return toy_rtdetr.export_toy(toy, folder / 'raw.onnx', form='raw')


def proof(deployment, path):
    verdict, _ = prove(deployment, path, [('toy', read_image(toy_rtdetr.PICTURE))], dict(threads=1))
    assert cases_of(verdict) and all(case.detections for case in cases_of(verdict))
    return verdict


def test_the_full_graph_is_proven_at_other_sizes_and_batches(toy, full):
    verdict = proof(toy, full)
    assert verdict.proven, verdict.failures
    assert matched_of(verdict) >= 200
    model = onnx.load(full)
    assert [value.name for value in model.graph.input] == ['images', 'orig_target_sizes']
    assert [value.name for value in model.graph.output] == ['labels', 'boxes', 'scores']


@pytest.mark.matrix  # in the suite: its detections below, and its tensors in test_rtdetr_golden.py
def test_the_raw_graph_is_proven_tensor_by_tensor(toy, raw):
    verdict = proof(toy, raw)
    assert verdict.proven, verdict.failures
    assert {row.tensor.split(' ')[0] for case in cases_of(verdict) for row in case.tensors} == {
        'logits',
        'boxes',
        'tokens',
    }


def test_a_wrong_graph_is_not_proven(toy, raw, folder):
    model = onnx.load(raw)
    names = {value.name: value for value in model.graph.initializer}
    weight = next(names[name] for name in names if name.endswith('decoder.dec_score_head.2.bias'))
    values = onnx.numpy_helper.to_array(weight) + np.float32(0.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, folder / 'wrong.onnx')
    pictures = [('toy', read_image(toy_rtdetr.PICTURE))]
    (graph,) = graphs_of(check_files(toy, str(folder / 'wrong.onnx'), pictures))
    assert not graph.passed


def read_in_place_of(model, name, array, folder, turned=None):
    """Give the readers of an input a constant; or the input, turned: the array is indices of that axis."""
    for node in model.graph.node:
        node.input[:] = ['planted' if read == name else read for read in node.input]
    constant = 'planted' if turned is None else 'order'
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, constant))
    if turned is not None:
        gather = onnx.helper.make_node('Gather', [name, constant], ['planted'], axis=turned)
        model.graph.node.insert(0, gather)
    onnx.save(model, folder / 'planted.onnx')
    return str(folder / 'planted.onnx')


@pytest.fixture(scope='module')
def square(toy, folder):
    return toy_rtdetr.export_toy(toy, folder / 'square.onnx', dynamic=False, height=192, width=192)


def test_a_fixed_square_graph_is_that_of_a_fresh_export(toy, square):
    assert graphs_of(check_files(toy, square, [('toy', read_image(toy_rtdetr.PICTURE))]))[0].equal


@pytest.mark.matrix  # in the suite: a wrong weight, above
def test_a_fixed_square_graph_that_reads_height_before_width_is_not_proven(toy, square, folder):
    turned = read_in_place_of(onnx.load(square), 'orig_target_sizes', np.array([1, 0]), folder, turned=1)
    cases = cases_of(proof(toy, turned))
    passed = [case.name for case in cases if case.passed]  # those whose picture is square, too
    assert len(cases) == 6 and passed == ['traced input', 'zoomed, an object fills it']


@pytest.mark.matrix  # in the suite of ATSS: proof/test_ladder.py
def test_a_graph_that_gives_a_batch_the_size_of_its_first_image_is_not_proven(toy, full, folder):
    first = read_in_place_of(onnx.load(full), 'orig_target_sizes', np.array([0]), folder, turned=0)
    assert {case.name for case in cases_of(proof(toy, first)) if not case.passed} == {'H > 2W, batch 3'}


@pytest.mark.matrix
def test_a_graph_that_answers_for_fewer_images_is_not_proven(toy, full, folder):
    picture = np.zeros((1, 3, 192, 256), np.float32)
    verdict = proof(toy, read_in_place_of(onnx.load(full), 'images', picture, folder))
    assert 'every input reaches an output' in {check.name for check in checks_of(verdict) if not check.passed}
    batch = next(case for case in cases_of(verdict) if case.name == 'H > 2W, batch 3')
    assert 'got results of 1 images, expected 3' in batch.detections[0].reason


@pytest.mark.matrix  # in the suite: the layout's embeddings in test_rtdetr_golden.py, a fixed shape above
@pytest.mark.parametrize('opset', [16, 20])
def test_fixed_row_major_graphs_and_simplified_ones_are_proven(folder, opset):
    layout = {'model.encoder.position_layout': 'row_major'}
    deployment = toy_rtdetr.load_toy(folder, layout)
    path = toy_rtdetr.export_toy(
        deployment, folder / 'fixed.onnx', form='raw', dynamic=False, opset=opset, simplify=opset == 20
    )
    assert proof(deployment, path).proven
    with build_backend('OnnxRuntimeBackend', path) as backend, pytest.raises(ShapeError, match='fixed shape'):
        backend.infer({'images': np.zeros((1, 3, 256, 256), np.float32)})


@pytest.mark.matrix
@pytest.mark.parametrize('form', ['full', 'raw'])
def test_a_batch_stays_dynamic_where_the_size_is_fixed(toy, folder, form):
    path = toy_rtdetr.export_toy(
        toy, folder / f'batch_{form}.onnx', form=form, dynamic=False, dynamic_batch=True
    )
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*onnx.load(path).graph.input, *onnx.load(path).graph.output)
    }
    assert shapes['images'] == ['B', 3, 192, 256] and shapes['boxes'] == ['B', 60, 4]
    verdict = proof(toy, path)
    assert verdict.proven, verdict.failures
    assert [case.input_shape for case in cases_of(verdict) if case.name == 'batch of 2'] == ['2x3x192x256']
    with build_backend('OnnxRuntimeBackend', path) as backend, pytest.raises(ShapeError, match='fixed shape'):
        backend.infer(
            {
                'images': np.zeros((1, 3, 256, 256), np.float32),
                **({'orig_target_sizes': np.array([[9, 9]])} if form == 'full' else {}),
            }
        )


def test_an_input_of_too_few_tokens_is_refused_before_the_engine_runs(raw):
    message = r'an input of 32x64 gives 42 tokens for 60 queries; the smallest .* is 64x64'
    with build_backend('OnnxRuntimeBackend', raw) as backend, pytest.raises(ShapeError, match=message):
        backend.infer({'images': np.zeros((1, 3, 32, 64), np.float32)})


@pytest.mark.matrix
def test_fusing_branches_is_neutral_and_can_be_left_out(toy, raw, folder):
    apart = toy_rtdetr.export_toy(toy, folder / 'apart.onnx', form='raw', fuse=False)
    convolutions = [
        sum(node.op_type == 'Conv' for node in onnx.load(path).graph.node) for path in (raw, apart)
    ]
    assert convolutions[1] - convolutions[0] == 12  # 3 blocks in each of 4 CSP layers
    feeds = {'images': np.random.default_rng(0).random((2, 3, 128, 160), np.float32)}
    found = []
    for path in (raw, apart):
        with build_backend('OnnxRuntimeBackend', path, threads=1) as backend:
            found.append(backend.infer(feeds))
    assert np.array_equal(found[0]['tokens'], found[1]['tokens'])
    np.testing.assert_allclose(found[0]['logits'], found[1]['logits'], atol=1e-4)
    np.testing.assert_allclose(found[0]['boxes'], found[1]['boxes'], atol=1e-5)


@pytest.mark.matrix  # in the suite: graph/passes/test_grid_sample.py
def test_a_graph_of_gathers_has_no_grid_sample_and_gives_the_same(toy, raw, folder):
    path = toy_rtdetr.export_toy(toy, folder / 'gather.onnx', form='raw', grid_sample='gather')
    kinds = [{node.op_type for node in onnx.load(file).graph.node} for file in (raw, path)]
    assert 'GridSample' in kinds[0] and 'GridSample' not in kinds[1]
    assert graphs_of(check_files(toy, path, [('toy', read_image(toy_rtdetr.PICTURE))]))[0].equal
    feeds = {'images': np.random.default_rng(0).random((2, 3, 128, 160), np.float32)}
    reference = toy.family.reference(toy.model).tensors(feeds, 'raw')
    with build_backend('OnnxRuntimeBackend', path, threads=1) as backend:
        outputs = backend.infer(feeds)
    for name, wanted in reference.items():
        np.testing.assert_allclose(outputs[name], wanted, atol=1e-4, err_msg=name)


@pytest.mark.matrix
def test_a_graph_of_gathers_is_proven(toy, folder):
    path = toy_rtdetr.export_toy(toy, folder / 'gather.onnx', form='raw', grid_sample='gather')
    verdict = proof(toy, path)
    assert verdict.proven, verdict.failures


def test_runtimes_of_both_forms_give_the_detectors_detections(toy, full, raw):
    picture = read_image(toy_rtdetr.PICTURE)
    prepared = toy.rule.apply(picture)
    wanted = toy.family.reference(toy.model).results([prepared], True)[0]
    for path in (full, raw):
        with build_backend('OnnxRuntimeBackend', path, threads=1) as backend:
            got = detect.detect(backend, picture)
        assert len(got) == len(wanted) == 60
        np.testing.assert_array_equal(got.labels, wanted.labels)
        np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-5)
        np.testing.assert_allclose(got.bboxes_xyxy, wanted.bboxes_xyxy, atol=0.01)
    metas = [dict(ori_shape=picture.shape, img_shape=(256, 256, 3), scale_factor=prepared.scale_factor)]
    with torch.no_grad():
        result = toy.model.simple_test(torch.from_numpy(prepared.tensor)[None], metas, rescale=True)[0]
    rows = np.concatenate(result)
    assert np.array_equal(np.sort(rows[:, 4]), np.sort(wanted.scores))


# ---- bad input


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(form='decode'), 'postprocess decode'),
        (dict(opset=15), 'opset-version 15.*expected 16 to 20'),
        (dict(height=200), 'multiples of 32'),
        (dict(height=32, width=64), '42 tokens for num_queries=60'),
        (dict(max_candidates=5), "'rtdetr' has no such option"),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_export(toy, folder, options, message):
    with pytest.raises(UsageError, match=message):
        toy_rtdetr.export_toy(toy, folder / 'refused.onnx', **options)
    assert not (folder / 'refused.onnx').exists()


def test_other_families_have_no_fuse():
    import toy_atss

    atss = toy_atss.load_toy()
    with pytest.raises(UsageError, match=r"^--no-fuse.*'dense'"):
        atss.family.choose(fuse=False)


def test_pipelines_that_pad_are_refused(toy):
    cfg = copy.deepcopy(toy.cfg)
    for step in cfg.data.test.pipeline[1].transforms:
        if step['type'] == 'Resize':
            step['keep_ratio'] = True
    with pytest.raises(ConfigError, match='keeps the ratio or pads'):
        toy.family.preprocess_rule(cfg)


@pytest.mark.parametrize(
    ('section', 'values', 'message'),
    [
        ('test_cfg', dict(max_per_img='50'), r"test_cfg\.max_per_img='50': expected a whole number"),
        ('test_cfg', dict(max_per_img=0), r'test_cfg\.max_per_img=0: expected a positive number'),
        ('test_cfg', dict(max_per_img=10**6), 'max_per_img=1000000, more than'),
        ('decoder', dict(num_queries='60'), r"decoder\.num_queries='60', expected a positive number"),
    ],
)
def test_limits_that_are_no_numbers_of_results_are_refused(toy, section, values, message):
    cfg = copy.deepcopy(toy.cfg)
    cfg.model[section] = dict(cfg.model.get(section) or {}, **values)
    with pytest.raises(ConfigError, match=message):
        toy.family.check(cfg, SimpleNamespace(height=128, width=160, opset=17))


def test_sizes_of_zero_and_images_of_other_sizes_are_refused(full):
    images, sizes = np.zeros((1, 3, 128, 160), np.float32), np.array([[160, 128]])
    with build_backend('OnnxRuntimeBackend', full) as backend:
        with pytest.raises(ShapeError, match=r'orig_target_sizes.*0'):
            backend.infer({'images': images, 'orig_target_sizes': sizes * 0})
        with pytest.raises(ShapeError, match=r'float32 Bx3xHxW.*32'):
            backend.infer({'images': images[:, :, :100], 'orig_target_sizes': sizes})
        with pytest.raises(ShapeError, match='got int32'):
            backend.infer({'images': images, 'orig_target_sizes': sizes.astype(np.int32)})


@pytest.mark.parametrize('form', ['full', 'raw'])
def test_an_input_with_fewer_tokens_than_queries_is_refused_before_the_engine_runs(full, raw, toy, form):
    said = 'an input of 32x64 gives 42 tokens for 60 queries; the smallest square that gives enough is 64x64'
    rule = dataclasses.replace(toy.rule, img_scale=(64, 32))
    picture = read_image(toy_rtdetr.PICTURE)
    with build_backend('OnnxRuntimeBackend', dict(full=full, raw=raw)[form], threads=1) as backend:
        backend.metadata = dataclasses.replace(backend.metadata, preprocess=rule)
        with pytest.raises(ShapeError, match=said):
            detect.detect(backend, picture)
        backend.metadata = dataclasses.replace(
            backend.metadata, preprocess=dataclasses.replace(rule, img_scale=(96, 32))
        )
        assert len(detect.detect(backend, picture)) == 60  # 63 tokens
    with pytest.raises(ShapeError, match=said):
        toy.family.reference(toy.model).results([rule.apply(picture)], True)


def test_the_proof_of_a_small_dynamic_graph_takes_sizes_with_tokens_enough(toy):
    few = dataclasses.replace(toy, model=copy.deepcopy(toy.model))
    few.model.decoder.num_queries = 150
    options = FAMILIES['rtdetr'].choose(height=128, width=64, dynamic=True)
    cases = proof_inputs(few, options, [('toy', read_image(toy_rtdetr.PICTURE))])
    sizes = {case.images[0].tensor.shape[1:] for case in cases}
    assert len(sizes) >= 5 and (96, 64) not in sizes
    assert all(runtime.count_tokens(*size) >= 150 for size in sizes)


def test_sizes_in_the_wrong_order_are_named():
    shapes = [(480, 640)]
    runtime.check_target_sizes(np.array([[640, 480]]), shapes)
    cases = (
        ([[480, 640]], 'width comes first'),
        ([[640, 0]], 'positive'),
        ([[1, 2]], 'original'),
        ([[640, 480, 1]], r'expected \(1, 2\)'),
    )
    for wrong, message in cases:
        with pytest.raises(ShapeError, match=message):
            runtime.check_target_sizes(np.array(wrong), shapes)


@pytest.mark.parametrize('form', ['full', 'raw'])
def test_runtimes_refuse_sizes_that_are_not_the_images(full, raw, form):
    picture = read_image(toy_rtdetr.PICTURE)
    with build_backend('OnnxRuntimeBackend', dict(full=full, raw=raw)[form], threads=1) as backend:
        metadata = backend.metadata
        feeds = detect.make_feeds(detect.prepare(metadata, picture), metadata)
        outputs = backend.infer({name: feeds[name] for name in backend.spec.input_names})
    assert feeds['orig_target_sizes'].tolist() == [[480, 360]]
    for wrong, message in (([[360, 480]], 'width comes first'), ([[0, 360]], 'positive')):
        with pytest.raises(ShapeError, match=message):
            runtime.detections(metadata, outputs, {**feeds, 'orig_target_sizes': np.array(wrong)})


def test_padded_images_are_refused_where_boxes_are_in_pixels_of_the_original(toy):
    prepared = toy.rule.apply(read_image(toy_rtdetr.PICTURE))
    padded = dataclasses.replace(prepared, tensor=np.pad(prepared.tensor, [(0, 0), (0, 64), (0, 0)]))
    assert toy.family.feeds([padded], False)['orig_target_sizes'].tolist() == [[256, 320]]
    with pytest.raises(ShapeError, match=r'256x256.*320x256'):
        toy.family.feeds([padded], True)


def test_the_detector_refuses_sizes_that_it_would_get_wrong(toy):
    with pytest.raises(ShapeError, match='multiples of 32'):
        toy.model.extract_feat(torch.zeros(1, 3, 100, 128))
    with pytest.raises(ShapeError, match='num_queries=60'):
        toy.model.detect(torch.zeros(1, 3, 32, 64), torch.tensor([[64, 32]]))


def test_re_parameterised_blocks_are_the_blocks(toy):
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = toy.model.extract_feat(images), prepared(toy.model).extract_feat(images)
    for one, two in zip(wanted, got, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-5)


def test_the_tables_of_the_page_are_the_spec(toy):
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
    import mmdeploy_ext.families.rtdetr as package

    page = (toy_rtdetr.REPO / 'mmdeploy_ext/families/rtdetr/README.md').read_text(encoding='utf-8')
    model = copy.deepcopy(toy.model)  # a shallow copy shares its parts
    model.decoder.num_queries, model.decoder.num_classes, model.postprocess.max_per_img = 300, 80, 300
    for form in package.family.RtDetrFamily.forms:
        spec = toy.family.spec(model, FAMILIES['rtdetr'].choose(form=form, dynamic=True))
        for side, tensors in (('in', spec.inputs), ('out', spec.outputs)):
            for tensor in tensors:
                cells = (f'`{tensor.name}`', side, tensor.dtype, tensor.shape_text(), tensor.meaning)
                assert f'| {" | ".join(cells)} |' in page, cells
