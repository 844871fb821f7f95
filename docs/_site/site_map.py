"""The site's table of contents is the list of pages that the README shows on GitHub."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HEADINGS = {'README': '## Documentation', 'README_zh-CN': '## 文档'}
"""Page -> the heading over its list of pages."""
OWN = {'README': '', 'README_zh-CN': 'docs/zh-CN/'}
"""Page -> where the pages lie that hang under it; the others are listed by the English one."""
GROUP = re.compile(r'^\*\*(.+?)\*\*$|^- \[(.+?)\]\(([^)#]+)\.md\)', re.M)


def groups(docname: str, text: str) -> dict[str, list[tuple[str, str]]]:
    """Return {caption: [(title, page)]} of the list of pages in a README.

    Raises:
        ValueError: the README has no such list.
    """
    _, found, after = text.partition(f'\n{HEADINGS[docname]}\n')
    section = re.split(r'^## ', after, maxsplit=1, flags=re.M)[0]
    result: dict[str, list[tuple[str, str]]] = {}
    caption = ''
    for match in GROUP.finditer(section):
        group, title, page = match.groups()
        if group:
            caption = group
        elif page.startswith(OWN[docname]):
            result.setdefault(caption, []).append((title, page))
    if not found or not result:
        raise ValueError(f'{docname}.md: expected "{HEADINGS[docname]}" with a list of "- [title](page.md)"')
    return result


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the hidden table of contents to a README, and that of the zoo's pages to the zoo."""
    if docname == 'docs/zoo':
        source[0] += '\n\n```{toctree}\n:hidden:\n:glob:\n\nzoo/*\n```\n'
    if docname not in HEADINGS:
        return
    trees = [
        '\n'.join([
            '```{toctree}', ':hidden:', f':caption: {caption}', '',
            *(f'{title} <{posixpath.normpath(page)}>' for title, page in pages), '```', '',
        ])
        for caption, pages in groups(docname, source[0]).items()
    ]  # fmt: skip
    source[0] = '\n\n'.join([source[0], *trees])


def set_language(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Say which pages are Chinese, so that browsers take Chinese glyphs."""
    if page.endswith('_zh-CN') or '/zh-CN/' in page:
        context['language'] = 'zh-CN'


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both."""
    app.connect('source-read', add_contents)
    app.connect('html-page-context', set_language)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
