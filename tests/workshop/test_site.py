"""The site of `make site`: no warning, no link that dangles, nothing from outside, and search finds.

The tests in a browser open every page in headless Chromium.
"""

import functools
import http.server
import importlib.util
import posixpath
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

import pytest

import headless

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDED = ('sphinx', 'myst_parser', 'furo')
LOADED = dict(script='src', img='src', link='href', iframe='src', source='src')
"""Tag -> attribute by which a page loads something."""
SEARCHES = {
    'deformable convolutions': 'Export',
    'born here': 'Troubleshooting',
    '退出状态': '导出',
    '归一化填充': '运行文件',
}
"""Query -> title of a page among the results. The last one is two words that stand apart on the page."""

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, NEEDED)),
        reason='no generator of the site here: `make site` installs it',
    ),
]
in_browser = pytest.mark.skipif(
    headless.PROGRAM is None, reason='no Chromium here: `apt install chromium` (Debian) installs it'
)


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


@pytest.fixture(scope='module')
def address(site):
    """Serve the site; what is asked for and not there is an answer of 404."""
    quiet = type('Quiet', (http.server.SimpleHTTPRequestHandler,), dict(log_message=lambda *_: None))
    handler = functools.partial(quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture(scope='module')
def running(tmp_path_factory):
    with headless.Browser(tmp_path_factory.mktemp('profile')) as found:
        yield found


@pytest.fixture
def browser(running):
    """The browser, with nothing noted yet."""
    running.requests.clear()
    running.problems.clear()
    return running


def test_every_page_of_the_documentation_is_in_the_site(pages):
    sources = [
        *REPOSITORY.glob('docs/*.md'),
        *REPOSITORY.glob('docs/*/*.md'),
        *REPOSITORY.glob('mmdeploy_ext/families/*/README.md'),
        *REPOSITORY.glob('README*.md'),
        *REPOSITORY.glob('projects/*/README.md'),
    ]
    names = [path.relative_to(REPOSITORY).with_suffix('.html').as_posix() for path in sources]
    assert len(names) > 20 and set(names) <= set(pages)


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


@in_browser
def test_every_page_opens_without_an_error_and_asks_nobody_else(pages, address, browser):
    for name in pages:
        browser.open(address + name)
        broken = browser.evaluate('[...document.images].filter(i => !i.naturalWidth).map(i => i.src)')
        assert not broken and not browser.problems, f'{name}: {broken} {browser.problems}'
    outside = {url for url in browser.requests if not url.startswith((address, 'data:', 'about:', 'blob:'))}
    assert not outside and len(browser.requests) > len(pages)


@in_browser
def test_search_finds_english_and_chinese_also_from_a_folder(site, browser):
    start = f'{site.as_uri()}/'
    for query, title in SEARCHES.items():
        browser.open(f'{start}search.html?q={quote(query)}')
        browser.wait_for('/found|did not match/.test(document.querySelector(".search-summary")?.textContent)')
        results = '[...document.querySelectorAll("#search-results li > a")].map(a => a.textContent)'
        found = browser.evaluate(results)
        assert any(title in line for line in found), f'{query}: {found}'
    assert not browser.problems
