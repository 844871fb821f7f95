"""Every command of the documentation is run as it stands, or by a named test, or has a checked reason."""

import ast
import contextlib
import functools
import io
import os
import re
import runpy
import shlex
import sys
import traceback
from pathlib import Path

import pytest

import test_docs
from documented import ENTRIES, REASONS

REPOSITORY = Path(__file__).resolve().parents[1]
ENGLISH = [page for page in test_docs.PAGES if page not in test_docs.CHINESE]
COMMAND = 'mmdeploy_ext/__main__.py'
"""What `mm2onnx` starts."""
MADE = ('work_dirs', 'data', '.venv', '.git', 'build')
"""What a workspace has of its own, or does not have."""
PROGRAMS = {'docs/your-own-program.md', 'docs/proof.md'}
"""Pages whose Python blocks are run, too, where they stand."""
SESSIONS = {
    'first': [
        'README.md', 'docs/start.md', 'docs/your-checkpoint.md', 'docs/your-own-program.md', 'docs/proof.md'],
    'graphs': ['docs/debugging.md', 'docs/debugging-reduce.md', 'docs/debugging-diff.md'],
}
SESSIONS['others'] = [page for page in ENGLISH if page not in (*SESSIONS['first'], *SESSIONS['graphs'])]
"""Pages whose commands run one after the other in one folder."""
LIBRARIES = {
    'tools/create_data.py': {'create_infos'},
    'tools/deployment/pytorch2onnx.py': {'export_files', 'exporters import rows'},
    'tools/dist_test.sh': {'tools/dist_test_'},
}
"""Tool -> what of the library a test may call in its place."""
NUMBER = re.compile(r'(?:\d+\.\d+(?:e[-+]?\d+)?|\d+(?:e[-+]\d+)?)')
ROUNDING = 1e-5


@functools.cache
def entry_of(command):
    return next((entry for entry in ENTRIES if entry.fits(command)), None)


def lines(body):
    """Return the commands of a shell block."""
    return [line for line in body.replace('\\\n', ' ').splitlines() if line.strip()]


def documented():
    """Return {command: page} of all pages; the Chinese ones have the same blocks (test_docs.py)."""
    found = {}
    for page in ENGLISH:
        for language, body in test_docs.blocks(page):
            if language in ('', 'bash', 'shell'):
                found.update({line: page for line in lines(body) if line not in found})
    return found


COMMANDS = documented()


@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: command[:70])
def test_each_command_is_run_or_has_a_test_or_a_reason_that_is_true(command):
    entry = entry_of(command)
    assert entry, f'{COMMANDS[command]}: {command}: no entry in tests/documented.py fits it'
    if entry.run:
        assert any(COMMANDS[command] in pages for pages in SESSIONS.values())
        return
    text, holds = REASONS[entry.why]
    assert re.match(holds, command), f'{command}: {text}: this is not true of it'
    tool = test_docs.tool_of(shlex.split(command)) or '-m projects' in command or '-m mmdeploy_ext' in command
    assert entry.test or not tool, f'{command}: {text}; which test runs its tool?'


def test_every_entry_fits_a_command_that_no_earlier_one_takes():
    used = set(map(entry_of, COMMANDS))
    assert [entry.pattern for entry in ENTRIES if entry not in used] == []
    assert {entry.why for entry in ENTRIES} - {''} <= set(REASONS)


def names_of(command):
    """Return what a test has in it that is about the command's tool."""
    words = shlex.split(command)
    if '-m' in words:
        module = words[words.index('-m') + 1]
        return {module, module.rsplit('.', 1)[-1]}
    tool = test_docs.tool_of(words)
    if tool == 'mm2onnx synthetic':
        return {tool, f'synthetic.{words[2]}', words[2]}
    if tool is None:
        return {next((word for word in ('doctor', 'argcomplete') if word in command), 'sphinx')}
    names = {tool, Path(tool).name}
    if 'work_dirs/benchmark/' in command:
        names.add('benchmark_all')
    if tool in test_docs.PARSERS:
        names.add(test_docs.PARSERS[tool].rsplit('.', 1)[-1])
    return names | LIBRARIES.get(re.sub(r'dist_test_\w+', 'dist_test', tool), set())


@functools.cache
def source_of(path):
    """Return the text of a file of tests with that of what it imports from here, and its functions' names."""
    source = (REPOSITORY / path).read_text(encoding='utf-8')
    functions = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    imported = set(re.findall(r'\b(?:import|from) (\w+)', source))
    helpers = [REPOSITORY / 'tests' / f'{word}.py' for word in imported]
    texts = [helper.read_text(encoding='utf-8') for helper in helpers if helper.is_file()]
    return source + ''.join(texts), functions


@pytest.mark.parametrize('test', sorted({entry.test for entry in ENTRIES} - {''}))
def test_a_named_test_is_there_and_about_the_same_tool(test):
    path, name = test.split('::')
    text, functions = source_of(path)
    assert name in functions
    for command in (command for command in COMMANDS if entry_of(command) and entry_of(command).test == test):
        names = names_of(command)
        assert any(word in text for word in names), f'{command}: {test} has none of {names}'


