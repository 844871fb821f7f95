"""The report page and the console table: self-contained, escaped, and every figure is the JSON's."""

import dataclasses
import html
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from mmdeploy_ext.cli import proof
from mmdeploy_ext.families.synthetic.drive import SyntheticDrive
from mmdeploy_ext.proving.drive_run import DriveLength
from mmdeploy_ext.proving.views import report
from mmdeploy_ext.proving.views.table import next_command, print_verdict
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.tasks.bbox2d import match_detections
from mmdeploy_ext.spec.comparison import compare_tensors
from mmdeploy_ext.spec.results import (
    Case,
    Check,
    GraphResult,
    MetricRow,
    Pair,
    PreprocessingResult,
)
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec
from mmdeploy_ext.spec.verdict import (
    AS_IN_CONFIG,
    Finding,
    Results,
    Verdict,
    library_findings,
    metric_finding,
)
from proofs import run_modes
from toy_stepper import MEMORY, ToyStepper
from toy_stepper import SPEC as STREAM

EVIL = '<script>alert("1")</script> & "Müller\'s" [red]'
NAMES = [f'{kind}_{level}' for kind in ('cls_score', 'bbox_pred', 'centerness') for level in range(5)]
SPEC = GraphSpec('toy/raw', (), tuple(TensorSpec(name, 'float32', ('B', 4, 6)) for name in NAMES))
BOXES = np.array([[20, 20, 90, 80], [100, 30, 180, 140]], np.float32)
FOUND = Detections(BOXES, np.array([0.9, 0.4], np.float32), np.array([0, 1]))


def tensors(seed: int, noise: float) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    reference = {name: rng.normal(size=(1, 4, 6)).astype(np.float32) for name in NAMES}
    return reference, {
        name: (array + noise * rng.normal(size=array.shape)).astype(np.float32)
        for name, array in reference.items()
    }


def make_case(name: str, seed: int, traced: bool = False, faults: bool = False) -> Case:
    reference, candidate = tensors(seed, 1e-6)
    found = FOUND
    if faults:
        candidate['bbox_pred_2'] *= 1.05
        candidate['cls_score_0'][0, 0, 0] = np.nan
        del candidate['centerness_4']
        found = Detections(BOXES[:1] + 3, FOUND.scores[:1], FOUND.labels[:1])
    rows = tuple(compare_tensors(reference, candidate, SPEC))
    return Case(name, '1x3x64x64', traced, rows, (match_detections('a.jpg', FOUND, found),))


def results() -> Results:
    return Results(
        checks=[Check('onnx.checker', True), Check('weights of c.pth', True)],
        cases=[make_case('traced input', 1, traced=True), make_case('other image', 2)],
        graphs=[GraphResult('', 1485, True)],
        preprocessing=PreprocessingResult(('a.jpg', 'b.png')),
    )


def verdict_of(results: Results) -> Verdict:
    subject = dict(task='bbox2d', file='toy.onnx', file_sha256='ab' * 32, family='dense', form='raw')
    verdict = Verdict(dict(subject, config='c.py', checkpoint='c.pth'), notes=['One note.'])
    verdict.timing_ms = {'PyTorch': 31.25, 'onnxruntime (graph)': 20.5}
    results.add_to(verdict)
    return verdict


def proven() -> Verdict:
    return verdict_of(results())


def failed() -> Verdict:
    compared = results()
    compared.cases.append(make_case(EVIL, 3, faults=True))
    compared.checks.append(Check(EVIL, False, EVIL))
    compared.reasons.append(EVIL)
    verdict = verdict_of(compared)
    verdict.findings.append(metric_finding(MetricRow('bbox_mAP_50', 0.7, float('nan'), 0.0005, False)))
    verdict.untraced, verdict.model_classes = [f'{EVIL}.forward: {EVIL}'], [EVIL]
    return verdict


def test_the_page_has_the_claim_every_reason_and_the_json_and_escapes_text_from_outside(tmp_path):
    verdict = failed()
    image = np.random.default_rng(0).integers(0, 255, (160, 200, 3), np.uint8)
    verdict.pairs = [Pair(EVIL, image, FOUND, FOUND)]
    path = report.write_report(verdict, [EVIL, 'dog'], tmp_path)
    text = path.read_text(encoding='utf-8')
    (embedded,) = re.findall(r'<script type="application/json" id="verdict">(.*?)</script>', text, re.S)
    assert json.loads(embedded) == json.loads((tmp_path / 'verdict.json').read_text()) == verdict.to_json()
    shown = html.unescape(text)
    assert verdict.title in shown and all(reason in shown for reason in verdict.failures)
    assert text.count('<script') == 1


