"""The benchmark: turns, figures, files, errors. Nothing here depends on how fast the machine is."""

import functools
import importlib.util
import json
import os
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from mmdeploy_ext.benchmark import compiled, measure, memory, ort_profile, report
from mmdeploy_ext.benchmark.base import doubts
from mmdeploy_ext.benchmark.clocks import NetworkClock
from mmdeploy_ext.benchmark.measure import Contender, Run
from mmdeploy_ext.cli import benchmark_app
from mmdeploy_ext.core.errors import EngineError, UsageError
from mmdeploy_ext.engines.tensorrt.cuda import find_gpu
from mmdeploy_ext.families.files import export_files
from rank_processes import run_ranks

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = 'configs/demo/atss_toy.py'
SHAPE = ['--shape', '128', '160']


def register():
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401


def contender(name, seconds=1.0, engine='onnxruntime', form='full', log=None, network=0.5):
    def run(images):
        if log is not None:
            log.append((name, images))
        return Run(seconds, network, 3)

    return Contender(name, engine, form, run)


# ---------------------------------------------------------------- turns and figures


def test_every_round_runs_each_contender_once_in_an_order_that_rotates(monkeypatch):
    monkeypatch.setattr(measure, 'SETTLE_S', 0)
    log, barriers, seen = [], [], []
    names = ['torch', 'full', 'raw']
    runs = measure.interleave(
        [contender(name, log=log) for name in names],
        ['batch 0', 'batch 1'],
        rounds=3,
        warmup=2,
        before_each=lambda: barriers.append(len(log)),
        on_round=lambda index, _: seen.append(index),
    )
    rounds = [log[start : start + 3] for start in range(0, len(log), 3)]
    assert len(rounds) == 5 and barriers == list(range(15)) and seen == [0, 1, 2]
    assert all({name for name, _ in one} == set(names) for one in rounds)
    assert {one[0][0] for one in rounds[2:]} == set(names), 'each is first once in three rounds'
    assert [{batch for _, batch in one} for one in rounds[2:]] == [{'batch 0'}, {'batch 1'}, {'batch 0'}]
    assert {name: len(mine) for name, mine in runs.items()} == dict.fromkeys(names, 3), (
        'warm-up does not count'
    )


def test_a_round_that_others_disturbed_is_run_again_while_spare_rounds_last(monkeypatch):
    shares = iter([0.0, 0.5, 0.01, 0.5, 0.6, 0.02])

    class Load:
        def __enter__(self):
            self.share = next(shares)
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(measure, 'OtherLoad', Load)
    runs = measure.interleave([contender('a')], [[]], rounds=4, spare=2)
    assert [run.other_load for run in runs['a']] == [0.0, 0.01, 0.6, 0.02], (
        'the third was spoilt, and no spare was left'
    )


def test_contenders_need_names_of_their_own():
    with pytest.raises(UsageError, match='unique'):
        measure.interleave([contender('a'), contender('a')], [[]], 1)


def test_ratios_are_taken_round_by_round():
    contenders = [
        contender('torch', engine='torch', form=''),
        contender('full'),
        contender('raw', form='raw'),
    ]
    seconds = dict(torch=[1.0, 4.0, 2.0], full=[0.5, 2.0, 1.0], raw=[0.4, 1.6, 0.8])
    runs = {name: [Run(value, value / 2, 6) for value in values] for name, values in seconds.items()}
    torch_row, full_row, raw_row = measure.summarise(contenders, runs, batch=2, processes=3)
    assert torch_row['ratio_to_torch']['median'] == 1
    assert full_row['ratio_to_torch'] == dict(median=0.5, q1=0.5, q3=0.5, mad=0, min=0.5, max=0.5)
    assert raw_row['total_ms']['median'] == 800 and raw_row['network_ms']['median'] == 400
    assert raw_row['postprocess_ms']['median'] == 400 and raw_row['detections_per_image'] == 3
    assert full_row['images_per_s'] == 6, 'two images per second in each of three processes'
    (row,) = measure.compare_forms(contenders, runs)
    assert (row['graph'], row['raw'], row['ratio']['median']) == ('full', 'raw', 1.25)
    assert row['postprocess_in_graph_ms']['median'] == 100


