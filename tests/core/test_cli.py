"""What all tools share: one `error:` line, exit codes, tracebacks only with --debug."""

import argparse
import functools
import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmdeploy_ext.cli import options
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import (
    AbsentPackageError,
    CheckpointError,
    ConfigError,
    ExportError,
    Mm2OnnxError,
    ShapeError,
    UsageError,
    after_weights,
    root_cause,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def parser() -> cli.ArgumentParser:
    made = cli.ArgumentParser(prog='tool')
    made.add_argument('--size', type=int)
    cli.add_debug_option(made)
    return made


def raising(error: BaseException):
    def body(_):
        raise error

    return body


@pytest.mark.parametrize(
    ('error', 'status'),
    [
        (UsageError('a'), 2),
        (ConfigError('a'), 2),
        (CheckpointError('a'), 2),
        (Mm2OnnxError('a'), 1),
        (ShapeError('a'), 1),
        (ExportError('a'), 1),
        (OSError(28, 'a'), 1),
        (MemoryError('a'), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(error, status, capsys):
    assert cli.run(raising(error), parser(), []) == status
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('error: ') and err.count('\n') == 1


def test_a_message_of_several_lines_is_folded(capsys):
    cli.run(raising(UsageError('what\n  got\texpected\n')), parser(), [])
    assert capsys.readouterr().err == 'error: what got expected\n'


def test_an_error_without_a_message_says_its_name(capsys):
    cli.run(raising(MemoryError()), parser(), [])
    assert capsys.readouterr().err == 'error: MemoryError\n'


@pytest.mark.parametrize('error', [UsageError('a'), OSError(28, 'a')])
def test_debug_shows_the_traceback_before_the_line(error, capsys):
    assert cli.run(raising(error), parser(), ['--debug']) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == 'Traceback (most recent call last):' and lines[-1].startswith('error: ')


def test_an_error_of_our_own_making_is_not_hidden():
    with pytest.raises(AttributeError):
        cli.run(functools.partial(cli.check_minimums, missing=1), parser(), [])


def test_an_error_that_the_users_code_raises_is_one_line_that_names_its_innermost_line(capsys):
    def forward(_):
        return [1][int('2')]

    assert cli.run(forward, parser(), []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    place = f'{Path(__file__)}:{forward.__code__.co_firstlineno + 1}, in forward'
    assert line.startswith(f'error: {place}: IndexError: ')


def test_a_package_that_is_not_installed_is_one_line_that_names_the_environment(capsys):
    def lacking(name):
        return raising(ModuleNotFoundError(f'No module named {name!r}', name=name))

    assert cli.run(lacking('nowhere.x'), parser(), []) == 2
    absent = f'error: nowhere is not installed for {sys.executable}; activate '
    assert capsys.readouterr().err.startswith(absent)
    assert cli.run(lacking('numpy.x'), parser(), []) == 2
    assert re.match(r'error: numpy 1\S+ of .* has no module numpy\.x\n', capsys.readouterr().err)
    with pytest.raises(ModuleNotFoundError):
        error = ModuleNotFoundError("No module named 'mmdeploy_ext.x'", name='mmdeploy_ext.x')
        cli.run(raising(error), parser(), [])
    assert cli.run(raising(AbsentPackageError('a.py:3 calls einops.x', name='einops')), parser(), []) == 2
    assert capsys.readouterr().err == 'error: a.py:3 calls einops.x\n'


def test_an_import_in_a_users_file_that_fails_is_named_with_its_line(capsys, tmp_path, monkeypatch):
    (tmp_path / 'net_of_a_user').mkdir()
    (tmp_path / 'net_of_a_user' / '__init__.py').write_text('\nfrom .version import __version__\n')
    (tmp_path / 'net_without_package.py').write_text('import nowhere\n')
    monkeypatch.syspath_prepend(str(tmp_path))

    def importing(name):
        return lambda args: importlib.import_module(name)

    assert cli.run(importing('net_without_package'), parser(), []) == 2
    line = f'{tmp_path / "net_without_package.py"}:1'
    expected = f'error: {line} imports nowhere, which is not installed for {sys.executable}; install it '
    assert capsys.readouterr().err.startswith(expected)
    assert cli.run(importing('net_of_a_user'), parser(), []) == 2
    package = tmp_path / 'net_of_a_user'
    line = f'{package / "__init__.py"}:2'
    expected = f'error: {line} imports net_of_a_user.version, which {package} has not; '
    assert capsys.readouterr().err.startswith(expected)


@pytest.mark.parametrize('seconds', [-1.0, float('nan')])
def test_a_number_below_its_minimum_and_one_that_is_no_number_are_refused(seconds):
    cli.check_minimums(argparse.Namespace(max_seconds=None), max_seconds=0)
    cli.check_minimums(argparse.Namespace(max_seconds=0.0), max_seconds=0)
    with pytest.raises(UsageError, match=r'--max-seconds.*expected 0 or more'):
        cli.check_minimums(argparse.Namespace(max_seconds=seconds), max_seconds=0)


def test_the_words_of_an_argument_say_how_many_values_it_has():
    made = cli.ArgumentParser()
    cli.add(made, 'model')
    add = cli.adder(made.add_argument_group('more'))
    add('--rounds -r N', 'how often', 3)
    add('--share S', '', 0.5)
    add('--images PATH...', 'pictures', [])
    add('--rename OLD NEW', '', [], action='append')
    add('--all', 'everything')
    add('--engine', '', 'torch', choices=('torch', 'onnx'))
    written = add('--out FILE', '', Path('x'), writes=('{}', '{}.json'))
    given = vars(made.parse_args(['m.onnx']))
    assert given == dict(
        model='m.onnx', rounds=3, share=0.5, images=[], rename=[], all=False, engine='torch', out=Path('x')
    )
    words = ['m.onnx', '-r', '4', '--share', '1', '--images', 'a', 'b', '--rename', 'p', 'q']
    words += ['--rename', 'r', 's', '--all', '--engine', 'onnx', '--out', 'y']
    assert vars(made.parse_args(words)) == dict(
        model='m.onnx', rounds=4, share=1.0, images=['a', 'b'], rename=[['p', 'q'], ['r', 's']], all=True,
        engine='onnx', out=Path('y'),
    )  # fmt: skip
    assert written.writes == ('{}', '{}.json')
    assert '--rounds N, -r N' in made.format_help() and '--rename OLD NEW' in made.format_help()


@pytest.mark.parametrize(
    'words',
    [
        ['tools/deployment/solo2onnx.py', 'c.py', 'c.pth'],
        ['tools/deployment/verify.py', 'c.py', 'c.pth', 'm.onnx'],
        ['tools/test.py', 'c.py', 'c.pth', '--eval', 'segm'],
        ['tools/onnx/graph.py', 'show', 'm.onnx'],
    ],
)
def test_without_any_package_the_help_is_shown_and_the_tool_names_the_one_that_is_missing(words, tmp_path):
    bare = [sys.executable, '-I', '-S', str(REPOSITORY / words[0])]
    done = subprocess.run([*bare, '--help'], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith('usage: ') and not done.stderr
    done = subprocess.run([*bare, *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and ' is not installed for ' in done.stderr and done.stderr.count('\n') == 1


def test_the_status_of_the_body_is_the_status_of_the_tool():
    assert [cli.run(lambda args: args.size, parser(), ['--size', str(size)]) for size in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--size', 'x'], "argument --size: invalid int value: 'x'"),
        (['--none'], 'unrecognized arguments: --none'),
        (['--sizze=3'], 'unrecognized arguments: --sizze=3; did you mean --size?'),
    ],
)
def test_a_wrong_option_is_one_line_and_names_the_help(words, message, capsys):
    with pytest.raises(SystemExit) as left:
        cli.run(lambda args: 0, parser(), words)
    assert left.value.code == 2
    assert capsys.readouterr().err == f'error: {message} (see tool --help)\n'


def test_an_error_found_after_the_weights_has_status_1_and_one_before_keeps_2():
    with pytest.raises(ConfigError) as error, after_weights():
        raise ConfigError('late')
    assert error.value.exit_code == 1 and ConfigError('early').exit_code == 2


def test_the_root_cause_is_the_first_error():
    with pytest.raises(ValueError, match='last') as error:
        try:
            try:
                raise KeyError('first')
            except KeyError as first:
                raise TypeError('second') from first
        except TypeError:
            raise ValueError('last')  # noqa: B904
    assert repr(root_cause(error.value)) == "KeyError('first')"
    with pytest.raises(ModuleNotFoundError) as error:
        __import__('marking.part')  # raised from None, while a missing attribute is handled
    assert root_cause(error.value) is error.value


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('3', 3),
        ('0.5', 0.5),
        ('true', True),
        ('None', None),
        ('abc', 'abc'),
        ('a,b', ['a', 'b']),
        ('1,2', [1, 2]),
        ('(1,2)', (1, 2)),
        ('[1,2]', [1, 2]),
        ('{"a": 1}', {'a': 1}),
        ('', ''),
        ('a=b', 'a=b'),
        ('-1', -1),
    ],
)
def test_overrides_are_read_as_openmmlab_reads_them(text, value):
    assert options.parse_cfg_options([f'a.b={text}']) == {'a.b': value}


@pytest.mark.parametrize(
    ('shape', 'sizes'),
    [(None, (0, 0)), (64, (64, 64)), ([64], (64, 64)), ([64, 96], (64, 96)), ((64, 96), (64, 96))],
)
def test_a_shape_is_height_and_width(shape, sizes):
    assert options.parse_shape(shape) == sizes


def test_a_dict_that_python_cannot_make_is_refused_by_name():
    with pytest.raises(UsageError, match='cannot be read'):
        options.parse_cfg_options(['a={[]: 1}'])


@pytest.mark.parametrize('shape', [0, -1, [64, 0], [1, 2, 3], [], 'big', 64.0, True])
def test_a_shape_that_is_none_is_refused_by_name(shape):
    with pytest.raises(UsageError, match=r'backend_config\.shape'):
        options.parse_shape(shape, 'backend_config.shape')


@pytest.mark.parametrize(
    ('script', 'words', 'status'),
    [
        ('tools/deployment/pytorch2onnx.py', [], 2),
        pytest.param(
            'tools/deployment/verify.py', ['none.py', 'none.pth', 'none.onnx'], 2, marks=pytest.mark.matrix
        ),
        pytest.param('tools/test.py', ['none.py', 'none.pth', '--eval', 'bbox'], 2, marks=pytest.mark.matrix),
        ('tools/onnx/onnx_with_postprocess.py', ['none.onnx', 'none.jpg'], 2),
    ],
)
def test_the_exit_status_and_the_line_reach_the_shell(script, words, status, tmp_path):
    done = subprocess.run(
        [sys.executable, REPOSITORY / script, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status and done.stdout == ''
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_a_reader_that_has_read_enough_ends_a_tool_without_a_word(tmp_path):
    script = tmp_path / 'many_lines.py'
    script.write_text(
        'import sys\nfrom mmdeploy_ext.core import cli\n'
        'sys.exit(cli.run(lambda args: [print(n) for n in range(99999)] and 0, cli.ArgumentParser()))\n'
    )
    command = f'PYTHONPATH={REPOSITORY} {sys.executable} {script} | head -1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('0\n141\n', '')


def unread(code: str, *words: str, stream: str = 'stdout') -> subprocess.CompletedProcess:
    """Run Python code in a process whose stdout or stderr nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE) | {stream: write}
        return subprocess.run([sys.executable, '-c', code, *words], cwd=REPOSITORY, text=True, **streams)
    finally:
        os.close(write)


TABLES = """
import pathlib, sys
from mmdeploy_ext.core import cli
from rich.console import Console
from rich.table import Table
def body(args):
    print('first', flush=True)
    cli.stdout().print(Table('a', 'b'))
    Console().print('a console of a library')
    cli.stderr().print('progress')
    pathlib.Path(args.file).write_text('written')
    print('last')
    return 1
made = cli.ArgumentParser(prog='tool')
made.add_argument('file')
sys.exit(cli.run(body, made))
"""


@pytest.mark.parametrize('stream', ['stdout', 'stderr'])
def test_a_tool_whose_output_nobody_reads_ends_without_a_traceback(tmp_path, stream):
    done = unread(TABLES, str(tmp_path / 'made'), stream=stream)
    assert done.returncode and 'Traceback' not in f'{done.stdout}{done.stderr}'


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux has a device that is always full')
@pytest.mark.parametrize('words', [['made'], ['--help'], ['made', 'long']])
def test_a_stdout_on_a_full_disk_is_one_line(tmp_path, words):
    code = (
        'import sys\nfrom mmdeploy_ext.core import cli\nmade = cli.ArgumentParser()\n'
        'made.add_argument("words", nargs="*")\n'
        'def body(args):\n    print("first" * (9999 if "long" in args.words else 1))\n    return 0\n'
        'sys.exit(cli.run(body, made))'
    )
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONUNBUFFERED'}
    settings = dict(cwd=REPOSITORY, env=environment, text=True, stderr=subprocess.PIPE)
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, '-c', code, *words], stdout=full, **settings)
    assert done.returncode == 1 and 'No space left on device' in done.stderr
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1


def test_help_that_nobody_reads_ends_without_a_word():
    done = unread(TABLES, '--help')
    assert done.returncode in (0, 141) and done.stderr == ''


def test_a_broken_pipe_of_another_process_is_an_error_with_a_message():
    code = (
        'import os, sys\nfrom mmdeploy_ext.core import cli\nread, write = os.pipe()\nos.close(read)\n'
        'sys.exit(cli.run(lambda args: os.write(write, b"to a worker"), cli.ArgumentParser()))'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith('error: [Errno 32] Broken pipe: ') and done.stderr.count('\n') == 1


class Unprintable(io.StringIO):
    def write(self, text):
        raise UnicodeEncodeError('ascii', text, 0, 1, 'a terminal of another kind')


@pytest.mark.parametrize(
    'words',
    [
        ['show', '{net}'],
        ['diff', '{net}', '{net}', '--report', '{folder}/r'],
        ['extract', '{net}', '--tensors', 'y', '--output', '{folder}/f.onnx'],
    ],
    ids=lambda words: words[0],
)
def test_what_was_found_is_on_the_disk_before_anything_is_printed(words, tmp_path, monkeypatch):
    import onnx

    from mmdeploy_ext.cli import graph_app

    text = '<ir_version: 9, opset_import: ["": 17]> net (float[3] x) => (float[3] y) { y = Abs (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / 'net.onnx')
    words = [word.format(net=tmp_path / 'net.onnx', folder=tmp_path) for word in words]
    monkeypatch.setattr(sys, 'stdout', Unprintable())
    assert graph_app.main([*words, '--json', str(tmp_path / 'f.json')]) == 1
    assert json.loads((tmp_path / 'f.json').read_text())
    assert all(Path(word).exists() for word in words if word.startswith(str(tmp_path)))


def test_a_shell_wrapper_without_its_arguments_says_so():
    command = ['bash', REPOSITORY / 'tools/dist_test_pth.sh', 'x.py']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('error: usage: ') and done.stderr.count('\n') == 1


def test_json_is_never_written_over_a_file_that_the_command_names(tmp_path, capsys):
    made = parser()
    made.add_argument('model')
    made.add_argument('--json')
    bodies = []
    words = [str(tmp_path / 'm.onnx'), '--json']
    assert cli.run(lambda args: bodies.append(args) or 0, made, [*words, str(tmp_path / 'm.json')]) == 0
    assert cli.run(lambda args: bodies.append(args) or 0, made, [*words, words[0]]) == 2
    assert len(bodies) == 1
    assert 'm.onnx: is the model; it is never overwritten' in capsys.readouterr().err


def test_an_argument_left_empty_names_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'points.bin').write_bytes(b'0')
    (tmp_path / 'm.json').write_text('{}')
    (tmp_path / 'm.onnx').write_bytes(b'0')
    made = parser()
    made.add_argument('--data-root', default='')
    cli.writes(made.add_argument('--output-file'))
    assert cli.run(lambda args: 0, made, ['--output-file', 'm.onnx']) == 0
    assert cli.run(lambda args: 0, made, ['--output-file', 'm.onnx', '--data-root', '.']) == 2


def test_a_tool_started_with_a_closed_stream_runs(monkeypatch):
    monkeypatch.setattr(sys, 'stdout', None)  # as Python has it then
    assert cli.run(lambda args: print('a') or 0, cli.ArgumentParser(), []) == 0


def test_what_the_encoding_of_stdout_lacks_is_written_as_an_escape(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding='cp1252')
    monkeypatch.setattr(sys, 'stdout', stream)
    assert cli.run(lambda args: print('\u6c49\udcff') or 0, cli.ArgumentParser(), []) == 0
    assert stream.buffer.getvalue() == b'\\u6c49\\udcff\n'
