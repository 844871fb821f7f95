"""The report page and the console table: self-contained, escaped, and every figure is the JSON's."""

import base64
import dataclasses
import html.parser
import io
import json
import re
import shlex

import cv2
import numpy as np
import pytest
from rich.console import Console

from mmdeploy_ext.cli import command
from mmdeploy_ext.contract.comparison import compare_tensors
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.proving.verdict import Results, Verdict, library_findings, metric_finding
from mmdeploy_ext.proving.views import report
from mmdeploy_ext.proving.views.table import next_command, print_verdict
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.tasks.bbox2d import match_detections
from mmdeploy_ext.tasks.bev import draw_bev
from mmdeploy_ext.tasks.results import (
    Case,
    Check,
    GraphResult,
    MetricRow,
    Pair,
    PreprocessingDifference,
    PreprocessingResult,
)

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


@pytest.fixture
def pictures() -> list[Pair]:
    image = np.random.default_rng(0).integers(0, 255, (160, 200, 3), np.uint8)
    return [Pair('a.jpg, 200x160', image, FOUND, FOUND), Pair(EVIL, image, FOUND, FOUND)]


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


def detections_only() -> Verdict:
    compared = results()
    compared.cases = [dataclasses.replace(case, tensors=()) for case in compared.cases]
    return verdict_of(compared)


VERDICTS = dict(proven=proven, failed=failed, detections_only=detections_only, nothing=lambda: Verdict({}))


class Page(html.parser.HTMLParser):
    """Collects elements with their attributes, the JSON and the visible text."""

    VOID = ('meta', 'img', 'link', 'br')

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.scripts, self.text, self.stack = [], [], '', []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.stack.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag, f'</{tag}> closes another element'

    def handle_data(self, data):
        tag, attributes = self.stack[-1] if self.stack else ('', {})
        if tag == 'script':
            self.scripts.append((attributes, data))
        elif tag != 'style':
            self.text += data


@pytest.fixture(params=VERDICTS)
def written(request, tmp_path, pictures):
    verdict = VERDICTS[request.param]()
    shown = pictures if verdict.findings else []
    path = report.write_report(verdict, shown, ['cat', 'dog'], tmp_path / 'report')
    return verdict, path, path.read_text(encoding='utf-8')


def test_the_page_is_whole_and_has_the_claim_every_reason_and_the_json(written):
    verdict, path, text = written
    page = Page(text)
    assert not page.stack and verdict.title in re.search(r'<h1>(.*?)</h1>', text)[1]
    assert all(reason in page.text for reason in verdict.failures)
    ((attributes, embedded),) = page.scripts
    assert attributes == dict(type='application/json', id='verdict')
    content = json.loads(embedded)
    assert content == json.loads((path.parent / 'verdict.json').read_text()) == verdict.to_json()


def test_the_page_has_no_external_address_and_runs_no_script(written):
    _, _, text = written
    page = Page(text)
    assert not re.search(r'(https?:)?//[a-z0-9]', re.sub(r'base64,[A-Za-z0-9+/=]+', '', text), re.IGNORECASE)
    assert '@import' not in text and 'url(' not in text
    for tag, attributes in page.elements:
        assert tag not in ('link', 'iframe', 'object', 'embed', 'base', 'form', 'a'), tag
        assert not any(name.startswith('on') for name in attributes), attributes
        assert attributes.get('src', 'data:').startswith('data:') and not attributes.get('href')
        assert tag != 'script' or attributes['type'] == 'application/json'


def test_text_from_outside_is_escaped(tmp_path, pictures):
    path = report.write_report(failed(), pictures, [EVIL, 'dog'], tmp_path)
    text = path.read_text(encoding='utf-8')
    assert '<script>alert' not in text and EVIL in Page(text).text
    assert len(re.findall('<script', text)) == 1 and len(re.findall('</script', text)) == 1


def test_the_pictures_decode_and_show_both_sides(written):
    verdict, _, text = written
    images = [attributes for tag, attributes in Page(text).elements if tag == 'img']
    assert len(images) == (2 if verdict.findings else 0)
    for attributes in images:
        kind, data = attributes['src'].split(';base64,')
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert kind == 'data:image/jpeg' and decoded.shape[1] >= 2 * 800 and attributes['alt']


