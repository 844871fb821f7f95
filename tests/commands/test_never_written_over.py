"""Nothing that a tool reads is ever written: refused by name, exit status 2, before anything is loaded."""

import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = {
    'seeded': 'mmdeploy_ext.seeded.weights',
    'dump': 'mmdeploy_ext.cli.dump_app',
}
SCRIPTS = {
    name: REPOSITORY / 'tools' / path
    for name, path in {
        'export': 'deployment/pytorch2onnx.py',
        'solo': 'deployment/solo2onnx.py',
        'scn': 'deployment/export_scn.py',
        'verify': 'deployment/verify.py',
        'tensorrt': 'deployment/onnx2tensorrt.py',
        'quantize': 'deployment/quantize.py',
        'ptq': 'quantization/scn_ptq.py',
        'run': 'onnx/onnx_with_postprocess.py',
        'raw': 'onnx/onnx_no_topk_nms.py',
        'run_solo': 'onnx/onnx_solo.py',
        'run_rtdetr': 'onnx/onnx_rtdetr.py',
        'graph': 'onnx/graph.py',
        'lint': 'onnx/lint.py',
        'benchmark': 'analysis_tools/benchmark.py',
        'lidar': 'demo/lidar_demo.py',
        'video': 'demo/streampetr_video.py',
        'convert': 'convert.py',
        'test': 'test.py',
    }.items()
}
CASES = {
    'export checkpoint': ('export cfg.py k.pth --output-file {}', 'k.pth'),
    'export config': ('export cfg.py k.pth --output-file {}', 'cfg.py'),
    'export base': ('export cfg.py k.pth --output-file {}', 'base.py'),
    'export base of the base': ('export cfg.py k.pth --output-file {}', 'root.py'),
    'export annotation': ('export cfg.py k.pth --output-file {}', 'ann.json'),
    'export overridden annotation': (
        'export cfg.py k.pth --output-file {} --cfg-options data.test.ann_file=k.json',
        'k.json',
    ),
    'export input image': ('export cfg.py k.pth --input-img a.jpg --output-file {}', 'a.jpg'),
    'export test image': ('export cfg.py k.pth --test-img b.jpg a.jpg --verify --output-file {}', 'a.jpg'),
    'export image of a folder': (
        'export cfg.py k.pth --test-img pictures --verify --output-file {}',
        'pictures/c.jpg',
    ),
    'export shown picture': (
        'export cfg.py k.pth --input-img m.onnx.png --show --output-file m.onnx',
        'm.onnx.png',
    ),
    'export json': ('export cfg.py k.pth --verify --json {} --output-file m.onnx', 'k.pth'),
    'export report': (
        'export cfg.py k.pth --verify --test-img out/detections.png --report out --output-file m.onnx',
        'out/detections.png',
    ),
    'solo checkpoint': ('solo cfg.py k.pth --output-file {}', 'k.pth'),
    'solo image': ('solo cfg.py k.pth --input-img a.jpg --output-file {}', 'a.jpg'),
    'scn checkpoint': ('scn cfg.py k.pth --output-file {}', 'k.pth'),
    'scn ranges': ('scn cfg.py k.pth --precision int8 --ranges k.json --output-file {}', 'k.json'),
    'scn node list': ('scn cfg.py k.pth --verify --node-list k.json --output-file {}', 'k.json'),
    'scn sweep': ('scn cfg.py k.pth --verify --input sweep.bin --output-file {}', 'sweep.bin'),
    'scn base': ('scn cfg.py k.pth --output-file {}', 'base.py'),
    'verify file': ('verify cfg.py k.pth m.onnx --json {}', 'm.onnx'),
    'verify report': (
        'verify cfg.py k.pth m.onnx --images out/detections.png --report out',
        'out/detections.png',
    ),
    'verify folder of graphs': ('verify cfg.py k.pth graphs --json {}', 'graphs/head.onnx'),
    'tensorrt': ('tensorrt m.onnx --output {}', 'm.onnx'),
    'tensorrt layers': ('tensorrt m.onnx --layers {}', 'm.onnx'),
    'quantize model': ('quantize m.onnx --calibrate pictures --output {}', 'm.onnx'),
    'quantize picture': ('quantize m.onnx --calibrate pictures --output {}', 'pictures/c.jpg'),
    'quantize report': ('quantize m.onnx --calibrate pictures --json {}', 'pictures/c.jpg'),
    'ptq': ('ptq cfg.py k.pth --calibrate sweep.bin --output {}', 'sweep.bin'),
    'run picture': ('run m.onnx a.jpg --out {}', 'a.jpg'),
    'run other picture': ('run m.onnx a_det.jpg a.jpg --out .', 'a_det.jpg'),
    'run model': ('run m.onnx a.jpg --json {}', 'm.onnx'),
    'raw json': ('raw m.onnx a.jpg --json {}', 'a.jpg'),
    'solo runner': ('run_solo m.onnx a.jpg --json {}', 'a.jpg'),
    'rtdetr runner': ('run_rtdetr m.onnx pictures --json {}', 'pictures/c.jpg'),
    'graph edit': ('graph set-shape m.onnx x=1x3 --output {}', 'm.onnx'),
    'graph show': ('graph show m.onnx --json {}', 'm.onnx'),
    'graph diff': ('graph diff cfg.py k.pth m.onnx --json {}', 'base.py'),
    'lint': ('lint cfg.py k.pth --json {}', 'base.py'),
    'benchmark': ('benchmark cfg.py k.pth --onnx m.onnx --json {}', 'm.onnx'),
    'lidar': ('lidar sweep.bin --config cfg.py --checkpoint k.pth --out {}', 'k.pth'),
    'video': ('video cfg.py k.pth --out {}', 'k.pth'),
    'rtdetr config': ('convert rtdetr k.pth {} --config cfg.py', 'cfg.py'),
    'wxinlong': ('convert solo k.pth {} --config cfg.py', 'k.pth'),
    'test': ('test cfg.py k.pth --eval bbox --out {}', 'k.pth'),
    'seeded config': ('seeded cfg.py {}', 'cfg.py'),
    'seeded anything': ('seeded cfg.py {}', 'k.pth'),
    'dump': ('dump compare dumped dumped --json {}', 'dumped/manifest.json'),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with a toy's config, checkpoint and pictures, and files of other kinds."""
    monkeypatch.chdir(tmp_path)
    texts = {
        'root.py': f"_base_ = '{REPOSITORY}/configs/demo/atss_toy.py'\n",
        'base.py': "_base_ = './root.py'\n",
        'cfg.py': "_base_ = ['./base.py']\ndata = dict(test=dict(ann_file='ann.json'))\n",
        **dict.fromkeys(
            ['ann.json', 'k.json', 'sweep.bin', 'graphs/head.onnx', 'dumped/manifest.json'], '{}'
        ),
    }
    for name, text in texts.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    shutil.copy(REPOSITORY / 'demo/checkpoints/atss_toy.pth', 'k.pth')
    shutil.copy(REPOSITORY / 'demo/atss_toy.onnx', 'm.onnx')
    Path('pictures').mkdir()
    Path('out').mkdir()
    for name in ('a.jpg', 'a_det.jpg', 'b.jpg', 'pictures/c.jpg', 'out/detections.png', 'm.onnx.png'):
        shutil.copy(REPOSITORY / 'demo/toy.jpg', name)
    return tmp_path


LINKS = {
    'as it is': lambda path: path,
    'relative': lambda path: os.path.join('pictures', '..', path),
    'absolute': os.path.abspath,
    'symbolic link': lambda path: os.symlink(path, 'linked') or 'linked',
    'hard link': lambda path: os.link(path, 'linked') or 'linked',
}


def run(command: list[str], monkeypatch, capsys) -> tuple[int, str]:
    """Run a tool in this process as a script; return its exit status and what it said on stderr."""
    tool, *words = command
    monkeypatch.setattr(sys, 'argv', [tool, *words])
    try:
        if tool in MODULES:
            runpy.run_module(MODULES[tool], run_name='__main__')
        else:
            runpy.run_path(str(SCRIPTS[tool]), run_name='__main__')
    except SystemExit as leaving:
        return leaving.code, capsys.readouterr().err
    return 0, capsys.readouterr().err


@pytest.mark.parametrize(('command', 'victim'), CASES.values(), ids=CASES)
def test_a_file_that_is_read_is_never_written(command, victim, folder, monkeypatch, capsys):
    before = Path(victim).read_bytes()
    status, said = run(command.format(victim).split(), monkeypatch, capsys)
    assert Path(victim).read_bytes() == before
    assert (status, said.count('\n')) == (2, 1), said
    assert victim in said and 'never overwritten' in said


@pytest.mark.parametrize('spell', LINKS.values(), ids=LINKS)
def test_another_spelling_of_a_file_is_the_same_file(spell, folder, monkeypatch, capsys):
    name, before = spell('k.pth'), Path('k.pth').read_bytes()
    status, said = run(['export', 'cfg.py', 'k.pth', '--output-file', name], monkeypatch, capsys)
    assert status == 2 and f'error: --output-file {name}: is the checkpoint; it is never overwritten' in said
    assert Path('k.pth').read_bytes() == before


@pytest.mark.parametrize(
    ('command', 'said'),
    {
        'file and json': (
            'export cfg.py k.pth --verify --output-file x --json x',
            '--json x: is what --output-file',
        ),
        'report and json': (
            'verify cfg.py k.pth m.onnx --report r --json r/verdict.json',
            '--json r/verdict.json: is what --report',
        ),
        'report and file': (
            'export cfg.py k.pth --verify --output-file r/report.html --report r',
            '--report r/report.html: is what --output-file',
        ),
        'shown picture': (
            'export cfg.py k.pth --show --verify --output-file x --json x.png',
            '--show x.png: is what --json',
        ),
        'pictures': ('run m.onnx a.jpg --out x.png --json x.png', 'x.png: is what'),
        'engine': ('tensorrt m.onnx --output x --layers x.json', '--layers x.json: is what --output'),
    }.values(),
)
def test_two_outputs_of_one_run_are_two_files(command, said, folder, monkeypatch, capsys):
    status, found = run(command.split(), monkeypatch, capsys)
    assert status == 2 and said in found and found.count('\n') == 1, found


@pytest.mark.parametrize(
    'command',
    [
        'export cfg.py k.pth --output-file',
        'export cfg.py k.pth --verify --report',
        'solo cfg.py k.pth --output-file',
        'scn cfg.py k.pth --output-file',
        'verify cfg.py k.pth m.onnx --json',
        'quantize m.onnx --calibrate pictures --output',
        'tensorrt m.onnx --output',
        'graph show m.onnx --json',
        'test cfg.py k.pth --eval bbox --work-dir',
    ],
)
def test_an_empty_name_of_an_output_is_an_error(command, folder, monkeypatch, capsys):
    before = sorted(os.listdir('.'))
    status, said = run([*command.split(), ''], monkeypatch, capsys)
    assert status == 2 and "'': is not a name" in said and said.count('\n') == 1, said
    assert sorted(os.listdir('.')) == before


def test_a_report_may_replace_an_earlier_one_beside_the_graphs(folder, monkeypatch, capsys):
    Path('graphs/report.html').write_text('earlier')
    status, said = run(['verify', 'cfg.py', 'k.pth', 'graphs', '--report', 'graphs'], monkeypatch, capsys)
    assert status == 2 and 'never overwritten' not in said, said


def test_seeded_weights_overwrite_nothing(folder, monkeypatch, capsys):
    Path('there.pth').write_text('kept')
    status, said = run(['seeded', 'cfg.py', 'there.pth'], monkeypatch, capsys)
    assert (status, Path('there.pth').read_text()) == (2, 'kept') and 'is there already' in said