def test_without_pytorch_there_is_no_ratio_and_an_unknown_split_stays_unknown():
    contenders = [contender('full')]
    (row,) = measure.summarise(contenders, {'full': [Run(1.0, None, 0)]}, batch=1)
    assert row['ratio_to_torch'] is None and row['network_ms'] is None and row['postprocess_ms'] is None


def test_spread_is_median_quartiles_and_mad():
    figures = measure.spread([1, 2, 3, 4, 100])
    assert figures == dict(median=3, q1=2, q3=4, mad=1, min=1, max=100)


def test_doubtful_figures_are_called_so():
    def rows(*counts):
        return [dict(detections_per_image=count) for count in counts]

    assert doubts(rows(100.0, 100.0)) == doubts(rows(100.0, 99.0), 0.01) == []
    assert 'same model' in doubts(rows(100.0, 60.0))[0]
    assert 'nothing was found' in doubts(rows(0.0, 0.0))[0]
    assert 'other processes used 40%' in doubts(rows(5.0, 5.0), 0.4)[0]


def test_the_clock_stops_at_the_last_layer_with_parameters_and_leaves_no_hook():
    import torch

    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.ReLU())
    with NetworkClock(model) as clock:
        assert len(clock.layers) == 1 and clock.last_end_s == 0
        model(torch.zeros(1, 1, 2, 2))
        assert clock.last_end_s > 0
    assert not any(module._forward_hooks for module in model.modules())


def test_a_profile_leaves_out_the_first_run_and_sums_by_operator_and_stage():
    def node(name, op, start, duration):
        return dict(cat='Node', name=f'{name}_kernel_time', ts=start, dur=duration, args=dict(op_name=op))

    events = [dict(cat='Session', name='model_loading', ts=0, dur=1)]
    for start, scale in ((10, 50), (1000, 1), (2000, 3)):
        events += [
            node('network/Conv_1', 'Conv', start, 6 * scale),
            node('network/Conv_2', 'Conv', start, 2 * scale),
            node('postprocess/TopK', 'TopK', start, scale),
            node('ReorderOutput_token_3', 'ReorderOutput', start, scale),
            dict(cat='Node', name='network/Conv_1_fence_before', ts=start, dur=999, args={}),
            dict(cat='Session', name='model_run', ts=start, dur=10 * scale),
        ]
    profile = ort_profile.summarise_profile(events, limit=2)
    assert profile['runs'] == 2
    assert profile['operators'][0] == dict(name='Conv', calls=2, ms=0.016, share=0.8)
    assert len(profile['operators']) == 2
    assert [part['name'] for part in profile['parts']] == ['network', 'postprocess', 'layout changes']
    assert profile['nodes'][0]['name'] == 'network/Conv_1'


# ---------------------------------------------------------------- the tool


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    """A folder with seeded weights, two pictures, and both graphs."""
    import torch

    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.families import model as deploy
    from mmdeploy_ext.families.base import find_family
    from mmdeploy_ext.seeded.weights import fill_seeded

    register()
    folder = tmp_path_factory.mktemp('benchmark')
    cfg = load_config(str(REPOSITORY / CONFIG))
    torch.save(dict(state_dict=fill_seeded(find_family(cfg).build(cfg)).state_dict()), folder / 'toy.pth')
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir()
    for index in range(2):
        picture = cv2.resize(rng.integers(0, 255, (8, 12, 3), np.uint8), (160, 128))
        cv2.imwrite(str(folder / 'images' / f'{index}.png'), picture)
    deployment = deploy.load(str(REPOSITORY / CONFIG), str(folder / 'toy.pth'))
    for form in ('full', 'raw'):
        options = deploy.resolve(
            deployment.family.choose(form=form, opset=0, height=128, width=160),
            deployment.model,
            deployment.rule,
        )
        traced = deploy.prepare_fixed(deployment.rule, picture, 128, 160)
        export_files(deployment, options, str(folder / f'{form}.onnx'), [traced])
    return folder


def run(toy, *arguments, files=('full', 'raw')):
    onnx = ['--onnx', *(str(toy / f'{name}.onnx') for name in files)] if files else []
    return benchmark_app.main(
        [str(REPOSITORY / CONFIG), str(toy / 'toy.pth'), *onnx, '--images', str(toy / 'images'),
         '--max-iter', '2', '--warmup', '1', '--threads', '1', *arguments],
    )  # fmt: skip


