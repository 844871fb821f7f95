"""The benchmark of the whole product: cases, figures, page; nothing here depends on speed."""

import json
from pathlib import Path

from dev.pages import benchmarks

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_page_of_the_repository_is_what_its_figures_give(tmp_path):
    cases = json.loads((REPOSITORY / 'docs/benchmarks.json').read_text())
    benchmarks.write_page(tmp_path / 'benchmarks.md', cases)
    assert (tmp_path / 'benchmarks.md').read_text() in (REPOSITORY / 'docs/benchmarks.md').read_text()