def test_the_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    report.write_report(proven(), [], [], tmp_path)
    before = (tmp_path / 'report.html').read_text()
    monkeypatch.setattr(report, 'render', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write_report(failed(), [], [], tmp_path)
    assert (tmp_path / 'report.html').read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ['report.html', 'verdict.json']


def printed(verdict: Verdict) -> list[str]:
    stream = io.StringIO()
    print_verdict(verdict, Console(file=stream, width=120))
    return stream.getvalue().splitlines()


def test_the_console_has_a_line_per_level_the_claim_and_the_next_command():
    verdict = proven()
    verdict.unreached, verdict.model_classes = (
        ['max_per_img 100'],
        [f'Mine{index} (a.py)' for index in range(9)],
    )
    lines = printed(verdict)
    assert lines[0] == 'file           equal to a fresh export (1,485 nodes)'
    assert lines[1] == 'surroundings   2 checks, preprocessing equal on 2 pictures, weights of c.pth'
    assert re.fullmatch(
        r'outputs +2 inputs, tensors within \S+, 4 of 4 detections matched \(worst IoU 1.0000, score 0\)',
        lines[2],
    )
    assert lines[3] == 'classes        Mine0 (a.py)' and lines[11] == f'{"":14} 1 more, see --json'
    assert lines[-2] == 'PROVEN toy.onnx equals the PyTorch model on 2 inputs (4 detections)'
    assert lines[-1].startswith('next: python tools/onnx/onnx_no_topk_nms.py toy.onnx')


def test_a_failed_verdict_lists_what_failed_and_the_claim_has_the_first_reason():
    verdict = failed()
    lines = printed(verdict)
    reasons = [line for line in lines if line.startswith('FAILED')]
    for part in ('24 of 24 values differ', 'missing in the candidate', '1 NaN', '1 missing', EVIL):
        assert any(part in reason for reason in reasons), part
    more = len(verdict.failures) - 1
    assert lines[-2] == f'NOT PROVEN: {EVIL}; and {more} more'
    assert lines[-1].startswith(
        'next: python tools/deployment/pytorch2onnx.py c.py c.pth --verify --output-file toy'
    )


@pytest.mark.parametrize(('make', 'shown'), [(proven, 8), (failed, 20)])
def test_a_failed_verdict_names_every_untraced_method(make, shown):
    verdict = make()
    verdict.untraced = [f'Mine.method{index} (a.py): compared by its results' for index in range(20)]
    assert sum('Mine.method' in line for line in printed(verdict)) == shown


def test_a_long_reason_is_cut_on_the_console_alone():
    compared = results()
    compared.reasons.append(900 * 'x')
    verdict = verdict_of(compared)
    assert max(map(len, printed(verdict))) < 320 and verdict.failures == [900 * 'x']


@pytest.mark.parametrize(
    ('absent', 'reason'),
    [
        (dict(graphs=[]), 'the graph was not compared with a fresh export'),
        (dict(preprocessing=None), "preprocessing: not compared with the config's test pipeline"),
        (dict(cases=[make_case('traced input', 1, traced=True)]), 'no input that the exporter did not see'),
        (dict(preprocessing=PreprocessingResult(())), 'no picture was compared'),
        (dict(preprocessing=PreprocessingResult(('a',), error='KeyError: img')), 'KeyError: img'),
    ],
    ids=['graph', 'preprocessing', 'inputs', 'pictures', 'error'],
)
def test_nothing_is_proven_without_each_comparison(absent, reason):
    verdict = verdict_of(dataclasses.replace(results(), **absent))
    assert verdict.title == 'NOT PROVEN' and any(reason in failure for failure in verdict.failures)


def test_an_empty_verdict_is_not_proven():
    assert Verdict({}).title == 'NOT PROVEN' and len(Verdict({}).failures) == 3
    assert proven().failures == []


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


def test_differences_of_the_preprocessing_are_on_the_page():
    differences = tuple(PreprocessingDifference(EVIL, f'value {index}', '1', '2') for index in range(5))
    compared = PreprocessingResult(('a.jpg',), differences=differences)
    verdict = verdict_of(dataclasses.replace(results(), preprocessing=compared))
    text = Page(report.render(verdict, [], ())).text
    assert compared.text in text and all(difference.text in text for difference in differences)


@pytest.mark.parametrize('own', [dict(family='solo'), dict(family='rtdetr'), {}])
def test_the_next_command_can_be_typed_where_the_name_of_the_file_has_a_space(own):
    verdict = proven()
    verdict.subject.update(own, file='my models/toy.onnx')
    words = shlex.split(next_command(verdict))
    assert words[2:] == ['my models/toy.onnx', 'IMAGE_OR_FOLDER']


def test_both_views_name_mm2onnx_where_that_was_started():
    with command.as_program('mm2onnx verify'):
        lines, page = printed(proven()), report.render(proven(), [], ('car',))
    assert lines[-1].startswith('next: mm2onnx run toy.onnx') and 'next: mm2onnx run toy.onnx' in page
    assert 'tools/' not in lines[-1] and printed(proven())[-1].startswith('next: python tools/')


@pytest.mark.parametrize('side', ['reference', 'candidate'])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_bright_in_its_own_cell_of_a_map_alone(side, value):
    cells = np.linspace(0.01, 1, 36, dtype=np.float32).reshape(1, 6, 6)
    pair = Pair('sweep', None, cells, cells)
    broken = cells.copy()
    broken[0, 0, 0] = value
    changed = draw_bev(dataclasses.replace(pair, **{side: broken})) != draw_bev(pair)
    assert 0.01 < changed.any(-1).mean() < 0.06  # a cell of two of the three panels, and a number


@pytest.mark.parametrize(
    ('form', 'words'),
    [('full', '--output-file toy_raw.onnx --postprocess raw'), ('raw', 'toy.onnx --report ')],
)
def test_wrong_results_of_a_sound_file_point_to_the_raw_form_or_to_the_report(form, words):
    compared = results()
    compared.cases.append(make_case('third', 3, faults=True))
    verdict = verdict_of(compared)
    verdict.subject['form'] = form
    assert words in next_command(verdict)
