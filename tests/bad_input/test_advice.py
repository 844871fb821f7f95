"""What a message says to type works when it is typed; what is done says that it is done."""

import json
import sys
import time
from pathlib import Path

import onnx
import pytest
from mmcv import Config

import metadata_fuzz as fuzz
from mmdeploy_ext.cli import graph_app, info_app, options, run_app
from mmdeploy_ext.compat import doctor
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.suppression import nms_config
from mmdeploy_ext.synthetic import seeded

DEMO = Path(__file__).resolve().parents[2] / 'demo/atss_toy.onnx'


@pytest.mark.parametrize(
    'nms',
    [
        dict(type='soft_nms', iou_threshold=0.6, min_score=0.05),
        dict(type='soft_nms'),
        dict(type='nms', iou_threshold=0.6, max_num=3),
    ],
)
@pytest.mark.parametrize('part', ['', '.rpn'])
def test_the_options_that_replace_soft_nms_give_plain_nms(nms, part):
    test_cfg = dict(nms=nms, nms_pre=100, max_per_img=10, score_thr=0.1)
    cfg = Config(dict(model=dict(test_cfg=dict(rpn=dict(test_cfg), **test_cfg))))
    with pytest.raises(ConfigError) as refused:
        nms_config(test_cfg, key=f'model.test_cfg{part}')
    words = str(refused.value).partition('(--cfg-options ')[2].rstrip(')').split()
    cfg.merge_from_dict(options.parse_cfg_options(words))
    changed = cfg.model.test_cfg.rpn if part else cfg.model.test_cfg
    assert nms_config(changed).iou_threshold == nms.get('iou_threshold', 0.5)


@pytest.mark.parametrize(('name', 'extra'), [('pygraphviz', 'draw'), ('openvino.runtime', 'openvino')])
def test_a_package_of_an_extra_is_told_with_it(name, extra, capsys):
    def body(args):
        raise ModuleNotFoundError(f'No module named {name!r}', name=name)

    assert cli.run(body, cli.ArgumentParser(), []) == 2
    err = capsys.readouterr().err
    assert f"pip install 'mm2onnx[{extra}]'" in err and 'make env' not in err


def test_drawing_without_its_package_advises_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, 'pygraphviz', None)
    assert graph_app.main(['draw', str(DEMO), '--output', str(tmp_path / 'x.svg')]) == 2
    assert "pip install 'mm2onnx[draw]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    'line',
    [
        "raise ImportError('libcgraph.so.6: cannot open shared object file')",
        "raise OSError('libcgraph.so.6: cannot open shared object file')",
        'import pygraphviz._graphviz',
    ],
)
def test_drawing_with_a_package_that_does_not_load_advises_to_install_it_again(
    line, monkeypatch, tmp_path, capsys
):
    (tmp_path / 'pygraphviz').mkdir()
    (tmp_path / 'pygraphviz/__init__.py').write_text(f'{line}\n')
    for name in [name for name in sys.modules if name.split('.')[0] == 'pygraphviz']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    assert graph_app.main(['draw', str(DEMO), '--output', str(tmp_path / 'x.svg')]) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: ') and err.count('\n') == 1
    assert 'pygraphviz is installed for' in err and "--force-reinstall 'mm2onnx[draw]'" in err


def test_what_differs_from_what_was_tried_is_in_the_last_line(monkeypatch, capsys):
    fine = [doctor.Finding('numpy', '1.26', '1.26', 'ok')]
    other = [doctor.Finding('onnx', '9.0', '1.2', 'differs'), doctor.Finding('x', '2', '1', 'differs')]
    for findings in (fine, fine + other):
        monkeypatch.setattr(doctor, 'examine', lambda *words, found=findings, **more: found)
        assert doctor.main([]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert (last == 'healthy') == (findings is fine)
    assert last == 'healthy, with other versions than those tried: onnx 9.0 for 1.2, x 2 for 1; ' + (
        'the checks passed with them'
    )


def test_seeded_weights_are_reported(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(seeded, 'write_seeded', lambda config, out, *_: out.write_bytes(bytes(2_000_000)))
    assert seeded.main(['config.py', str(tmp_path / 's.pth')]) == 0
    assert capsys.readouterr().out == f'{tmp_path / "s.pth"}: seeded weights of config.py, 2.0 MB\n'


def test_a_file_is_of_one_family_whichever_tool_shows_it(capsys):
    family = json.loads(fuzz.props_of(onnx.load(DEMO))['mm2onnx.family'])
    assert graph_app.main(['show', str(DEMO)]) == info_app.main([str(DEMO)]) == 0
    out = capsys.readouterr().out
    assert f'mm2onnx.family: "{family}"' in out and f'{family}: full' in out


def test_loops_are_compiled_before_the_time_is_taken(monkeypatch, capsys):
    monkeypatch.setattr(run_app, 'NOTE_AFTER_S', 0.01)
    calls, compile_loops = [], run_app.once('note: compiled')
    compile_loops(lambda: calls.append(time.sleep(0.3)))
    assert capsys.readouterr().err == 'note: compiled\n'
    compile_loops(lambda: calls.append(time.sleep(0.3)))
    assert len(calls) == 1 and capsys.readouterr().err == ''
    quick = run_app.once('note: compiled')
    with pytest.raises(ZeroDivisionError):
        quick(lambda: 1 / 0)
    monkeypatch.setattr(run_app, 'NOTE_AFTER_S', 60)
    quick(lambda: calls.append(None))
    assert len(calls) == 2 and capsys.readouterr().err == ''
