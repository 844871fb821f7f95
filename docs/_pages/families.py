"""Write the table of model families in docs/architecture.md: `python docs/_pages/families.py`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs/architecture.md'
BEGIN, END = '<!-- families -->', '<!-- end of families -->'
MODULES = ('graphs.py', 'reference.py', 'samples.py', 'README.md')


def link(path: Path) -> str:
    """Return a link from the page to a file or folder of the repository."""
    name = f'{path.parent.name}/{path.name}' if path.name == 'model.py' else path.name
    return f'[{name}]({os.path.relpath(path, PAGE.parent)})'


def table() -> str:
    """Return the table: a row per registered family, with what its package holds."""
    sys.path.insert(0, str(ROOT))
    from mmdeploy_ext import compat

    compat.apply()
    from mmdeploy_ext.contract.registry import registered
    from mmdeploy_ext.families.base import FAMILIES, load_families

    load_families()
    rows = ['| family | samples | results | modules | runtime |', '| --- | --- | --- | --- | --- |']
    for name, family in sorted(FAMILIES.items()):
        if not type(family).__module__.startswith('mmdeploy_ext.'):
            continue  # tests register toys in the same process
        module = registered()[name].family.partition(':')[0]
        module_file = ROOT / f'{module.replace(".", "/")}.py'
        files = [module_file, *(module_file.parent / module for module in MODULES)]
        modules = ', '.join(link(path) for path in files if path.is_file())
        runtime = registered()[name].runtime
        consumer = link(ROOT / f'{runtime.replace(".", "/")}.py') if runtime else ''
        kind = family.task or family.product
        rows.append(f'| {name} | {family.samples} | {kind} | {modules} | {consumer} |')
    return '\n'.join(rows)


def page(text: str) -> str:
    """Return the page with a new table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f'{before}{BEGIN}\n{table()}\n{END}{after}'


if __name__ == '__main__':
    PAGE.write_text(page(PAGE.read_text(encoding='utf-8')), encoding='utf-8')
