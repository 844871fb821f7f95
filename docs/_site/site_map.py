"""The site's table of contents, the language of its pages, and llms.txt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

CONTENTS = {
    'README': {
        'Begin': ['docs/install', 'docs/export', 'docs/run', 'docs/evaluate', 'docs/proof'],
        'Models': [
            'docs/models-2d', 'docs/models-lidar', 'docs/models-cameras', 'docs/your-repository',
            'docs/traced', 'docs/mmdet3', 'docs/recorded', 'projects/mmrotate/README',
        ],
        'Engines and devices': [
            'docs/engines', 'docs/device', 'docs/any-module', 'docs/autoware', 'docs/troubleshooting',
            'docs/glossary',
        ],
        'Develop': [
            'docs/parts', 'docs/own-family', 'docs/architecture', 'CONTRIBUTING', 'CHANGELOG',
            'demo/checkpoints/README',
        ],
        'Reference': ['docs/zoo', 'docs/forks', 'docs/benchmarks', 'docs/reference/index', 'docs/SKILL'],
        '中文': ['README_zh-CN'],
    },
    'README_zh-CN': {
        '中文': ['docs/zh-CN/install', 'docs/zh-CN/export', 'docs/zh-CN/run', 'docs/zh-CN/proof'],
    },
}  # fmt: skip
"""Page -> caption -> the pages of its sidebar."""
SYSTEMS = '/projects/driving/mm2onnx_driving/{}/README'
CAMERAS = ('streampetr', 'petr', 'bevformer', 'bevdet', 'flashocc', 'sparse4d', 'sparsedrive', 'vad')
BELOW = {
    'docs/zoo': 'zoo-configs',
    'docs/reference/index': '*',
    'docs/models-2d': '/mmdeploy_ext/families/rtdetr/README',
    'docs/models-lidar': SYSTEMS.format('bevfusion'),
    'docs/models-cameras': '\n'.join(['/projects/driving/README', *map(SYSTEMS.format, CAMERAS)]),
}
"""Page -> the pages that hang under it, or their pattern."""


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the hidden table of contents to a page that has pages below it."""
    toctrees = [
        '\n'.join(
            ['```{toctree}', ':hidden:', f':caption: {caption}', '', *(f'/{page}' for page in pages), '```']
        )
        for caption, pages in CONTENTS.get(docname, {}).items()
    ]
    if docname in BELOW:
        toctrees.append(f'```{{toctree}}\n:hidden:\n:glob:\n\n{BELOW[docname]}\n```')
    source[0] = '\n\n'.join([source[0], *toctrees]) + '\n'


def set_language(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Say which pages are Chinese, so that browsers take Chinese glyphs."""
    if page.endswith('_zh-CN') or '/zh-CN/' in page:
        context['language'] = 'zh-CN'


def llms_text(root: Path) -> str:
    """Return llms.txt: titles and headings of the English pages, with their addresses on the site."""
    text = '# mm2onnx\n\n> Exports mmdet and mmdet3d detectors to ONNX, proven to equal the PyTorch model.\n'
    for caption, pages in CONTENTS['README'].items():
        if caption.isascii():
            text += f'\n## {caption}\n\n'
            text += ''.join(f'- {_entry(root, page)}\n' for page in pages)
    return text


def _entry(root: Path, page: str) -> str:
    content = (root / f'{page}.md').read_text(encoding='utf-8')
    content = re.sub(r'^```.*?^```', '', content, flags=re.MULTILINE | re.DOTALL)
    title = re.findall(r'^# (.*)', content, re.MULTILINE)[0]
    headings = ', '.join(re.findall(r'^## (.*)', content, re.MULTILINE))
    return f'[{title}]({page}.html)' + (f': {headings}' if headings else '')


def write_llms(app: Sphinx, error: Exception | None) -> None:
    if error is None:
        (Path(app.outdir) / 'llms.txt').write_text(llms_text(Path(app.srcdir)), encoding='utf-8')


def setup(app: Sphinx) -> dict[str, bool]:
    """Register all."""
    app.connect('build-finished', write_llms)
    app.connect('source-read', add_contents)
    app.connect('html-page-context', set_language)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
