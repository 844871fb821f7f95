"""Print the table of kits that were judged on this machine: python -m dev.pages.judged_kits FOLDER.

`tools/analysis_tools/judge_engines.sh` fills FOLDER: a folder `kit` per model, and for each precision a
verdict (`fp32.json`), or without one the output of `mm2onnx judge` (`fp32.log`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dev.pages.tables import table

HEADINGS = ('graph', 'precision', 'inputs', 'verdict', 'first failure', 'time')


def row(model: Path, name: str, precision: str) -> list[object]:
    """Return the cells of a model's folder in a precision."""
    verdict, log = model / f'{precision}.json', model / f'{precision}.log'
    if not verdict.is_file():
        lines = log.read_text(encoding='utf-8').strip().splitlines() if log.is_file() else []
        return [name, precision, '', 'did not run', (lines or [''])[-1], '']
    content = json.loads(verdict.read_text(encoding='utf-8'))
    failures, claim = content['failures'], content['verdict'].partition(' ON ')[0].partition(' (')[0]
    time = content['ran'].rpartition(', in float16, ' if precision == 'fp16' else 'CUDA, ')[2]
    return [name, precision, content['inputs'], claim, failures[0] if failures else '', time]


def main(folder: str) -> None:
    """Print the table of all models below a folder."""
    models = sorted(path.parent for path in Path(folder).rglob('kit') if path.is_dir())
    rows = [
        row(model, model.relative_to(folder).as_posix(), precision)
        for model in models
        for precision in ('fp32', 'fp16')
    ]
    print(table(HEADINGS, rows))


if __name__ == '__main__':
    main(*sys.argv[1:])
