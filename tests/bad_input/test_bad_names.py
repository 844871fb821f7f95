"""Names from files: whatever they hold, they are printed as one line, or the file is refused by them."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import metadata_fuzz as fuzz
from mmdeploy_ext.cli import graph_app, info_app, run_app
from mmdeploy_ext.core.errors import UNPRINTABLE, UsageError, escape, printable, shortened
from mmdeploy_ext.families.model import class_names
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.draw import draw_detections

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL, TOY = REPOSITORY / 'demo/atss_toy.onnx', REPOSITORY / 'demo/toy.jpg'
NASTY = 'a\x1b]0;title\x07\x1b[31m\x9b2Jb\n\u202ec\u2028'
TEXTS = st.text(st.characters())


@given(TEXTS)
def test_a_printed_name_is_one_line_that_no_terminal_obeys(text):
    shown = printable(text)
    assert not UNPRINTABLE.search(shown) and len(shown.splitlines()) <= 1
    shown.encode()
    assert printable(shown) == shown
    assert (shown == text) == (not UNPRINTABLE.search(text))


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('Auto-Ä 漢 👩\u200d🚒', 'Auto-Ä 漢 👩\u200d🚒'),
        (os.fsdecode(b'\xff.jpg'), '\\xff.jpg'),
        ('\ud800', '\\ud800'),
        ('a\x1b[0m\nb', 'a\\x1b[0m\\nb'),
    ],
)
def test_what_cannot_be_printed_is_an_escape(text, expected):
    assert printable(text) == expected


def test_a_text_is_quoted_with_the_same_escapes():
    assert shortened('a\x1b\nb') == r"'a\x1b\nb'"
    assert shortened(os.fsdecode(b'\xff.jpg')) == r"'\xff.jpg'"
    assert shortened(['a\x1b\nb']) == r"['a\x1b\nb']"


def test_a_value_is_short_whatever_it_holds():
    bomb = ()
    for _ in range(60):
        bomb = (bomb, bomb)
    for value in (bomb, 'x' * 10**6, 10**4000, [NASTY] * 10**5, {NASTY: bomb}):
        assert len(shortened(value)) < 300 and not UNPRINTABLE.search(shortened(value))


@pytest.fixture(scope='module')
def model():
    return onnx.load(MODEL)


def with_classes(model, path, classes):
    """Write the model with other class names, as JSON text."""
    props = fuzz.props_of(model) | {'mm2onnx.classes': classes}
    return str(fuzz.write(model, props, path))


def test_half_a_character_in_a_label_is_drawn_as_an_escape():
    found = Detections(np.array([[5, 5, 40, 40]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    picture = draw_detections(np.zeros((60, 60, 3), np.uint8), found, ['a\ud800'])
    assert picture.any()


def test_controls_in_names_do_not_reach_the_terminal(model, tmp_path, capsys):
    count = len(json.loads(fuzz.props_of(model)['mm2onnx.classes']))
    path = with_classes(model, tmp_path / f'{NASTY}.onnx', json.dumps([NASTY] * count))
    assert info_app.main([path]) == 0
    out = capsys.readouterr().out
    assert r'\x1b[31m' in out and not re.search('[\x1b\x07\x9b\u202e]', out)
    nasty = onnx.ModelProto()
    nasty.CopyFrom(model)
    nasty.graph.node[3].name = f'/{NASTY}/x'
    (tmp_path / 'n.onnx').write_bytes(nasty.SerializeToString())
    assert graph_app.main(['show', str(tmp_path / 'n.onnx'), '--nodes']) == 0
    out = capsys.readouterr().out
    assert r'\x1b[31m' in out and not re.search('[\x1b\x07\x9b\u202e]', out)
    assert run_app.main([str(tmp_path / 'n.onnx'), str(tmp_path / NASTY)]) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and not re.search('[\x1b\x07\x9b\u202e]', err)


def test_names_of_inputs_that_are_not_utf_8_are_refused_by_what_runs_and_shows_a_file(tmp_path, capsys):
    content = MODEL.read_bytes().replace(b'\x05input', b'\x05inp\xff\xfe')
    (tmp_path / 'm.onnx').write_bytes(content)
    for main, words in ((run_app.main, [str(TOY)]), (info_app.main, [])):
        assert main([str(tmp_path / 'm.onnx'), *words]) == 2
        err = capsys.readouterr().err
        assert err.count('\n') == 1 and "m.onnx: the name of an input or output is not UTF-8: b'inp" in err


def test_a_picture_whose_name_is_not_utf_8_is_run(tmp_path, capsys):
    picture = os.path.join(os.fsencode(tmp_path), b'\xff\xfe.jpg')
    shutil.copy(TOY, picture)
    words = [
        str(MODEL),
        os.fsdecode(picture),
        '--out',
        str(tmp_path / 'out'),
        '--json',
        str(tmp_path / 'j.json'),
    ]
    assert run_app.main(words) == 0
    assert r'\xff\xfe.jpg: ' in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / 'j.json').read_text())['images']
    assert os.fsencode(entry['image']) == picture and read_image(entry['picture']).any()
    assert os.listdir(os.fsencode(tmp_path / 'out')) == [b'\xff\xfe_det.jpg']


@pytest.mark.parametrize('source', ['checkpoint', 'config'])
def test_class_names_with_half_a_character_are_not_exported(source):
    names, others = ['a', '\ud800'], ['b', 'c']
    meta = dict(CLASSES=names if source == 'checkpoint' else None)
    cfg = dict(classes=others if source == 'checkpoint' else names)
    with pytest.raises(UsageError, match=r'ud800.'):
        class_names(cfg, meta, 2)


def test_a_model_whose_path_is_not_utf_8_is_refused_by_what_is_wrong(tmp_path, capsys):
    model = os.path.join(os.fsencode(tmp_path), b'\xff.onnx')
    shutil.copy(MODEL, model)
    assert run_app.main([os.fsdecode(model), str(TOY), '--out', str(tmp_path / 'out')]) == 2
    assert r'\xff.onnx: its path is not UTF-8, and ONNX Runtime opens no such' in capsys.readouterr().err


def test_markup_in_a_name_is_only_a_name():
    from rich.text import Text

    assert Text.from_markup(escape('[/bold] [red]a')).plain == '[/bold] [red]a'
