"""Parts of a detector that no library knows: inputs, axes, constants, and what is refused."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import toy_parts
from mmdeploy_ext.base.errors import ConfigError, ExportError, UsageError
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.graphs.io.files import load
from mmdeploy_ext.proving.parts import export as parts_export
from mmdeploy_ext.proving.parts.export import export_folder, names_for, record_parts
from mmdeploy_ext.proving.parts.folder import CutFolder
from mmdeploy_ext.proving.parts.listing import candidates_of, proposal_of
from mmdeploy_ext.proving.parts.proof import prove_folder
from mmdeploy_ext.proving.parts.results import paired
from mmdeploy_ext.proving.parts.samples import run_test_path
from mmdeploy_ext.proving.parts.swap import with_parts


def line_of(words):
    lines = Path(toy_parts.__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if words in line)


def exported(tmp_path, how, parts, sizes=(8, 8, 8)):
    return export_folder(toy_parts.ToyDeployment(how), parts, toy_parts.samples(sizes), tmp_path / 'cut')[0]


def results_of(folder, sample, how=''):
    model = toy_parts.ToyDeployment(how).make()
    expected = run_test_path(model, sample)['logits']
    with with_parts(model, folder.path):
        return run_test_path(model, sample)['logits'].numpy(), expected.numpy()


def test_an_array_of_the_metas_is_an_input_that_another_rig_changes(tmp_path):
    folder = exported(tmp_path, '', ['extract_feat()', 'head'])
    inputs = {tensor['name']: tensor for tensor in folder.entries[1]['inputs']}
    assert inputs['lidar2img']['shape'] == [1, 4, 4]
    sample = toy_parts.samples()[2]
    sample['img_metas'][0]['lidar2img'] = np.eye(4) * 3
    got, expected = results_of(folder, sample)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize('how', ['', 'bright'])
def test_a_branch_that_only_bright_images_take_is_found_and_its_line_is_named(tmp_path, how):
    factory, given = toy_parts.ToyDeployment(how), toy_parts.samples()
    exported_parts = export_folder(factory, ['extract_feat()', 'head'], given, tmp_path / 'cut')
    verdict = prove_folder(factory, exported_parts[0], given, exported_parts[1:])
    assert verdict.passed != bool(how), verdict.failures
    assert any('toy_parts.py' in text for text in verdict.untraced) == bool(how)
    assert any('toy_parts.py' in text for text in verdict.model_classes)
    assert all('bright' in failure for failure in verdict.failures)


def test_a_comment_in_a_file_of_the_users_is_a_note(tmp_path):
    factory, given = toy_parts.ToyDeployment(), toy_parts.samples()
    folder, *recorded = export_folder(factory, ['extract_feat()', 'head'], given, tmp_path / 'cut')
    for entry in folder.facts['classes']:
        entry['sha256'] = 'of the file without the comment'
    verdict = prove_folder(factory, folder, given, recorded)
    assert verdict.passed and any('toy_parts.py' in note for note in verdict.notes)


def test_inputs_keep_the_order_in_which_the_code_reads_them(tmp_path):
    folder = exported(tmp_path, 'after', ['head'])
    assert [tensor['name'] for tensor in folder.entries[0]['inputs']][1:] == ['lidar2img', 'after']
    got, expected = results_of(folder, toy_parts.samples()[1], 'after')
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_arrays_of_equal_values_are_inputs_of_their_own_keys(tmp_path):
    folder = exported(tmp_path, 'rig', ['head'])
    names = [tensor['name'] for tensor in folder.entries[0]['inputs']]
    assert names[1:] == ['lidar2img', 'ego2global', 'lidar2ego']
    sample = toy_parts.samples()[1]
    sample['img_metas'][0]['lidar2ego'] = np.diag([1.0, 2.0, 3.0, 4.0])
    got, expected = results_of(folder, sample, 'rig')
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ('how', 'key', 'other'), [('visible', 'lidar2ego', np.eye(4) * 1.1), ('order', 'order', np.arange(4))]
)
def test_a_graph_for_one_rig_alone_refuses_another_rig(tmp_path, how, key, other):
    factory, given = toy_parts.ToyDeployment(how), toy_parts.samples()
    folder = exported(tmp_path, how, ['head'])
    (entry,) = folder.entries
    assert list(entry['rig']) == [key] and entry['inputs'][-1]['name'] == 'lidar2img'
    verdict = prove_folder(factory, folder, given)
    assert verdict.passed and any(key in note for note in verdict.notes)
    given[0]['img_metas'][0][key] = other
    with pytest.raises(ConfigError, match=key):
        results_of(folder, given[0], how)


@pytest.mark.parametrize(('how', 'sizes'), [('large', (8, 12)), ('number', (8,))])
def test_a_graph_that_is_wrong_on_other_arguments_is_not_written(tmp_path, how, sizes):
    with pytest.raises(ExportError, match='logits'):
        exported(tmp_path, how, ['head'], sizes=sizes)
    assert not (tmp_path / 'cut').exists()


def test_a_wrong_graph_is_not_written_if_pytorch_fails_when_the_part_runs_again(tmp_path, monkeypatch):
    def failing(*_):
        raise RuntimeError('takes no such numbers')

    monkeypatch.setattr(parts_export, 'run_part', failing)
    with pytest.raises(ExportError, match='logits'):
        exported(tmp_path, 'large', ['head'], sizes=(8, 12))


def test_tensors_get_the_names_of_a_file_for_all_parts_or_for_one():
    form = SimpleNamespace(part=SimpleNamespace(text='head'), inputs=('a', 'b'), outputs=('c',))
    names = {'a': 'x', 'b': 'y', 'head: b': 'z', 'neck: c': 'n'}
    assert names_for(form, names) == dict(a='x', b='z', c='c')
    with pytest.raises(UsageError, match='x would be the name of two tensors'):
        names_for(form, names | {'c': 'x'})


def test_axes_that_differ_between_calls_are_dynamic(tmp_path):
    folder = exported(tmp_path, '', ['backbone+neck'], sizes=(8, 12, 16))
    (entry,) = folder.entries
    assert isinstance(entry['inputs'][0]['shape'][2], str)
    assert entry['inputs'][0]['shape'][3] == 8
    got, expected = results_of(folder, toy_parts.samples((20,))[0])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ('how', 'part', 'key'),
    [
        ('constant', 'head', r'img_metas\.0\.scale'),
        ('numpy', 'head', r'toy_parts\.py:\d+'),
        ('inplace', 'head', r'feats\.0'),
        ('memory', 'head', r'head\.memory'),
        ('random', 'head', rf'toy_parts\.py:{line_of("torch.rand_like")}\b.*--seeded'),
        ('numpy random', 'head', rf'toy_parts\.py:{line_of("np.random.rand(")}\b.*--seeded'),
        ('nan', 'head', '4 of 4 values of result.logits are NaN'),
        ('between', 'backbone+neck', 'neck'),
    ],
)
def test_what_is_no_graph_is_refused_by_name_and_nothing_is_written(tmp_path, how, part, key):
    with pytest.raises(ConfigError, match=key):
        exported(tmp_path, how, [part])
    assert not (tmp_path / 'cut').exists()


@pytest.mark.parametrize('how', ['random', 'numpy random'])
def test_random_numbers_are_constants_if_they_are_seeded(tmp_path, how, request):
    if request.config.option.disturb is not None:
        pytest.skip('skipped: the numbers that the part draws are disturbed')
    factory, given = toy_parts.ToyDeployment(how), toy_parts.samples()
    exported_parts = export_folder(factory, ['head'], given, tmp_path / 'cut', dict(seeded=True))
    assert prove_folder(factory, exported_parts[0], given, exported_parts[1:]).passed
    assert prove_folder(factory, CutFolder.read(tmp_path / 'cut'), given).passed


def test_an_operator_without_an_onnx_form_is_refused_with_its_line(tmp_path):
    with pytest.raises(ExportError, match=r'svd.*toy_parts\.py:\d+'):
        exported(tmp_path, 'operator', ['head'])
    assert not (tmp_path / 'cut').exists()


def test_all_parts_have_the_lowest_opset_that_one_of_them_needs(tmp_path):
    folder = exported(tmp_path, 'volume', ['backbone+neck', 'head'])
    opsets = [load(str(folder.file(entry))).opset_import[0].version for entry in folder.entries]
    assert opsets == [20, 20]


def test_a_graph_that_no_session_loads_is_not_written(tmp_path, monkeypatch):
    # the operator has an ONNX form, but no kernel: a node of another domain
    def foreign(*args, **kwargs):
        graph = export_module(*args, **kwargs)
        graph.graph.node[-1].domain = 'elsewhere'
        graph.opset_import.add(domain='elsewhere', version=1)
        return graph

    monkeypatch.setattr(parts_export, 'export_module', foreign)
    with pytest.raises(ExportError, match='elsewhere'):
        exported(tmp_path, '', ['head'])
    assert not (tmp_path / 'cut').exists()


def test_calls_of_two_forms_are_refused_with_both():
    with pytest.raises(ConfigError, match=r'float64.*float32'):
        record_parts(toy_parts.ToyDeployment('two forms'), ['head.linear'], toy_parts.samples())


def test_modules_inside_of_a_part_that_exports_are_not_listed():
    candidates = candidates_of(toy_parts.ToyDeployment('constant'), toy_parts.samples(), {})
    assert [part.path for part in candidates] == ['backbone', 'neck', 'head', 'head.linear']
    assert 'scale' in candidates[2].reason
    even = [dataclasses.replace(part, share=0.25) for part in candidates]
    assert proposal_of(even) == ['backbone+neck', 'head.linear']
    even[-1].share = 0.02  # 95 % of what exports is named without it
    assert proposal_of(even) == ['backbone+neck']


def test_what_a_step_inside_of_a_part_returns_is_read_by_no_other_code(tmp_path):
    deployment, (sample, *_) = toy_parts.ToyDeployment('skip'), toy_parts.samples()
    candidates = candidates_of(deployment, toy_parts.samples(), {})
    even = [dataclasses.replace(part, share=0.25) for part in candidates]
    assert proposal_of(even) == ['backbone', 'neck', 'skip', 'head']
    model = deployment.make()
    with (
        with_parts(model, exported(tmp_path, 'skip', ['backbone+neck']).path),
        pytest.raises(ConfigError, match=r'what backbone returns.*conv2d'),
    ):
        model(**sample)


def test_methods_and_entries_of_lists_are_listed_where_no_forward_is_called():
    candidates = candidates_of(toy_parts.ToyDeployment('regions'), toy_parts.samples(), {})
    exported = {part.path: not part.reason for part in candidates}
    assert exported['regions.simple_test()'] is False
    assert exported['regions.stages.0'] and exported['regions.stages.1']
    assert 'regions.described()' not in exported
    even = [dataclasses.replace(part, share=0.1) for part in candidates]
    assert proposal_of(even)[-1] == 'regions.stages.1'


def test_rows_of_a_ranking_are_matched_in_any_order_and_moved_boxes_are_found():
    def ranking(order):
        return [(torch.arange(12.0).reshape(3, 4)[order], torch.full((3,), 0.5), torch.tensor(order))]

    assert not paired('', ranking([0, 1, 2]), ranking([2, 0, 1])).failures
    wrong = ranking([2, 0, 1])
    wrong[0][0][1] += 1
    assert paired('', ranking([0, 1, 2]), wrong).failures


def map_result(order, prefix):
    scores = torch.tensor([0.9, 0.7, 0.5])[order]
    points, labels = torch.arange(12.0).reshape(3, 2, 2)[order], torch.tensor(order)
    fields = dict(scores_3d=scores, labels_3d=labels, boxes_3d=points.flatten(1), pts_3d=points)
    return [{f'{prefix}{key}': value for key, value in fields.items()}]


@pytest.mark.parametrize('prefix', ['map_', ''])
def test_rows_of_maps_are_matched_in_any_order_and_moved_points_are_found(prefix):
    reference = map_result([0, 1, 2], prefix)
    assert not paired('', reference, map_result([2, 0, 1], prefix)).failures
    moved = map_result([0, 1, 2], prefix)
    moved[0][f'{prefix}pts_3d'][1] += 0.1
    assert paired('', reference, moved).failures
