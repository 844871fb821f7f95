"""CenterPoint through both files equals mmdet3d's own test path, on sweeps that were never traced."""

import contextlib
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes

import toy_centerpoint
from marking import in_suite
from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.contract.spec import TensorSpec
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import ConfigError, DataError, InferenceError, UsageError
from mmdeploy_ext.engines.tensorrt.cuda import find_gpu
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.families.model import check_options
from mmdeploy_ext.proving.frames import judge_sweep, open_sides, read_files
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.tasks import matching
from proofs import OF_OTHER_CONTRACTS, prove_samples
from toy_atss import REPO
from toy_engines import package
from verdicts import cases_of, checks_of, graphs_of, matched_of


@pytest.fixture(scope='module')
def toy():
    return toy_centerpoint.exported()


def paths_of(folder):
    return [str(folder / f'{name}.onnx') for name in ('backbone', 'head')]


def sweeps(count):
    return [Sweep(toy_centerpoint.sweep(seed, 300 + 100 * seed), f'sweep {seed}') for seed in range(count)]


def test_the_reference_is_the_unpatched_detector(toy):
    deployment = toy[0]
    points = toy_centerpoint.sweep(0)
    with torch.no_grad():
        (result,) = deployment.model(
            return_loss=False,
            points=[[torch.from_numpy(points)]],
            img_metas=[[dict(box_type_3d=LiDARInstance3DBoxes)]],
        )
    found = deployment.family.reference(deployment.model).step(Sweep(points)).detections
    expected = result['pts_bbox']
    assert len(found) == len(expected['scores_3d']) > 5
    np.testing.assert_array_equal(np.sort(found.scores), np.sort(expected['scores_3d'].numpy()))
    assert not deployment.model.pts_middle_encoder._forward_hooks
    assert not deployment.model.pts_bbox_head._forward_hooks


def test_both_files_are_proven_on_unseen_sweeps(toy):
    deployment, folder, *_ = toy
    verdict, pairs = prove(deployment, paths_of(folder), sweeps(3), dict(engine='OnnxRuntimeBackend'))
    assert verdict.proven, [check for check in checks_of(verdict) if not check.passed]
    assert len(pairs) == 3
    assert [len(case.detections) for case in cases_of(verdict)] == [1, 1, 1, 1]
    assert cases_of(verdict)[3].name == 'one point'
    assert {'backbone: onnx.checker', 'head: onnx.checker'} <= {check.name for check in checks_of(verdict)}
    names = {row.tensor for case in cases_of(verdict) for row in case.tensors}
    assert {'bev', 'reg_0', 'heatmap_1'} <= names
    assert matched_of(verdict) > 15


@pytest.mark.parametrize('proof', OF_OTHER_CONTRACTS)
def test_a_head_with_deformable_convolutions_is_exported_at_the_opset_that_has_them_and_proven(proof):
    deployment, folder, *_ = toy_centerpoint.exported('deformable')
    models = [onnx.load(path) for path in paths_of(folder)]
    assert [entry.version for model in models for entry in model.opset_import if not entry.domain] == [19, 19]
    assert sum(node.op_type == 'DeformConv' for node in models[1].graph.node) == 4  # two branches, two tasks
    verdict, _ = proof(deployment, paths_of(folder), sweeps(3), dict(engine='OnnxRuntimeBackend'))
    assert verdict.proven, verdict.failures
    assert matched_of(verdict) > 15


def test_the_exporter_chooses_the_opset_of_a_deformable_head_and_refuses_a_lower_one(tmp_path, capsys):
    from mmdeploy_ext.cli import export_app

    _, _, config, checkpoint = toy_centerpoint.exported('deformable')
    words = [config, checkpoint, '--output-file', str(tmp_path / 'graphs')]
    assert export_app.main(words) == 0
    assert 'opset 19' in capsys.readouterr().out
    assert export_app.main([*words, '--opset-version', '17']) == 2
    assert '--opset-version 17: the model has deformable convolutions' in capsys.readouterr().err


