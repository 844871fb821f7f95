"""The documentation: links resolve, options and targets of commands exist."""

import argparse
import fnmatch
import functools
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from dev.pages import skill, tables
from mmdeploy_ext.base.commands import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[2]
PLACES = (
    'README*.md',
    'CONTRIBUTING.md',
    'CHANGELOG.md',
    'docs/**/*.md',
    'mmdeploy_ext/**/README.md',
    'projects/**/README.md',
    'demo/checkpoints/README.md',
    'tests/goldens/**/README.md',
)
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix() for pattern in PLACES for path in REPOSITORY.glob(pattern)
)
SCRIPTS = {
    **{f'tools/{name}.sh': 'test_app' for name in ('dist_test_pth', 'dist_test_onnx', 'slurm_test')},
    **{
        f'tools/onnx/onnx_{name}.py': 'run_images'
        for name in ('rtdetr', 'solo', 'with_postprocess', 'no_topk_nms')
    },
}
"""Scripts that do not import `main` of a module -> that module of cli/."""


def text(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding='utf-8')


def commands(page: str) -> list[list[str]]:
    """Return the words of every command of the shell blocks; blocks without a language are shell too."""
    blocks = re.findall(r'^```(\w*)\n(.*?)^```', text(page), re.M | re.S)
    content = '\n'.join(body for language, body in blocks if language in ('', 'bash'))
    lines = content.replace('\\\n', ' ').splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def module_of(words: list[str]) -> str:
    """Return the module of a command of ours; '' for another command."""
    if words[:1] == ['mm2onnx']:
        return COMMANDS[words[1]].module if words[1] in COMMANDS else ''
    script = next((word for word in words if word.startswith('tools/')), '')
    if script in SCRIPTS:
        return f'mmdeploy_ext.cli.{SCRIPTS[script]}'
    if not (REPOSITORY / script).is_file():  # demo/checkpoints/ names the training of an older commit
        return ''
    found = re.search(r'^from (\S+) import main', text(script), re.M)
    return found[1] if found else ''


@functools.cache
def options_of(module: str, variant: str) -> set[str]:
    """Return the options that a tool has, with those of its sub-commands."""
    loaded = importlib.import_module(module)
    build = getattr(loaded, 'build_parser', None) or functools.partial(loaded.make_parser, '')
    parser = build(*([variant] if variant else []))
    subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parsers = [parser, *(command for action in subparsers for command in action.choices.values())]
    return {option for found in parsers for option in found._option_string_actions}


@pytest.mark.parametrize('page', PAGES)
def test_relative_links_resolve(page):
    links = re.findall(r'\]\(([^)#]+)(?:#[^)]*)?\)', text(page))
    folder = (REPOSITORY / page).parent
    broken = [link for link in links if '://' not in link and not (folder / link).exists()]
    assert not broken


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    content = re.sub(r'^```.*?^```', '', page.read_text(encoding='utf-8'), flags=re.M | re.S)
    headings = re.findall(r'^#+ (.*)$', content, re.M)
    return {re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES)
def test_anchors_of_links_are_headings(page):
    links = re.findall(r'\]\(([^)#:]*)#([^)]+)\)', text(page))
    here = REPOSITORY / page
    targets = [(here.parent / link if link else here, anchor) for link, anchor in links]
    wrong = [anchor for file, anchor in targets if file.suffix == '.md' and anchor not in anchors(file)]
    assert not wrong


@pytest.mark.parametrize('page', ['CONTRIBUTING.md', 'docs/architecture.md'])
def test_folders_and_modules_of_pages_for_contributors_exist(page):
    roots = [REPOSITORY / name for name in ('mmdeploy_ext', 'projects', 'tests', 'tools', 'dev')]
    paths = [*REPOSITORY.iterdir(), *(path for root in roots for path in root.rglob('*'))]
    known = [f'/{path.relative_to(REPOSITORY).with_suffix("")}/' for path in paths]
    named = {name.strip('/') for name in re.findall(r'`([a-z_]+/[a-z_/]*)`', text(page))}
    assert not {name for name in named if not any(path.endswith(f'/{name}/') for path in known)}


@pytest.fixture(scope='module')
def site_map():
    spec = importlib.util.spec_from_file_location('site_map', REPOSITORY / 'docs/_site/site_map.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_contents_of_the_site(site_map):
    captions = [pages for part in site_map.CONTENTS.values() for pages in part.values()]
    listed = ['README', *(page for pages in captions for page in pages)]
    for page, below in site_map.BELOW.items():
        folder = Path('/', page).parent
        listed += [str(folder / pattern).lstrip('/') for pattern in below.split()]
    pages = [page.removesuffix('.md') for page in PAGES if not page.startswith('tests/')]
    assert [page for page in pages if not any(fnmatch.fnmatch(page, pattern) for pattern in listed)] == []
    assert [page for page in listed if '*' not in page and f'{page}.md' not in PAGES] == []


def test_llms_txt_has_every_page_of_the_site(site_map):
    listed = re.findall(r'\]\((.*?)\.html\)', site_map.llms_text(REPOSITORY))
    assert {'docs/export', 'docs/SKILL', 'docs/zoo'} <= set(listed)
    assert all((REPOSITORY / f'{page}.md').is_file() for page in listed)


def test_the_page_for_assistants_has_the_commands_and_headings_of_the_other_pages():
    assert text('docs/SKILL.md') == skill.skill_text()


def test_the_api_page_has_the_parameters_of_every_function():
    page = text('docs/reference/api.md')
    for name, request in tables.REQUESTS.items():
        assert f'<!-- {name} -->\n\n{tables.parameters(request)}\n<!-- /{name} -->' in page, name


@pytest.mark.parametrize('page', PAGES)
def test_options_and_make_targets_in_commands_exist(page):
    for words in commands(page):
        if module := module_of(words):
            used = {word.split('=')[0] for word in words if word.startswith('--')}
            chosen_by = getattr(importlib.import_module(module), 'chosen_by', lambda words: '')
            assert used <= options_of(module, chosen_by(words)), ' '.join(words)
    for target in re.findall(r'(?:^|`)make ([a-z0-9-]+)', text(page), re.M):
        assert re.search(rf'^([\w-]+ )*{target}( [\w-]+)*:', text('Makefile'), re.M), target
