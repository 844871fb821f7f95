"""The benchmark of the whole product: cases, figures, page; nothing here depends on speed."""

import json
from pathlib import Path

import pytest

from docs._pages import benchmarks

REPOSITORY = Path(__file__).resolve().parents[2]


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
    assert '| atss_toy | raw | 1.0 | **' in text and 'OpenVINO' not in text
    assert (tmp_path / 'images/page.png').stat().st_size > 5000


def test_the_page_of_the_repository_is_what_its_figures_give(tmp_path):
    cases = json.loads((REPOSITORY / 'docs/benchmarks.json').read_text())
    benchmarks.write_page(tmp_path / 'benchmarks.md', cases)
    assert (tmp_path / 'benchmarks.md').read_text() in (REPOSITORY / 'docs/benchmarks.md').read_text()
