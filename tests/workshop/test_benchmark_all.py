"""The benchmark of the whole product: cases, figures, page; nothing here depends on speed."""

import json
from pathlib import Path

from dev.pages import benchmarks

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_page_of_the_repository_is_what_its_figures_give(tmp_path):
    cases = json.loads((REPOSITORY / 'docs/benchmarks.json').read_text())
    benchmarks.write_page(tmp_path / 'benchmarks.md', cases)
    assert (tmp_path / 'benchmarks.md').read_text() in (REPOSITORY / 'docs/benchmarks.md').read_text()


def test_rows_of_another_version_or_machine_go_and_others_stay(tmp_path):
    def entry(machine, *files, **figures):
        rows = [
            dict(file=file, engine='onnxruntime', median=0.5, q1=0.4, q3=0.6, memory=None) for file in files
        ]
        return dict(
            title='A', threads=2, machine=machine, rows=[row | figures for row in rows], sizes={}, notes=[]
        )

    here = 'a CPU; mm2onnx 0.0.2, torch 2'
    figures = dict(ms=20.0, per_s=50.0, gmac=2.0, gmac_per_s=100.0, peak=200.0)
    new = dict(entry(here, 'full', **figures), eager=dict(ms=40.0, per_s=25.0))
    for other in ('a CPU; mm2onnx 0.0.1, torch 2', 'another CPU; mm2onnx 0.0.2, torch 2'):
        assert benchmarks.merged(entry(other, 'raw', 'full'), new) == new
    both = benchmarks.merged(entry(here, 'raw', 'full'), new)
    benchmarks.write_page(tmp_path / 'page.md', dict(a=both))
    rows = [
        line.split('|')[2:-1] for line in (tmp_path / 'page.md').read_text().splitlines() if line[:1] == '|'
    ][2:]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0][:5] == ['', 'eager PyTorch', '', '40', '25.00']
    assert cells[1] == ['full', 'ONNX Runtime', '', '20', '50.00', '**0.500**', '', '2', '100.0', '50%']
    assert cells[2][:5] == ['raw', 'ONNX Runtime', '', '', ''] and len(cells) == 3
