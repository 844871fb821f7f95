"""A damaged file is found when it is opened; one that a tool has rewritten runs, with a note."""

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from mmdeploy_ext import open_model
from mmdeploy_ext.cli import command
from mmdeploy_ext.contract import digest
from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.graph.passes.fp16 import to_fp16
from mmdeploy_ext.proving import proof
from mmdeploy_ext.proving.claims import Claims
from mmdeploy_ext.util.errors import ModelFileError
from mmdeploy_ext.verdict.results import GraphResult
from toy_atss import PICTURE, load_demo

DEMO = Path(__file__).resolve().parents[2] / 'demo/atss_toy.onnx'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The demo's file with its digest."""
    path = tmp_path_factory.mktemp('whole') / 'm.onnx'
    files.save(files.load(DEMO), path)
    return path


@pytest.fixture
def damaged(whole, tmp_path):
    """The same with one flipped bit in a weight."""
    content, path = bytearray(whole.read_bytes()), tmp_path / 'damaged.onnx'
    weight = max(onnx.load(whole).graph.initializer, key=lambda tensor: len(tensor.raw_data)).raw_data
    content[content.index(weight) + len(weight) // 2] ^= 64
    path.write_bytes(content)
    return path


def test_another_tool_may_change_metadata_and_versions(whole, tmp_path):
    model = onnx.load(whole)
    model.ir_version, model.producer_name = 8, 'another tool'
    model.metadata_props.add(key='note', value='mine')
    onnx.save(model, tmp_path / 'm.onnx')
    assert digest.state(whole) == digest.state(tmp_path / 'm.onnx') == digest.WHOLE


def test_what_changes_a_graph_here_writes_another_digest(whole, tmp_path):
    model, halves, data = onnx.load(whole), tmp_path / 'h.onnx', tmp_path / 'd.onnx.data'
    files.save(to_fp16(model, read_metadata(whole).spec), halves, inputs=[whole])
    files.save_external(model, tmp_path / 'd.onnx', data)
    assert digest.state(halves) == digest.state(tmp_path / 'd.onnx') == digest.WHOLE
    stored = [
        next(json.loads(entry.value) for entry in onnx.load(path).metadata_props if entry.key == digest.KEY)
        for path in (whole, halves, tmp_path / 'd.onnx')
    ]
    assert len({entry['sha256'] for entry in stored}) == 3
    with data.open('r+b') as stream:
        stream.seek(100)
        stream.write(b'\xff')
    assert digest.state(tmp_path / 'd.onnx') == digest.DAMAGED


def test_a_file_of_others_gets_no_digest(tmp_path):
    model = onnx.load(DEMO)
    del model.metadata_props[:]
    files.save(model, tmp_path / 'm.onnx')
    assert not onnx.load(tmp_path / 'm.onnx').metadata_props
    assert digest.state(tmp_path / 'm.onnx') == digest.state(PICTURE) == digest.UNKNOWN


def test_a_damaged_file_is_not_used(damaged, tmp_path, capsys):
    with pytest.raises(ModelFileError, match='damaged'):
        open_model(damaged)
    kept = str(tmp_path / 'fixed.onnx')
    for words in (
        ['run', str(damaged), str(PICTURE), '--out', str(tmp_path / 'out')],
        ['info', str(damaged)],
        ['graph', 'set-shape', str(damaged), 'input=1x3x64x64', '--output', kept],
    ):
        assert command.main(words) == 2 and f'{damaged}: ' in capsys.readouterr().err
    assert not Path(kept).exists()


@pytest.mark.parametrize('edited', [False, True])
def test_a_damaged_file_is_not_proven_unless_it_was_edited_on_purpose(damaged, edited):
    file = proof.open_file(str(damaged))
    found = proof.start(load_demo('atss'), [file], {}, {}, Claims(edited), {})
    proof.check_graph(found, file, lambda: GraphResult('', 1, True))
    failed = [check.name for check in found.results.checks if not check.passed]
    notes = [note for note in found.verdict.notes if digest.KEY in note]
    assert (len(failed), len(notes)) == ((0, 1) if edited else (1, 0))


def test_a_rewritten_file_runs_with_a_note(whole, tmp_path, capsys):
    path, model = tmp_path / 'm.onnx', onnx.load(whole)
    model.graph.doc_string = 'by another tool'
    onnx.save(model, path)
    assert digest.state(path) == digest.REWRITTEN
    assert command.main(['run', str(path), str(PICTURE), '--out', str(tmp_path)]) == 0
    assert f'note: {path}: ' in capsys.readouterr().err
    with open_model(path) as opened, open_model(whole) as expected:
        picture = cv2.imread(str(PICTURE))
        np.testing.assert_array_equal(opened(picture).bboxes_xyxy, expected(picture).bboxes_xyxy)
