"""The benchmark of the whole product: cases, figures, page; nothing here depends on speed."""

import json
from pathlib import Path

from dev.pages import benchmarks

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_page_of_the_repository_is_what_its_figures_give(tmp_path):
    cases = json.loads((REPOSITORY / 'docs/benchmarks.json').read_text())
    benchmarks.write_page(tmp_path / 'benchmarks.md', cases)
    assert (tmp_path / 'benchmarks.md').read_text() in (REPOSITORY / 'docs/benchmarks.md').read_text()


def test_rows_that_were_not_measured_again_stay_and_are_marked_with_their_version(tmp_path):
    def entry(version, *files, **figures):
        machine = f'a CPU; mm2onnx {version}, torch 2'
        rows = [
            dict(file=file, engine='onnxruntime', median=0.5, q1=0.4, q3=0.6, memory=None) for file in files
        ]
        return dict(
            title='A', threads=2, machine=machine, rows=[row | figures for row in rows], sizes={}, notes=[]
        )

    now = benchmarks.versions()['mm2onnx']
    figures = dict(ms=20.0, per_s=50.0, gmac=2.0, gmac_per_s=100.0, peak=200.0)
    new = dict(entry(now, 'full', **figures), eager=dict(ms=40.0, per_s=25.0))
    both = benchmarks.merged(entry('0.0.1', 'raw', 'full'), new)
    benchmarks.write_page(tmp_path / 'page.md', dict(a=both))
    rows = [
        line.split('|')[2:-1] for line in (tmp_path / 'page.md').read_text().splitlines() if line[:1] == '|'
    ][2:]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0][:5] == ['', 'eager PyTorch', '', '40', '25.00']
    assert cells[1] == ['full', 'ONNX Runtime', '', '20', '50.00', '**0.500**', '', '2', '100.0', '50%']
    assert cells[2][:5] == ['raw (0.0.1)', 'ONNX Runtime', '', '', ''] and len(cells) == 3
