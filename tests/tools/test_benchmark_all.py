"""The benchmark of the whole product: a toy goes all the way to the page; nothing here depends on speed."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from docs._pages.benchmarks import cases, page, prepare, whole, whole_results
from docs._pages.benchmarks import tool as benchmark_all
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.engines.registry import ENGINES

REPOSITORY = Path(__file__).resolve().parents[2]
EVERY = (*cases.CASES, *cases.TOYS)
TOY = next(case for case in cases.TOYS if case.name == 'atss_toy')
SMALL = dataclasses.replace(TOY, steps=(cases.FULL,))
BROKEN = dataclasses.replace(SMALL, name='broken', title='Broken', checkpoint='demo/checkpoints/none.pth')


def run(*arguments):
    return benchmark_all.main([str(word) for word in arguments])


# ---------------------------------------------------------------- from a model to the page


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    """Status and folder of a run of two cases, one of which cannot work."""
    folder, patch = tmp_path_factory.mktemp('whole'), pytest.MonkeyPatch()
    patch.setattr(cases, 'TOYS', (BROKEN, SMALL))
    status = run(
        '--quick', '--no-memory', '--threads', 1, '--engines', 'torch', 'onnxruntime',
        '--work-dir', folder, '--page', folder / 'page.md',
    )  # fmt: skip
    yield status, folder
    patch.undo()


@pytest.mark.matrix
def test_a_toy_goes_from_checkpoint_to_page_and_a_broken_case_does_not_stop_it(measured):
    status, folder = measured
    assert status == 1, 'something failed, and the exit status says so'
    entry = json.loads((folder / 'page.json').read_text())['cases']['atss_toy']
    (one,) = entry['runs']
    torch_row, full = one['rows']
    assert (torch_row['engine'], torch_row['ratio']['median']) == ('torch', 1)
    assert (full['engine'], full['label']) == ('onnxruntime', 'full')
    assert 0 < full['ratio']['q1'] <= full['ratio']['median'] <= full['ratio']['q3']
    assert full['found'] == torch_row['found'] > 0
    assert one['rounds'] == 3 and entry['input'] == '1x3x128x160'
    text = (folder / 'page.md').read_text()
    assert '## ATSS, toy' in text and 'input 1x3x128x160; 3 rounds on 1 thread' in text
    assert '| ONNX Runtime | full | **' in text and (folder / 'images/page-cpu.png').stat().st_size > 5000


@pytest.mark.matrix
def test_the_broken_case_is_on_the_page_with_the_reason_of_the_tool_that_failed(measured):
    _, folder = measured
    entry = json.loads((folder / 'page.json').read_text())['cases']['broken']
    assert not entry['runs'][0].get('rows') and whole_results.is_failed(entry)
    text = (folder / 'page.md').read_text()
    assert '- Not measured: full: ' in text and 'demo/checkpoints/none.pth' in text
    assert str(REPOSITORY) not in text


def test_figures_that_were_kept_are_read_after_the_repository_was_moved(tmp_path):
    shop = prepare.Workshop(tmp_path, False, {}, print)
    assert whole.label_of(SMALL, shop, f'/elsewhere/work_dirs/atss_toy/{cases.FULL.name}') == cases.FULL.label


@pytest.mark.matrix
def test_no_engine_is_on_the_page_that_did_not_run_and_no_gpu_where_there_is_none(measured):
    _, folder = measured
    text = (folder / 'page.md').read_text()
    assert 'OpenVINO' not in text and 'TensorRT' not in text and '(GPU)' not in text
    assert ' ms' not in text, 'ratios only'


@pytest.mark.matrix
def test_the_page_is_written_again_from_the_figures_without_a_change(measured, tmp_path):
    _, folder = measured
    shutil.copy(folder / 'page.json', tmp_path / 'page.json')
    assert run('--page-only', '--page', tmp_path / 'page.md') == 0
    assert (tmp_path / 'page.md').read_text() == (folder / 'page.md').read_text()


def test_the_page_of_the_repository_is_what_its_figures_give(tmp_path):
    stored = REPOSITORY / 'docs/benchmarks.json'
    page.write(whole_results.read(str(stored)), str(tmp_path / 'benchmarks.md'))
    assert (tmp_path / 'benchmarks.md').read_text() == (REPOSITORY / 'docs/benchmarks.md').read_text()
    for chart in (tmp_path / 'images').iterdir():
        assert (REPOSITORY / 'docs/images' / chart.name).stat().st_size < 150_000


# ---------------------------------------------------------------- figures into tables


def row(engine, label, median, precision='fp32', found=5):
    ratio = dict(median=median, q1=median - 0.01, q3=median + 0.01)
    return dict(engine=engine, label=label, precision=precision, ratio=ratio, found=found)


def place(rows, device='cpu', threads=2, **more):
    return dict(
        device=device, threads=threads, rounds=9, rows=rows, refused=[], other_load=0.01, notes=[],
        command='python x.py', **more,
    )  # fmt: skip


def entry(*runs, **more):
    found = dict(
        title='Net', config='net.py', kind='images', weights='seeded', input='1x3x8x8', files=[], memory={},
        runs=list(runs),
    )  # fmt: skip
    return found | more


def results(**found):
    machine = dict(cpu='A CPU', cores=2, simd=['avx2'], gpu='', versions=dict(torch='1'))
    return dict(tool='benchmark_all', format=1, machine=machine, commands=['python all.py'], cases=found)


CPU_ROWS = [
    row('torch', '', 1.0),
    row('onnxruntime', 'raw', 0.6),
    row('onnxruntime', 'full', 0.5),
    row('onnxruntime', 'raw, INT8', 0.2, 'int8'),
]


def test_the_first_table_has_the_fastest_file_of_each_engine_and_precision():
    lines = page.overview(results(net=entry(place(CPU_ROWS)))['cases'])
    assert lines[0] == '| model | threads | ONNX Runtime | ONNX Runtime INT8 |'
    assert lines[2] == '| Net | 2 | **0.500** full | **0.200** raw |'


def test_a_gpu_adds_its_columns():
    gpu = place([row('torch', '', 1.0), row('tensorrt', 'raw', 0.3)], 'NVIDIA X', 2)
    found = entry(place(CPU_ROWS), gpu)
    assert page.overview(dict(net=found))[0].endswith('| ONNX Runtime INT8 | TensorRT (GPU) |')
    table = page.case_table(found, found['runs'])
    assert table[0] == '| engine | file | 2 threads | quartiles | NVIDIA X | quartiles | found |'
    assert '| TensorRT | raw | - | - | **0.300** | 0.290 .. 0.310 | 5 |' in table
    assert '| ONNX Runtime | full | **0.500** | 0.490 .. 0.510 | - | - | 5 |' in table


def test_a_run_that_others_disturbed_is_called_doubtful():
    text = page.render(results(net=entry(dict(place(CPU_ROWS), other_load=0.4))))
    assert 'others used 40.0% of the cores: doubtful' in text
    assert 'doubtful' not in page.render(results(net=entry(place(CPU_ROWS))))


def test_what_an_engine_refused_is_on_the_page():
    refused = [dict(engine='openvino', label='full', reason='has no X')]
    text = page.render(results(net=entry(dict(place(CPU_ROWS), refused=refused))))
    assert '- Not measured: OpenVINO, full: has no X' in text
    failed = entry(place(CPU_ROWS), memory_reason='it fell over')
    assert '- Not measured: memory: it fell over' in page.render(results(net=failed))


def test_new_runs_replace_those_of_the_same_place_and_what_was_left_out_keeps_the_old():
    old = entry(place(CPU_ROWS, threads=1), place(CPU_ROWS, threads=2), memory={'torch': 1})
    new = entry(place(CPU_ROWS[:2], threads=2), dict(device='cpu', threads=1, left_out=True, reason='late'))
    merged = whole_results.merged(old, new)
    assert [(one['threads'], len(one['rows'])) for one in merged['runs']] == [(1, 4), (2, 2)]
    assert merged['memory'] == {'torch': 1}
    assert whole_results.merged(None, new) is new
    assert not whole_results.is_failed(new), 'the time was spent; nothing failed'


def test_figures_of_another_machine_or_version_are_not_mixed_in(tmp_path):
    stored = results(net=entry())
    (tmp_path / 'r.json').write_text(json.dumps(stored))
    machine = stored['machine']
    assert whole_results.read_results(str(tmp_path / 'r.json'), machine, True) == stored
    assert not whole_results.read_results(str(tmp_path / 'r.json'), machine, False)['cases']
    with pytest.raises(UsageError, match=r'r\.json.*CPU.*--json'):
        whole_results.read_results(str(tmp_path / 'r.json'), dict(machine, cpu='B'), True)


# ---------------------------------------------------------------- files and commands


def test_a_file_is_made_again_only_when_what_it_comes_from_changes(tmp_path):
    made = []

    def make():
        made.append(1)
        (tmp_path / 'x').write_text('x')

    shop = prepare.Workshop(tmp_path, False, {}, print)
    for key in ('a', 'a', 'b'):
        shop.kept(tmp_path / 'x', key, make)
    assert len(made) == 2
    dataclasses.replace(shop, fresh=True).kept(tmp_path / 'x', 'b', make)
    assert len(made) == 3
    newer = dataclasses.replace(shop, versions=dict(torch='2'))
    other = dataclasses.replace(SMALL, shape=(64, 96))
    keys = {shop.key(SMALL, cases.FULL), newer.key(SMALL, cases.FULL), shop.key(other, cases.FULL)}
    assert len(keys) == 3


def test_a_command_that_hangs_is_ended_and_one_that_fails_gives_its_own_error(tmp_path):
    with pytest.raises(prepare.StepError, match='took longer than 1 s'):
        prepare.run_command(['-c', 'import time; time.sleep(60)'], tmp_path / 'log', 1)
    with pytest.raises(prepare.StepError, match=r'thing$'):
        prepare.run_command(['-c', 'raise SystemExit("error: no such thing")'], tmp_path / 'log')


def test_what_needs_a_file_that_failed_says_so_and_a_spent_budget_begins_nothing(tmp_path):
    fails = cases.Step('raw', 'raw.onnx', '-c raise(SystemExit("error:_no"))', 'raw')
    needs = cases.Step('raw_int8', 'raw.int8.onnx', '-c pass {raw} {out}', 'raw, INT8', 'int8')
    case = dataclasses.replace(TOY, steps=(fails, needs))
    shop = prepare.Workshop(tmp_path, False, {}, print)
    reasons = whole.make_files(case, shop, prepare.Deadline(None))
    assert reasons['raw_int8']['reason'] == f'needs raw: {reasons["raw"]["reason"]}'
    late = whole.run_case(case, whole.Settings(['torch'], [1]), shop, prepare.Deadline(0))
    assert late['runs'][0]['reason'] == 'left out: the 0 minutes were spent'
    assert not whole_results.is_failed(late)


def test_the_size_of_a_folder_is_that_of_its_onnx_files(tmp_path):
    for name, size in {'a.onnx': 3, 'b.onnx': 4, 'b.onnx.data': 50, 'log.txt': 600}.items():
        (tmp_path / name).write_bytes(bytes(size))
    assert prepare.size_of(tmp_path) == 57 and prepare.size_of(tmp_path / 'a.onnx') == 3


@pytest.mark.parametrize('case', [cases.TOYS[0], cases.TOYS[-1]], ids=lambda case: case.name)
def test_pytorch_alone_is_given_no_files_and_others_are(case, tmp_path):
    shop, place = prepare.Workshop(tmp_path, False, {}, print), dict(device='cpu', threads=1)
    alone = ['torch'], ['torch', 'torch-compile']
    for names, given in (*((names, False) for names in alone), (['torch', 'onnxruntime'], True)):
        words = whole.command(case, whole.Settings(names, [1]), place, shop, case.files)
        assert ('--onnx' in words) == given
        assert ('--shape' in words) == (case.kind == 'images' and not given)


def test_every_case_names_a_config_and_engines_that_its_kind_has():
    for case in EVERY:
        assert (REPOSITORY / case.config).is_file() and case.files
        assert not case.checkpoint or (REPOSITORY / case.checkpoint).is_file()
        settings = whole.Settings(list(ENGINES), [1])
        assert whole.engines_for(case, settings, gpu=False)[0] == 'torch'
        assert not any(ENGINES[name].gpu for name in whole.engines_for(case, settings, gpu=False))
    names = [case.name for case in EVERY]
    assert len(set(names)) == len(names)
    assert list(whole.ordered(dict.fromkeys(['x', *reversed(names)]))) == [*names, 'x']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--only', 'atss'], '--only atss: no such case; there are atss_r50'),
        (['--engines', 'torch', 'tvm'], '--engines torch tvm: expected some of torch,'),
        (['--engines', 'onnxruntime'], 'ratios are to PyTorch'),
        (['--threads', '0'], '--threads 0: expected positive numbers'),
        (['--threads', '1', '1'], 'each once'),
        (['--rounds', '0'], '--rounds 0: expected 1 or more'),
        (['--minutes', '-1'], '--minutes -1: expected 0 or more'),
        (['--page', 'x.html'], '--page x.html: expected a .md file'),
        (['--page', '/proc/nowhere/x.md'], '/proc/nowhere/x.md'),
        (['--page', 'x.md', '--json', 'x.md'], '--json x.md: is what --page writes, too'),
        (['--sweep', 'missing.bin'], '--sweep missing.bin: no such file'),
        (['--page-only', '--page', 'nowhere/x.md'], 'nowhere/x.json: no such file'),
        (['--page-only', '--page', 'x.md', '--json', 'pyproject.toml'], 'pyproject.toml: is not valid JSON'),
    ],
)
def test_bad_options_are_one_line_and_exit_2_before_anything_runs(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ') and message in captured.err and captured.err.count('\n') == 1
    assert captured.out == ''
