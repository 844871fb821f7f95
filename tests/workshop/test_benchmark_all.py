"""The benchmark of the whole product: cases, figures, page; nothing here depends on speed."""

import json
from pathlib import Path

import pytest

from docs._pages import benchmarks
from mmdeploy_ext.engines.registry import ENGINES

REPOSITORY = Path(__file__).resolve().parents[2]
CASES = (*benchmarks.CASES, *benchmarks.TOYS)


@pytest.mark.matrix
def test_a_toy_goes_from_checkpoint_to_page(tmp_path):
    words = ['--quick', '--only', 'atss_toy', '--threads', '1', '--engines', 'onnxruntime']
    page = tmp_path / 'page.md'
    assert benchmarks.main([*words, '--work-dir', str(tmp_path), '--page', str(page)]) == 0
    entry = json.loads((tmp_path / 'page.json').read_text())['atss_toy']
    assert [row['file'] for row in entry['rows']] == list(benchmarks.ALL) and entry['rounds'] == 3
    assert all(0 < row['q1'] <= row['median'] <= row['q3'] for row in entry['rows'])
    assert entry['sizes']['raw, INT8'] < 0.4
    text = page.read_text()
    assert '| atss_toy | 1 | 3 | raw | 1.0 | **' in text and 'OpenVINO' not in text
    assert (tmp_path / 'images/page.png').stat().st_size > 5000


def test_a_case_that_fails_is_on_the_page_with_the_tools_own_error(tmp_path, monkeypatch):
    def run(words, log):
        raise benchmarks.CommandError('no such thing')

    monkeypatch.setattr(benchmarks, 'run', run)
    page = tmp_path / 'page.md'
    words = ['--quick', '--only', 'atss_toy', 'centerpoint_toy', '--work-dir', str(tmp_path)]
    assert benchmarks.main([*words, '--page', str(page)]) == 1
    assert '- atss_toy: not measured: full: no such thing' in page.read_text()
    assert '- centerpoint_toy: not measured: portable: no such thing' in page.read_text()


def test_a_command_that_fails_gives_its_error_line(tmp_path):
    with pytest.raises(benchmarks.CommandError, match=r'missing\.onnx'):
        benchmarks.run(['check', 'missing.onnx'], tmp_path / 'log')


def test_the_page_of_the_repository_is_what_its_figures_give(tmp_path):
    cases = json.loads((REPOSITORY / 'docs/benchmarks.json').read_text())
    benchmarks.write_page(tmp_path / 'benchmarks.md', cases)
    assert (tmp_path / 'benchmarks.md').read_text() in (REPOSITORY / 'docs/benchmarks.md').read_text()


def test_every_case_names_a_config_and_has_one_engine_or_more(tmp_path):
    assert len({case.name for case in CASES}) == len(CASES)
    args = benchmarks.build_parser().parse_args(['--engines', *ENGINES])
    for case in CASES:
        assert (REPOSITORY / case.config).is_file() and case.files
        assert not case.checkpoint or (REPOSITORY / case.checkpoint).is_file()
        words = benchmarks.benchmark_words(case, args, 'c.pth', {'a': tmp_path / 'a.onnx'})
        engines = words[words.index('--engines') + 1].split(',')
        assert engines[:2] == ['torch', 'onnxruntime']
        assert not any(ENGINES[name].gpu for name in engines)


def test_a_case_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit, match='2'):
        benchmarks.main(['--only', 'atss'])
    assert '--only atss: no such case; there are atss_r50' in capsys.readouterr().err