def test_one_run_gives_table_json_chart_and_profile(toy, tmp_path, capsys):
    status = run(toy, '--json', str(tmp_path / 'b.json'), '--chart', str(tmp_path / 'b.png'), '--profile',
                 '--no-memory', '--fuse-conv-bn', '--log-interval', '1', '--repeat-num', '2')  # fmt: skip
    captured = capsys.readouterr()
    assert status == 0, captured.err
    result = json.loads((tmp_path / 'b.json').read_text())
    names = ['torch', 'torch fused', 'onnxruntime full', 'onnxruntime raw']
    assert [row['name'] for row in result['contenders']] == names
    assert (result['rounds'], result['threads'], result['input_shape']) == (4, 1, '1x3x128x160')
    for row in result['contenders']:
        assert row['runs'] == len(row['samples_ms']) == 4
        assert row['total_ms']['min'] > 0 and row['ratio_to_torch']['median'] > 0
        assert row['total_ms']['min'] >= row['network_ms']['min'] > 0
        assert row['detections_per_image'] == result['contenders'][0]['detections_per_image'] > 0
    assert [row['graph'] for row in result['forms']] == ['onnxruntime full']
    assert set(result['profiles']) == {'onnxruntime full', 'onnxruntime raw'}
    profile = result['profiles']['onnxruntime full']
    assert {part['name'] for part in profile['parts']} >= {'network', 'postprocess'}
    assert 0 < len(profile['operators']) <= 10 and 'Conv' in {row['name'] for row in profile['operators']}
    chart = cv2.imread(str(tmp_path / 'b.png'))
    assert chart is not None and chart.shape[1] > 800 and chart.std() > 10
    assert all(name in captured.out for name in names) and 'Done round [4/4]' in captured.err


@pytest.mark.matrix
def test_memory_of_both_engines_is_measured(toy, tmp_path, capsys):
    status = run(toy, '--json', str(tmp_path / 'b.json'), files=('full',))
    assert status == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / 'b.json').read_text())['contenders']
    assert [row['name'] for row in rows] == ['torch', 'onnxruntime full']
    assert all(row['memory']['peak_mb'] > 0 for row in rows)


@pytest.mark.matrix
def test_without_files_the_forms_are_exported_to_a_folder_that_goes(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setattr('tempfile.tempdir', None)
    target = tmp_path / 'b.json'
    status = run(toy, *SHAPE, '--no-memory', '--samples-per-gpu', '2', '--json', str(target), files=())
    assert status == 0, capsys.readouterr().err
    result = json.loads(target.read_text())
    assert result['input_shape'] == '2x3x128x160'
    assert [row['form'] for row in result['contenders']] == ['', 'full', 'raw']
    assert all(row['memory'] is None for row in result['contenders'])
    assert not list(tmp_path.glob('mm2onnx_benchmark_*'))


@pytest.mark.skipif(importlib.util.find_spec('openvino') is None, reason='openvino is an optional extra')
def test_openvino_is_measured_beside_the_others_and_finds_the_same(toy, tmp_path):
    target = tmp_path / 'b.json'
    assert run(toy, '--engines', 'torch,openvino', '--no-memory', '--json', str(target), files=('full',)) == 0
    rows = json.loads(target.read_text())['contenders']
    assert [row['name'] for row in rows] == ['torch', 'openvino full']
    assert rows[0]['detections_per_image'] == rows[1]['detections_per_image']


def test_torch_compile_is_a_contender_that_runs_no_file(toy, tmp_path, monkeypatch):
    """What inductor makes of it is in the matrix."""
    seen, target = [], tmp_path / 'b.json'
    monkeypatch.setattr(torch, 'compile', lambda forward, **_: seen.append(forward.__self__) or forward)
    words = ['--engines', 'torch,torch-compile,onnxruntime', '--no-memory', '--json', str(target)]
    assert run(toy, *words, files=('full',)) == 0
    rows = json.loads(target.read_text())['contenders']
    assert [row['name'] for row in rows] == ['torch', 'torch-compile compiled', 'onnxruntime full']
    assert len({row['detections_per_image'] for row in rows}) == 1 and rows[1]['file'] == ''
    assert [type(part).__name__ for part in seen] == ['ResNet', 'FPN', 'ATSSHead']


def test_what_pytorch_cannot_compile_is_left_out_with_its_reason(toy, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError('\nInvalidCxxCompiler: No working C++ compiler found\nSet TORCHDYNAMO_VERBOSE=1')

    monkeypatch.setattr(torch, 'compile', lambda forward, **_: fail)
    words = ['--engines', 'torch,torch-compile', '--no-memory', '--json', str(tmp_path / 'b.json'), *SHAPE]
    assert run(toy, *words, files=()) == 0
    (refused,) = json.loads((tmp_path / 'b.json').read_text())['refused']
    assert refused['label'] == 'compiled' and refused['reason'].endswith('No working C++ compiler found')


def test_heads_of_regions_are_compiled_by_their_parts():
    class Regions(torch.nn.Module):
        """Without a `forward` of its own, as mmdet's heads of regions."""

    model, regions = torch.nn.Module(), Regions()
    model.backbone, model.roi_head = torch.nn.Sequential(torch.nn.Linear(2, 2)), regions
    regions.heads = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Conv2d(1, 1, 1)])
    regions.loss = torch.nn.ReLU()
    assert [*compiled.networks(model)] == [model.backbone, *regions.heads]