def test_both_files_are_proven_in_openvino(toy):
    pytest.importorskip('openvino', reason='optional: pip install openvino')
    deployment, folder, *_ = toy
    verdict, _ = prove_samples(deployment, paths_of(folder), sweeps(2), dict(engine='OpenVinoBackend'))
    assert verdict.proven and verdict.subject['engine'] == 'OpenVINO'
    assert matched_of(verdict) > 10


@pytest.mark.parametrize('part', in_suite(['backbone', 'head'], 'backbone'))
def test_a_changed_weight_is_not_proven(toy, tmp_path, part):
    deployment, folder, *_ = toy
    for path in folder.glob('*.onnx'):
        model = onnx.load(path)
        if path.stem == part:
            weights = [value for value in model.graph.initializer if len(value.dims) > 1]
            weight = max(weights, key=lambda value: np.prod(value.dims))
            values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, tmp_path / path.name)
    verdict, _ = prove_samples(deployment, paths_of(tmp_path), sweeps(1), dict(engine='OnnxRuntimeBackend'))
    assert not verdict.proven
    assert [graph.name for graph in graphs_of(verdict) if not graph.passed] == [part]
    assert any(not row.passed for case in cases_of(verdict) for row in case.tensors)


def test_a_sweep_that_the_engine_refuses_is_a_failed_case(toy):
    deployment, folder, *_ = toy

    class Refusing:
        state = None

        def reset(self):
            pass

        def step(self, sweep):
            raise DataError('no')

    sweep = sweeps(1)[0]
    expected = deployment.family.reference(deployment.model).step(sweep)
    with contextlib.ExitStack() as stack:
        sides = open_sides(deployment, *read_files(deployment, paths_of(folder)), {}, stack)
        sides.runner = Refusing()
        case, pictures = judge_sweep(sides, sweep, *sides.run(sweep))
    assert not pictures and not case.passed
    assert case.detections[0].missing == len(expected.detections)


@pytest.mark.matrix
def test_a_file_that_onnx_runtime_does_not_load_is_not_proven(toy, tmp_path):
    deployment, folder, *_ = toy
    spoiled = [shutil.copy(path, tmp_path) for path in paths_of(folder)]
    model = onnx.load(spoiled[-1])
    next(node for node in model.graph.node if node.op_type == 'Conv').attribute.append(
        onnx.helper.make_attribute('auto_pad', 'NONSENSE')
    )
    onnx.save(model, spoiled[-1])
    verdict, _ = prove(deployment, spoiled, sweeps(1), dict(engine='OnnxRuntimeBackend'))
    assert not verdict.passed and any('ONNX Runtime cannot load it: ' in one for one in verdict.failures)


def test_an_engine_that_fails_on_every_sweep_is_not_proven(toy, monkeypatch):
    deployment, folder, *_ = toy

    class Failing:
        state = None

        def step(self, sweep):
            raise InferenceError('out of memory')

    monkeypatch.setattr(type(deployment.family), 'runner', lambda self, paths, engine: Failing())
    verdict, pairs = prove(deployment, paths_of(folder), sweeps(2), dict(engine='OnnxRuntimeBackend'))
    assert not verdict.proven and not pairs and not verdict.timing_ms
    assert [row.reason for case in cases_of(verdict) for row in case.detections] == [
        'no detections: out of memory'
    ] * 3


class Drifting:
    """An engine whose third run is wrong."""

    state = None

    def __init__(self, runner):
        self.runner, self.runs = runner, 0

    def step(self, sweep):
        self.runs += 1
        found = self.runner.step(sweep)
        factor = np.float32(1 if self.runs < 3 else 1.1)
        outputs = {name: array * factor for name, array in found.outputs.items()}
        return dataclasses.replace(found, outputs=outputs)


def test_a_first_sweep_that_gives_something_else_at_the_end_is_not_proven(toy, monkeypatch):
    deployment, folder, *_ = toy
    kind = type(deployment.family)
    runner = kind.runner
    monkeypatch.setattr(kind, 'runner', lambda self, paths, engine: Drifting(runner(self, paths, engine)))
    verdict, _ = prove_samples(deployment, paths_of(folder), sweeps(2), dict(engine='OnnxRuntimeBackend'))
    assert [case.passed for case in cases_of(verdict)] == [True, True]
    assert 'run again at the end' in verdict.failures[0]


