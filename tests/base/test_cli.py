"""What all tools share: one `error:` line, exit codes, tracebacks only with --debug."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import (
    AbsentPackageError,
    CheckpointError,
    ConfigError,
    ExportError,
    UsageError,
    after_weights,
    named,
)
from mmdeploy_ext.cli import options

LEAVE = os._exit
REPOSITORY = Path(__file__).resolve().parents[2]


def parser() -> cli.ArgumentParser:
    made = cli.ArgumentParser(prog='tool')
    made.add_argument('--size', type=int)
    return made


def test_a_reader_that_has_enough_ends_a_tool_quietly_with_status_0():
    code = (
        'from mmdeploy_ext.base import cli\n'
        'def body(_):\n    for _ in range(20000): {}\n    return 0\n'
        'raise SystemExit(cli.run(body, cli.ArgumentParser(), []))'
    )
    for line in ("print('a line')", "cli.stdout().print('a line')"):
        process = subprocess.Popen(
            [sys.executable, '-c', code.format(line)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        process.stdout.readline()
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (0, b'')


def raising(error: BaseException):
    def body(_):
        raise error

    return body


@pytest.mark.parametrize(
    ('error', 'status'),
    [
        (UsageError('a'), 2),
        (CheckpointError('a'), 2),
        (ExportError('a'), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(error, status, capsys):
    assert cli.run(raising(error), parser(), []) == status
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('error: ') and err.count('\n') == 1


def test_a_package_that_is_not_installed_is_one_line_and_status_2(capsys):
    name = 'nowhere.x'
    error = ModuleNotFoundError(f'No module named {name!r}', name=name)
    assert cli.run(raising(error), parser(), []) == 2
    said = capsys.readouterr().err
    assert name.split('.')[0] in said and said.count('\n') == 1
    error = AbsentPackageError('a.py:3 calls einops.x', name='einops')
    assert cli.run(raising(error), parser(), []) == 2
    assert capsys.readouterr().err == 'error: a.py:3 calls einops.x\n'


def test_an_error_that_the_users_code_raises_is_one_line_that_names_its_innermost_line(capsys):
    def forward(_):
        return [1][int('2')]

    assert cli.run(forward, parser(), []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    place = f'{Path(__file__)}:{forward.__code__.co_firstlineno + 1}, in forward'
    assert line.startswith(f'error: {place}: IndexError: ')


def test_without_any_package_the_help_is_shown_and_the_tool_names_the_one_that_is_missing(tmp_path):
    words = ['tools/test.py', __file__, 'c.pth', '--eval', 'segm']
    bare = [sys.executable, '-I', '-S', str(REPOSITORY / words[0])]
    done = subprocess.run([*bare, '--help'], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith('usage: ') and not done.stderr
    done = subprocess.run([*bare, *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and ' is not installed for ' in done.stderr and done.stderr.count('\n') == 1


def test_an_error_found_after_the_weights_has_status_1_and_one_before_keeps_2():
    with pytest.raises(ConfigError) as error, after_weights():
        raise ConfigError('late')
    assert error.value.exit_code == 1 and ConfigError('early').exit_code == 2


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('3', 3),
        ('0.5', 0.5),
        ('true', True),
        ('None', None),
        ('a,b', ['a', 'b']),
        ('1,2', [1, 2]),
        ('(1,2)', (1, 2)),
        ('[1,2]', [1, 2]),
        ('{"a": 1}', {'a': 1}),
    ],
)
def test_overrides_are_read_as_openmmlab_reads_them(text, value):
    assert options.parse_cfg_options([f'a.b={text}']) == {'a.b': value}


def test_json_is_never_written_over_a_file_that_the_command_names(tmp_path, capsys):
    made = parser()
    made.add_argument('model')
    made.add_argument('--json')
    bodies = []
    words = [str(tmp_path / 'm.onnx'), '--json']
    assert cli.run(lambda args: bodies.append(args) or 0, made, [*words, str(tmp_path / 'm.json')]) == 0
    assert cli.run(lambda args: bodies.append(args) or 0, made, [*words, words[0]]) == 2
    assert len(bodies) == 1
    assert 'm.onnx: is the model; it is not overwritten' in capsys.readouterr().err


def test_an_error_gets_the_name_of_a_file_once_and_keeps_its_status():
    for error in (ConfigError('late'), ConfigError('a.py: late')):
        with pytest.raises(ConfigError, match=r'^a\.py: late$') as found, named('a.py'), after_weights():
            raise error
        assert found.value.exit_code == 1


def test_colours_of_a_message_are_left_out_and_a_closed_stdout_is_no_error(capsys, monkeypatch):
    assert cli.run(raising(UsageError('a \x1b[96mblue\x1b[0m word')), parser, []) == 2
    assert capsys.readouterr().err == 'error: a blue word\n'
    monkeypatch.setattr(sys, 'stdout', None)
    assert cli.run(lambda _: 0, parser, []) == 0


def test_a_terminal_gets_the_reason_first_and_the_rest_in_lines_of_its_own(monkeypatch, capsys):
    reasons = [
        'a.py: cannot be exported',
        'the head has ' + 'no form, ' * 20,
        'for parts of it: mm2onnx export',
    ]

    def body(args):
        raise ConfigError('; '.join(reasons))

    monkeypatch.setenv('COLUMNS', '60')
    cli.run(body, parser(), [])
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    cli.run(body, parser(), [])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == 'error: a.py: cannot be exported' and len(lines) > 4
    assert lines[-1].strip() == reasons[-1] and all(len(line) <= 60 for line in lines)


@pytest.mark.parametrize('leave', [sys.exit, os._exit])
def test_code_that_ends_the_process_is_no_success(leave, capsys):
    name = leave.__name__

    def body(_):
        getattr(os if name == '_exit' else sys, name)(0)

    assert cli.run(body, parser(), []) == 2
    assert 'ends this process' in capsys.readouterr().err and os._exit is LEAVE
