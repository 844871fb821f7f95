"""Write docs/SKILL.md, for assistants: commands, options and headings come from the other pages.

python -m dev.pages.skill
"""

from __future__ import annotations

import re
from pathlib import Path

from mmdeploy_ext.spec.options import MADE_FOR, TARGETS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs/SKILL.md'
COMMANDS = [
    ('docs/export.md', 'CONFIG='),
    ('docs/export.md', 'CKPT='),
    ('docs/export.md', 'mm2onnx export $CONFIG --check'),
    ('docs/export.md', 'mm2onnx export $CONFIG $CKPT --out work_dirs/full.onnx --verify'),
    ('docs/proof.md', 'mm2onnx verify $CONFIG $CKPT work_dirs/full.onnx'),
    ('docs/troubleshooting.md', 'mm2onnx graph diff CONFIG CHECKPOINT m.onnx --report DIR'),
]
"""Pages and the beginnings of command lines in them."""
VALUES = {
    'CONFIG': '$CONFIG',
    'CHECKPOINT': '$CKPT',
    'm.onnx': 'work_dirs/full.onnx',
    'DIR': 'work_dirs/diff',
}
TEXT = """---
name: mm2onnx
description: {description}
---

# Skill for assistants

```bash
{commands}
```

Use the user's config, checkpoint and repository. Options: {folder} for \
LiDAR and cameras, {parts} for {parts_page}, {targets} ({engines}).

The last lines are the verdict ({verdict}). The exit status is 0 for `PROVEN`, 1 for `NOT PROVEN`, 2 for a \
wrong command. `untraced` and `unreached` are information. Report a model as exported only if it is \
`PROVEN`. Never widen a tolerance.

If the verdict is `NOT PROVEN`, repeat `verify` with `--json FILE` and read `failures`. Then:

1. Run the command after `next:`.
2. {difference} with `graph diff`.
3. Export with `--postprocess raw`: if that file is proven, the post-processing differs.
4. Replace seeded weights by a trained checkpoint.
5. {no_family}: export parts.
"""


def skill_text() -> str:
    """Return the page; SystemExit if a page no longer has a command, row or heading."""
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    first, *names = TARGETS
    others = ', '.join(f'`{name}`' for name in names)
    return TEXT.format(
        description=_found(readme, r'^(mm2onnx exports .*?computes\.)'),
        commands='\n'.join(_command(page, start) for page, start in COMMANDS),
        folder=_found(readme, r'(`--out FOLDER`)'),
        parts=_found(readme, r'(`--parts [^`]*`)'),
        targets=f'`{MADE_FOR.with_value(first)}` (or {others})',
        parts_page=_link('parts.md', 'Parts of any detector'),
        engines=_link('engines.md', 'Which form for which engine'),
        verdict=_link('proof.md', 'How to read a verdict'),
        difference=_link('troubleshooting.md', 'Find the first difference'),
        no_family=_link('troubleshooting.md', 'No family supports the model'),
    )


def _found(text: str, pattern: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise SystemExit(f'README.md: has no {pattern}: change dev/pages/skill.py')
    return match[1]


def _command(page: str, start: str) -> str:
    """Return the line of a page that begins so, with this page's variables."""
    content = (ROOT / page).read_text(encoding='utf-8')
    line = re.search(rf'^{re.escape(start)}.*?(?=  #|$)', content, re.MULTILINE)
    if line is None:
        raise SystemExit(f'{page}: has no command {start!r}: change dev/pages/skill.py')
    return line[0] if start.endswith('=') else ' '.join(VALUES.get(word, word) for word in line[0].split())


def _link(page: str, heading: str) -> str:
    content = (ROOT / 'docs' / page).read_text(encoding='utf-8')
    if not re.search(rf'^#+ {re.escape(heading)}$', content, re.MULTILINE):
        raise SystemExit(f'docs/{page}: has no heading {heading!r}: change dev/pages/skill.py')
    anchor = re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    return f'[{heading}]({page}#{anchor})'


if __name__ == '__main__':
    PAGE.write_text(skill_text(), encoding='utf-8')