def test_sweeps_with_hardly_a_box_are_no_proof(toy, monkeypatch):
    deployment, folder, *_ = toy
    monkeypatch.setattr(matching, 'MIN_MATCHED', 10_000)
    verdict, _ = prove_samples(deployment, paths_of(folder), sweeps(1), dict(engine='OnnxRuntimeBackend'))
    assert all(case.passed for case in cases_of(verdict)) and not verdict.proven
    assert 'in 1 of 1 sweeps; a proof wants 10000 or more' in verdict.failures[0]


def test_the_model_is_unchanged_by_an_export_and_a_second_one_equals_the_first(toy, tmp_path):
    deployment, folder, *_ = toy
    before = {name: value.clone() for name, value in deployment.model.state_dict().items()}
    export_files(deployment, FAMILIES['centerpoint'].choose(), str(tmp_path / 'again'))
    after = deployment.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for name in ('backbone', 'head'):
        first, second = (onnx.load(where / f'{name}.onnx') for where in (folder, tmp_path / 'again'))
        assert first.graph == second.graph


def test_metadata_says_what_is_needed_to_use_the_files(toy):
    deployment, folder, *_ = toy
    backbone, head = (read_metadata(path) for path in paths_of(folder))
    assert (backbone.form, head.form) == ('backbone', 'head')
    assert head.classes == ('car', 'bus', 'truck')
    assert head.preprocess == backbone.preprocess == deployment.rule
    assert head.preprocess.voxel_size == (0.4, 0.4, 0.4)
    assert head.postprocess.num_classes == (1, 2)