def test_memory_is_measured_with_as_many_graphs_per_network_as_times():
    import torch._dynamo.config
    import torch._inductor.config

    def settings():
        return torch._dynamo.config.recompile_limit, torch._inductor.config.freezing

    with compiled.while_compiling():
        in_parent = settings()
    before = torch._dynamo.config.patch(recompile_limit=8), torch._inductor.config.patch(freezing=False)
    with before[0], before[1]:
        compiled.compiled_in_child(torch.nn.Linear(2, 2))
        assert settings() == in_parent


@pytest.mark.timeout(1200)
@pytest.mark.matrix
def test_inductor_finds_what_eager_finds(toy, tmp_path):
    target = tmp_path / 'b.json'
    assert run(toy, '--engines', 'torch,torch-compile', '--json', str(target), *SHAPE, files=()) == 0
    rows = json.loads(target.read_text())['contenders']
    assert rows[0]['detections_per_image'] == rows[1]['detections_per_image'] > 0
    assert all(row['memory']['peak_mb'] > 0 for row in rows)


def test_files_of_the_same_form_go_by_their_names(toy, tmp_path):
    (tmp_path / 'other.onnx').write_bytes((toy / 'full.onnx').read_bytes())
    target = tmp_path / 'b.json'
    arguments = ['--onnx', str(toy / 'full.onnx'), str(tmp_path / 'other.onnx'), '--engines', 'onnxruntime']
    assert run(toy, *arguments, '--no-memory', '--json', str(target), files=()) == 0
    rows = json.loads(target.read_text())['contenders']
    assert [row['name'] for row in rows] == ['onnxruntime full', 'onnxruntime other']
    assert all(row['ratio_to_torch'] is None for row in rows)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--engines', 'torch,tensorflow'], '--engines torch,tensorflow: expected some of'),
        (['--engines', 'torch,torch'], 'each once'),
        (['--max-iter', '0'], '--max-iter 0: expected 1 or more'),
        (['--threads', '-1'], '--threads -1: expected 0 or more'),
        (['--shape', '1', '2', '3'], '--shape 1 2 3: expected one or two'),
        (['--shape', '128', '192'], 'one run measures one size'),
        (['--samples-per-gpu', '4'], 'one run measures one size'),
        (['--chart', 'b.jpg'], '--chart b.jpg: expected a .png'),
        (['--onnx', 'missing.onnx'], 'missing.onnx: no such ONNX file'),
        (['--images', 'missing.jpg'], 'missing.jpg: no such image'),
        (['--json', '/proc/nowhere/b.json'], '/proc/nowhere/b.json'),
    ],
)
def test_bad_options_are_one_line_and_exit_2_before_anything_is_measured(toy, arguments, message, capsys):
    assert run(toy, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ') and message in captured.err and captured.err.count('\n') == 1
    assert captured.out == ''


@pytest.mark.parametrize('shape', [(3, 128, 160), (3, 128, 192), (2, 8)])
def test_a_network_input_from_a_file_is_measured_instead_of_images(toy, shape, tmp_path, capsys):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.savez(tmp_path / 'input.npz', input=values, img_shape=(128, 150), ori_shape=(256, 300))
    paths = [str(REPOSITORY / CONFIG), str(toy / 'toy.pth'), '--onnx', str(toy / 'full.onnx')]
    words = ['--max-iter', '1', '--warmup', '0', '--threads', '1', '--no-memory']
    words += ['--prepared', str(tmp_path / 'input.npz'), '--json', str(tmp_path / 'b.json')]
    if shape != (3, 128, 160):
        assert benchmark_app.main([*paths, *words]) == 2
        assert 'input.npz' in capsys.readouterr().err
        return
    assert benchmark_app.main([*paths, *words]) == 0
    result = json.loads((tmp_path / 'b.json').read_text())
    assert (result['input_shape'], result['images']) == ('1x3x128x160', 0)
    assert len({row['detections_per_image'] for row in result['contenders']}) == 1


def test_when_every_file_is_refused_the_reasons_are_told(toy, tmp_path, capsys):
    model = onnx.load(toy / 'raw.onnx')
    first = model.graph.node[0]
    first.op_type, first.domain = 'NoSuchOperator', 'nowhere'
    model.opset_import.append(onnx.helper.make_opsetid('nowhere', 1))
    onnx.save(model, tmp_path / 'bad.onnx')
    arguments = ['--onnx', str(tmp_path / 'bad.onnx'), '--no-memory', '--skip-refused']
    assert run(toy, '--engines', 'onnxruntime', *arguments, files=()) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: nothing is left to measure') and error.count('\n') == 1
    assert f'onnxruntime raw ({tmp_path / "bad.onnx"})' in error and 'NoSuchOperator' in error


def test_an_engine_that_is_not_installed_is_named_with_the_fix(toy, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        'importlib.util.find_spec', lambda name: None if name == 'openvino' else find_spec(name)
    )
    assert run(toy, '--engines', 'torch,openvino') == 2
    assert 'pip install openvino' in capsys.readouterr().err


@pytest.mark.skipif(find_gpu() is not None, reason='a GPU is there')
@pytest.mark.parametrize(
    ('found', 'reason'), [(True, 'tensorrt: there is no GPU here'), (None, 'make env-tensorrt')]
)
def test_tensorrt_without_package_or_gpu_is_refused_by_name(found, reason, toy, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        'importlib.util.find_spec', lambda name: found if 'tensorrt' in name else find_spec(name)
    )
    assert run(toy, '--engines', 'torch,tensorrt') == 2
    assert reason in capsys.readouterr().err


def test_the_chart_takes_one_bar_and_no_ratio(tmp_path):
    figures = measure.spread([1.0, 2.0])
    row = dict(name='onnxruntime full', total_ms=figures, network_ms=None, ratio_to_torch=None)
    result = dict(config='c.py', input_shape='1x3x8x8', threads=1, rounds=2, machine=dict(cpu='cpu', cores=1),
                  processes=1, contenders=[row])  # fmt: skip
    report.write_chart(result, tmp_path / 'b.png')
    assert cv2.imread(str(tmp_path / 'b.png')) is not None


@pytest.mark.matrix
def test_two_processes_share_the_rounds_and_the_first_one_reports(toy, tmp_path):
    words = [
        'tools/analysis_tools/benchmark.py', CONFIG, toy / 'toy.pth', '--launcher', 'pytorch',
        '--max-iter', 4, '--warmup', 0, '--no-memory', '--images', toy / 'images', *SHAPE,
        '--json', tmp_path / 'b.json',
    ]  # fmt: skip
    ended = run_ranks(tmp_path, [words, words])
    assert [code for code, _, _ in ended] == [0, 0], ended
    found = json.loads((tmp_path / 'b.json').read_text())
    assert (found['processes'], found['rounds']) == (2, 4)
    assert [out.count('vs PyTorch') for _, out, _ in ended] == [1, 0]


def dies(_):
    os._exit(3)


def test_a_process_that_dies_is_an_error_and_not_a_wait():
    call = functools.partial(dies, np.zeros(1_000_000))
    with pytest.raises(EngineError, match=r'm\.onnx.*\(exit.*3'):
        memory.measure(call, 'm.onnx')
