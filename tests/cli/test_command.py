"""`mm2onnx`: where nothing but the wheel is installed, from another folder; and what it refuses."""

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

import installed_wheel
import toy_centerpoint
from mmdeploy_ext.base import commands
from mmdeploy_ext.cli import command
from mmdeploy_ext.cli.run_app import NOT_COMPILED
from mmdeploy_ext.spec.registry import contract_class, registered
from refusals import refused

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL, PICTURE = (str(REPOSITORY / f'demo/{name}') for name in ('atss_toy.onnx', 'toy.jpg'))


@pytest.fixture(scope='session')
def installed(tmp_path_factory):
    """`mm2onnx` of a fresh environment without an extra, to be run in a folder of its own."""
    return installed_wheel.Command(tmp_path_factory.mktemp('wheel'))


def done(result):
    assert (result.returncode, result.stderr) == (0, ''), result.stderr
    return result.stdout


@pytest.mark.matrix
def test_pictures_are_drawn_and_every_detection_is_written(installed):
    said = done(installed('run', MODEL, PICTURE, '--out', 'drawn', '--json', 'found.json'))
    assert said.startswith(f'{PICTURE}: 7 detections, ')
    assert cv2.imread(str(installed.folder / 'drawn/toy_det.jpg')) is not None
    found = json.loads((installed.folder / 'found.json').read_text())
    assert found['family'] == 'dense' and found['images'][0]['drawn'] == 7


@pytest.mark.matrix
def test_sweeps_are_drawn_from_above(installed, tmp_path):
    graphs = toy_centerpoint.exported()[1]
    for seed in (1, 2):
        toy_centerpoint.sweep(seed, 500).tofile(tmp_path / f'{seed}.pcd.bin')
    words = ('run', graphs, tmp_path, '--out', 'sweeps', '--json', 'sweeps.json', '--score-thr', '0.1')
    result = installed(*words, PYTHONWARNINGS='ignore')
    # without numba; a busy machine needs the seconds after which the note comes
    assert result.returncode == 0 and result.stderr in ('', f'{NOT_COMPILED}\n'), result.stderr
    assert '2 sweeps, ' in result.stdout
    first = json.loads((installed.folder / 'sweeps.json').read_text())['sweeps'][0]
    assert first['drawn'] > 5 and first['detections'][0]['name'] in ('car', 'bus', 'truck')
    assert cv2.imread(str(installed.folder / 'sweeps/1.pcd_det.png')).std() > 5


@pytest.mark.matrix
def test_a_file_says_what_it_is(installed):
    said = done(installed('info', MODEL, '--json', 'info.json'))
    for words in ('dense: full', 'triangle', 'img_scale', 'atss_toy.py', 'dets', 'mm2onnx run'):
        assert words in said
    (file,) = json.loads((installed.folder / 'info.json').read_text())['files']
    assert file['precision'] == 'fp32' and file['spec']['inputs'][0]['name'] == 'input'


@pytest.mark.matrix
def test_the_doctor_asks_for_no_more_than_is_needed_to_run_files(installed):
    result = installed('doctor', '--json', 'doctor.json')
    assert result.returncode == 0, result.stdout
    assert 'PyTorch and OpenMMLab are not installed' in result.stdout and 'mmdet' not in result.stdout
    assert json.loads((installed.folder / 'doctor.json').read_text())['healthy']


@pytest.mark.matrix
def test_a_command_that_needs_more_names_its_extra(installed):
    result = installed('graph', 'show', MODEL)
    assert result.returncode == 2 and "pip install 'mm2onnx[graph]'" in result.stderr, result.stderr


# ---- in this environment


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        ((), 'COMMAND'),
        (('rum',), 'did you mean run?'),
        (('graph', 'shwo', MODEL), 'did you mean show'),
        (('run', MODEL, PICTURE, '--treshold', '0.5'), 'did you mean --score-thr?'),
        (('export', 'c', 'k', '--weights', 'k'), 'did you mean CHECKPOINT?'),
        (('run', MODEL), 'images'),
        (('run', MODEL, 'a.bin'), 'images'),
        (('check', MODEL), 'libspconv'),
        (('check', str(Path(MODEL).parent)), 'autoware'),
        (('judge', MODEL, 'x'), 'folder'),
        (('info', PICTURE), 'JPEG'),
        (('kit', MODEL), '--out'),
        (('export', 'c', 'k', '--node-list', 'n'), '--node-list is an option of sparse backbones'),
        (('export', 'c', 'k', '--parts', 'p', '--shape', '9'), '--shape is an option of whole detectors'),
        (('export', '--backbone', 'c', 'k', '--names', 'n'), '--names is an option of parts'),
        (('verify', 'c', 'k', MODEL, '--samples', 's'), '--samples is an option of parts'),
        (('test', 'c', 'k', '--parts', 'p', '--eval', 'e', '--torch'), '--torch is an option of whole'),
    ],
    ids=str,
)
def test_what_cannot_be_ends_with_status_2_and_one_line(capsys, words, expected):
    assert expected in refused(capsys, command.main, *words)


def test_wrong_configs_are_refused_before_torch_is_imported():
    commands = [
        'export no.py no.pth',
        'export no.py no.pth --parts list',
        f'export {PICTURE} {__file__}',
        'test no.py no.pth --eval bbox',
        f'verify no.py no.pth {MODEL}',
    ]
    code = (
        'import sys; from mmdeploy_ext.cli import command; '
        'left = [command.main(words.split()) for words in sys.argv[1:]]; '
        "print(left, {'torch', 'mmcv', 'onnx'} & {*sys.modules})"
    )
    ran = subprocess.run([sys.executable, '-c', code, *commands], capture_output=True, text=True)
    assert ran.stdout == f'{[2] * len(commands)} set()\n', ran.stderr
    assert ran.stderr.count('error: ') == len(commands)


@pytest.mark.parametrize(
    ('words', 'option'),
    [
        ('export --parts', '--names'),
        ('export --parts p', '--names'),
        ('export --backbone', '--node-list'),
        ('export', '--dynamic-export'),
        ('test --parts', '--parts'),
        ('benchmark --parts', '--warmup'),
    ],
)
def test_the_help_is_that_of_the_kind_of_export(capsys, words, option):
    with pytest.raises(SystemExit) as left:
        command.main([*words.split(), '--help'])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and f'{option} ' in shown
    assert ('--dynamic-export' in shown) == (words == 'export')


FAMILIES = registered()


@pytest.mark.parametrize('family', FAMILIES)
def test_the_command_behind_a_proof_is_one_of_mm2onnx_and_takes_its_words(family):
    texts = [*FAMILIES[family].used_by.values()]
    texts += filter(None, (contract_class(family, name).used_by for name in FAMILIES[family].contracts))
    values = dict.fromkeys(('file', 'folder', 'place', 'config', 'checkpoint'), 'x')
    for text in texts:
        name, *words = shlex.split(text.format(**values), comments=True)
        importlib.import_module(commands.COMMANDS[name].module).build_parser().parse_args(words)


def test_every_script_of_the_table_is_there():
    scripts = [entry.script for entry in commands.COMMANDS.values()]
    for script in filter(None, (*scripts, *commands.RUNNERS.values())):
        assert (REPOSITORY / script).is_file(), script


def test_debug_is_taken_in_front_of_the_command_and_behind_it(capsys):
    assert command.main(['--debug', 'info', 'no.onnx']) == 2
    err = capsys.readouterr().err
    assert 'Traceback' in err and 'no.onnx' in err