@pytest.mark.parametrize(
    'words, expected',
    [
        ({"type='HardSimpleVFE', num_features=5": "type='DynamicSimpleVFE'"}, 'pts_voxel_encoder'),
        ({"nms_type='rotate'": "nms_type='soft'"}, 'nms_type'),
        ({"type='CenterHead', in": "type='Anchor3DHead', in"}, 'pts_bbox_head'),
        ({"'CenterPoint',": "'CenterPoint', img_backbone=dict(type='ResNet'),"}, 'img_backbone'),
        ({'sparse_shape=[9, 32, 32]': 'sparse_shape=[9, 32, 40]'}, 'sparse_shape'),
        ({'use_dim=5': 'use_dim=4'}, 'use_dim'),
        ({'use_dim=5': 'use_dim=[0, 1, 2, 3]'}, 'use_dim'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_a_config_that_is_not_exported_is_refused_by_name(tmp_path, words, expected):
    toy_centerpoint.register()
    cfg = load_config(toy_centerpoint.write_config(tmp_path, words=words))
    family = find_family(cfg)
    with pytest.raises(ConfigError, match=expected):
        family.check(cfg, FAMILIES['centerpoint'].choose())
        family.build(cfg)


def test_settings_beside_the_model_where_mmdet3d_had_them_first_are_taken(tmp_path):
    toy_centerpoint.register()
    cfg = load_config(toy_centerpoint.write_config(tmp_path))
    family = find_family(cfg)
    cfg.test_cfg = cfg.model.pop('test_cfg')
    family.check(cfg, family.choose(opset=0))
    assert family.build(cfg).pts_bbox_head.test_cfg.nms_type == 'rotate'


@pytest.mark.parametrize('changes', [dict(contract='fork'), dict(layers='last')], ids=str)
def test_options_of_streams_are_refused(toy, changes):
    deployment = toy[0]
    (name,) = changes
    with pytest.raises(UsageError, match=f'--{name}'):
        options = deployment.family.choose(**changes)
        options.check()
        check_options(options, deployment.cfg, deployment.family, deployment.model)


def test_a_checkpoint_without_the_head_is_refused(toy, tmp_path):
    _, _, config, checkpoint = toy
    content = torch.load(checkpoint, weights_only=True)
    content['state_dict'] = {
        name: value for name, value in content['state_dict'].items() if 'pts_bbox_head' not in name
    }
    torch.save(content, tmp_path / 'cut.pth')
    with pytest.raises(ValueError, match=r'cut\.pth'):
        deploy.load(config, str(tmp_path / 'cut.pth'))


def page_section(title):
    page = (REPO / 'mmdeploy_ext/families/centerpoint/README.md').read_text()
    return page.split(f'## {title}\n')[1].split('\n## ')[0]


def test_the_page_states_the_contract_of_the_head():
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mmdeploy_ext.families.centerpoint.graphs import flat_outputs, head_outputs
    from mmdeploy_ext.families.parts.lidar_graphs import DenseHead, head_spec

    toy_centerpoint.register()
    cfg = load_config(str(REPO / 'projects/configs/BEVFusion/centerpoint_toy.py'))
    model = find_family(cfg).build(cfg)
    bev = TensorSpec('bev', 'float32', (1, 96, 56, 56))
    contract = head_spec('centerpoint/head', DenseHead(model, flat_outputs), bev, head_outputs(model))
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in page_section('head.onnx').splitlines()
        if line.startswith('| `')
    ]
    stated = {
        name.strip('`'): (side, dtype, shape, unit.split(';')[0])
        for name, side, dtype, shape, unit, _ in rows
    }
    for tensor in (*contract.inputs, *contract.outputs):
        kind, task = tensor.name.rsplit('_', 1) if '_' in tensor.name else (tensor.name, '')
        shape = tensor.shape_text()
        if kind == 'heatmap':
            shape = shape.replace(f'1x{(1, 2, 2, 1, 2, 2)[int(task)]}x', '1xKx')
        side = 'in' if tensor in contract.inputs else 'out'
        name = f'{kind}_t' if task else kind
        assert stated[name] == (side, tensor.dtype, shape, tensor.unit), name
    assert len(stated) == 7


def test_the_page_states_the_contract_of_pillars():
    folder = toy_centerpoint.exported('pillars')[1]
    spec = read_metadata(str(folder / 'backbone.onnx')).spec
    lines = [
        line for line in page_section('backbone.onnx with pillars').splitlines() if line.startswith('| `')
    ]
    assert [line.split('`')[1] for line in lines] == [*spec.input_names, *spec.output_names]
    assert [line.split('|')[3].strip() for line in lines] == ['float32', 'int32', 'int32', 'float32']


@pytest.fixture(scope='module')
def tables(toy, tmp_path_factory):
    """Return the files of the form that needs no split."""
    folder, family = tmp_path_factory.mktemp('tables'), toy[0].family
    export_files(toy[0], family.choose(sparse_form='tables'), str(folder))
    return paths_of(folder)


def test_the_form_for_engines_that_cannot_split_is_proven_and_found_in_the_file(toy, tables):
    """TensorRT splits by constants alone: the tables need no split."""
    assert not any(node.op_type == 'Split' for node in onnx.load(tables[0]).graph.node)
    verdict, _ = prove_samples(toy[0], tables, sweeps(2), dict(engine='OnnxRuntimeBackend'))
    assert verdict.proven, verdict.failures
    assert matched_of(verdict) > 10


@pytest.mark.skipif(find_gpu() is not None, reason='skipped: says what happens without a GPU')
def test_the_folder_is_taken_to_tensorrt_which_wants_a_gpu(toy, tables, capsys):
    from mmdeploy_ext.cli import verify_app

    package()
    words = [toy[2], toy[3], str(Path(tables[0]).parent), '--engine', 'tensorrt']
    assert verify_app.main(words) == 2
    assert 'there is no GPU 0 here; an engine needs a GPU' in capsys.readouterr().err


def test_a_form_of_a_sparse_backbone_is_refused_where_there_is_none():
    deployment = toy_centerpoint.exported('pillars')[0]
    with pytest.raises(UsageError, match=r'--sparse-form.*tiny_centerpoint\.py'):
        options = deployment.family.choose(sparse_form='tables')
        check_options(options, deployment.cfg, deployment.family, deployment.model)
