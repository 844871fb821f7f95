"""The site of `make site`: no warning, no link that dangles, nothing from outside."""

import importlib.util
import posixpath
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDED = ('sphinx', 'myst_parser', 'furo')
LOADED = dict(script='src', img='src', link='href', iframe='src', source='src')
"""Tag -> attribute by which a page loads something."""

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, NEEDED)),
        reason='no generator of the site here: `make site` installs it',
    ),
]


class Page(HTMLParser):
    """What a page links to, what it loads, which anchors it has."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.update(filter(None, (found.get('id'), found.get('name') if tag == 'a' else None)))
        if tag == 'a' and 'href' in found:
            self.links.append(found['href'])
        if found.get(LOADED.get(tag)) and found.get('rel') not in ('next', 'prev', 'index', 'search'):
            self.loads.append(found[LOADED[tag]])


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The built site; a warning ends the build with an error."""
    folder = tmp_path_factory.mktemp('site')
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'sphinx',
            '-q',
            '-W',
            '--keep-going',
            '-c',
            'docs/_site',
            '-d',
            folder / 'cache',
            '.',
            folder / 'html',
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / 'html'


@pytest.fixture(scope='module')
def pages(site):
    """Address in the site -> page."""
    paths = [path for path in sorted(site.rglob('*.html')) if path.name not in ('genindex.html',)]
    return {path.relative_to(site).as_posix(): Page(path) for path in paths}


def test_no_link_and_no_anchor_dangles(site, pages):
    dead = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ('http', 'https', 'mailto'), f'{name}: {link}'
                continue
            target = posixpath.normpath(urljoin(name, unquote(parts.path))) if parts.path else name
            if not (site / target).is_file():
                dead.append(f'{name}: {link}')
            elif parts.fragment and unquote(parts.fragment) not in pages[target].anchors:
                dead.append(f'{name}: {link}: no such anchor')
    assert not dead


def test_pages_load_nothing_from_outside_and_only_what_is_there(site, pages):
    wrong = []
    for name, page in pages.items():
        for loaded in page.loads:
            parts = urlsplit(loaded)
            inside = not parts.scheme and not parts.netloc
            there = (site / urljoin(name, unquote(parts.path))).is_file()
            if parts.scheme != 'data' and not (inside and there):
                wrong.append(f'{name}: {loaded}')
    assert not wrong