def test_the_steps_of_the_demonstrations_are_commands_of_the_documentation():
    tools = {test_docs.tool_of(shlex.split(command)) for command in COMMANDS} - {None}
    modules = set(re.findall(r'-m (projects[\w.]+)', ' '.join(COMMANDS)))
    demo = (REPOSITORY / 'tools/demo/demo.py').read_text()
    steps = set(re.findall(r"'(tools/[\w/.]+)'", demo))
    for name in ('demo-stream', 'demo-lidar', 'demo-fusion'):
        recipe = re.search(rf'^{name}:.*\n((?:\t.*\n)+)', test_docs.text('Makefile'), re.M)[1]
        steps |= set(re.findall(r'(tools/[\w/]+\.py)', recipe))
        assert set(re.findall(r'-m (projects[\w.]+)', recipe)) <= modules
    # tools/test.py is what both scripts of the test loop start
    assert len(steps) >= 6 and steps - {'tools/test.py'} <= tools


# ---- what is run


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    """A folder that looks like the repository, with a work_dirs of its own."""
    folder = tmp_path_factory.mktemp('workspace')
    for path in REPOSITORY.iterdir():
        if path.name not in MADE:
            (folder / path.name).symlink_to(path)
    (folder / 'work_dirs').mkdir()
    return folder


def run_python(words, folder):
    """Run a tool in this process, in that folder; return exit status and output."""
    before, output = (os.getcwd(), sys.argv, list(sys.path)), io.StringIO()
    os.chdir(folder)
    sys.argv = words
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            if words[0] == '-m':
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name='__main__', alter_sys=True)
            else:
                runpy.run_path(words[0], run_name='__main__')
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except Exception:
        status = traceback.format_exc()
    finally:
        os.chdir(before[0])
        sys.argv, sys.path[:] = before[1], before[2]
    return status, output.getvalue()


class Session:
    """Runs commands as a shell would, with its variables."""

    def __init__(self, folder):
        self.folder, self.variables, self.done = folder, {}, {}

    def run(self, command):
        """Run one command, once; return its output."""
        assigned = re.fullmatch(r'([A-Z]+)=(.*)', command)
        if assigned:
            self.variables[assigned[1]] = ' '.join(shlex.split(assigned[2]))
            return ''
        entry = entry_of(command)
        words = entry.smaller(command)
        for name, value in self.variables.items():
            words = words.replace(f'${name}', value)
        if words not in self.done:
            parts = shlex.split(words.replace('mm2onnx ', f'python {COMMAND} ', 1), comments=True)
            assert parts[0] == 'python' and '$' not in words, words
            status, self.done[words] = run_python(parts[1:], self.folder)
            assert status == entry.status, f'{words}: exit status {status}\n{self.done[words][-3000:]}'
        return self.done[words]

    def run_program(self, code):
        """Run a Python block in this process, which has the libraries; return what it prints."""
        output = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(output):
            exec(code, dict(__name__='__main__'))
        return output.getvalue()


def check_shown(shown, output):
    """Look that a page shows what a command says; '...' is left out, times and rounding differ."""
    plain = ' '.join(re.sub(r'[─\s]+', ' ', output).split())
    for line in shown.splitlines():
        if line == '...':
            continue
        wanted = ' '.join(re.sub(r'[─\s]+', ' ', line).split())
        wanted = re.sub(r'\b\d+ ms\b', 'TIME ms', wanted)
        parts = NUMBER.split(wanted.replace('TIME', '\0'))
        pattern = NUMBER.pattern.join(map(re.escape, parts)).replace(re.escape('\0'), r'\d+')
        candidates = [match[0] for match in re.finditer(pattern, plain)] if wanted else ['']
        figures = [float(number) for number in NUMBER.findall(wanted) if 'ms' not in wanted]
        assert any(
            'ms' in wanted or all(
                abs(a - b) <= max(ROUNDING, 0.01 * abs(a))
                for a, b in zip(figures, map(float, NUMBER.findall(found)), strict=True))
            for found in candidates), f'{line!r} is not in\n{output[-3000:]}'  # fmt: skip


def run_pages(pages, folder, matrix):
    """Run what is to be run, compare what is shown; return how many commands ran."""
    session, count = Session(folder), 0
    for page in pages:
        output = ''
        for language, body in test_docs.blocks(page):
            if language in ('', 'bash', 'shell'):
                entries = {line: entry_of(line) for line in lines(body)}
                chosen = [line for line, entry in entries.items() if entry.runs(matrix)]
                output = '\n'.join(map(session.run, chosen))
                count += len(chosen)
            elif language == 'python' and page in PROGRAMS:
                output = session.run_program(body)
            elif language == 'text' and output:
                check_shown(body, output)
    return count


@pytest.mark.parametrize('session', ['first'])
def test_documented_commands_do_what_the_page_shows(session, workspace):
    assert run_pages(SESSIONS[session], workspace, matrix=False) >= 10


@pytest.mark.matrix
@pytest.mark.timeout(1500)
@pytest.mark.parametrize('session', SESSIONS)
def test_all_documented_commands_that_can_run_do(session, workspace):
    assert run_pages(SESSIONS[session], workspace, matrix=True) >= 10


@pytest.mark.parametrize(
    ('shown', 'output', 'right'),
    [
        ('a 3 b 0.5', 'x a 3 b 0.501 y', True),
        ('a 3 b 0.5', 'x a 3 b 0.6 y', False),
        ('a 3', 'a 4', False),
        ('a  ─── b', 'a b', True),
        ('worst 4.77e-07', 'worst 2.1e-07', True),
        ('7 detections, 49 ms', '7 detections, 1234 ms', True),
        ('nothing like it', 'a b', False),
    ],
)
def test_what_a_page_shows_is_compared_by_words_and_figures(shown, output, right):
    with contextlib.nullcontext() if right else pytest.raises(AssertionError):
        check_shown(shown, output)