def test_a_task_that_cannot_draw_takes_neither_the_verdict_nor_leaves_an_older_page(tmp_path, capsys):
    verdict = proven()
    verdict.pairs = [Pair('a.jpg', np.zeros((40, 40, 3), np.uint8), object(), object())]
    (tmp_path / 'report.html').write_text('an older verdict')
    detector = SimpleNamespace(classes=['dog'], family=SimpleNamespace(task='bbox2d'))
    status = proof.show(verdict, detector, SimpleNamespace(json=None, report=str(tmp_path)))
    assert status == (0 if verdict.passed else 1) and verdict.title in capsys.readouterr().out
    assert not (tmp_path / 'report.html').exists()
    assert json.loads((tmp_path / 'verdict.json').read_text()) == verdict.to_json()


def test_the_page_of_a_drive_has_the_json_of_its_series(tmp_path):
    frames = SyntheticDrive(frames=12, size=(8, 24), cameras=6)
    candidates = {mode: ToyStepper() for mode in ('teacher', 'free')}
    rows = run_modes(ToyStepper(), candidates, frames, STREAM, memory=MEMORY, length=DriveLength(frames=12))
    verdict = Verdict(dict(file='folder', task='bbox3d'))
    Results([GraphResult('head', 30, True)], sequence=list(rows.values())).add_to(verdict)
    frame = next(iter(frames))
    found, images = ToyStepper().step(frame).detections, np.full((6, 32, 96, 3), 90, np.uint8)
    pair = Pair(frame.name, images, found, found, lidar2img=frame.lidar2img)
    verdict.pairs = [pair]
    text = report.write_report(verdict, ['cat', 'ant', 'dog'], tmp_path).read_text(encoding='utf-8')
    assert verdict.title in text and json.loads((tmp_path / 'verdict.json').read_text()) == verdict.to_json()


def printed(verdict: Verdict) -> list[str]:
    stream = io.StringIO()
    print_verdict(verdict, Console(file=stream, width=120))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ('absent', 'reason'),
    [
        (dict(graphs=[]), 'the graph was not compared with a fresh export'),
        (dict(preprocessing=None), "preprocessing: not compared with the config's test pipeline"),
        (dict(cases=[make_case('traced input', 1, traced=True)]), 'no input that the exporter did not see'),
        (dict(preprocessing=PreprocessingResult(())), 'no image was compared'),
        (dict(preprocessing=PreprocessingResult(('a',), error='KeyError: img')), 'KeyError: img'),
    ],
    ids=['graph', 'preprocessing', 'inputs', 'pictures', 'error'],
)
def test_nothing_is_proven_without_each_comparison(absent, reason):
    verdict = verdict_of(dataclasses.replace(results(), **absent))
    assert verdict.title == 'NOT PROVEN' and any(reason in failure for failure in verdict.failures)


def test_settings_that_differ_are_told_before_nodes_that_differ_because_of_them():
    of_graph = Finding('file', 'graph', False, '#1390 (NonMaxSuppression): iou_threshold')
    of_settings = Finding('surroundings', f'post-processing {AS_IN_CONFIG}', False, 'file 0.6, config 0.601')
    assert Verdict({}, [of_graph, of_settings]).failures[:2] == [of_settings.line, of_graph.line]


@pytest.mark.parametrize(
    ('accepted', 'title'), [(True, 'PROVEN against the installed mmdet3d 1.0'), (False, 'NOT PROVEN')]
)
def test_a_copy_of_a_library_that_did_not_run_is_in_the_claim_or_a_failure(accepted, title):
    not_run, verdict = {'mmdet3d 0.17': 'mmdet3d 1.0'}, proven()
    verdict.subject['libraries_not_run'] = not_run
    verdict.findings += library_findings(not_run, accepted)
    assert verdict.title == title and printed(verdict)[0].startswith(
        "the repository's own mmdet3d 0.17 did not run"
    )
    assert ('--library installed' in next_command(verdict)) is not accepted


def test_the_next_command_leaves_out_the_weights_that_the_proof_left_out():
    for level in ('outputs', 'surroundings'):  # verify, and export again
        verdict = proven()
        verdict.subject['ignored_keys'] = ['mask_head.']
        verdict.findings.append(Finding(level, '', False))
        assert '--ignore-keys mask_head.' in next_command(verdict)


@pytest.mark.parametrize(('max_rel', 'words'), [(0.1, ' diff c.py c.pth toy.onnx'), (None, 'toy_raw.onnx')])
def test_the_other_form_is_advised_only_where_no_tensor_of_the_network_differs(max_rel, words):
    verdict = proven()
    verdict.subject['form'] = 'full'
    figures = dict(tensor='cls_score_0' if max_rel else 'dets', max_rel=max_rel)
    verdict.findings.append(Finding('outputs', 'other image: tensor', False, '', figures))
    verdict.findings.append(Finding('outputs', 'other image: a.jpg', False, '', dict(image='a.jpg')))
    assert words in next_command(verdict)
