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
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.core.model_classes import ModelClass
from mmdeploy_ext.proving.results import (
    Case,
    Check,
    DetectionRow,
    GraphResult,
    MetricRow,
    Pair,
    PreprocessingDifference,
    PreprocessingResult,
)
from mmdeploy_ext.proving.tasks.bbox2d import match_detections
from mmdeploy_ext.proving.tasks.bev import draw_bev
from mmdeploy_ext.proving.tensors import compare_tensors
from mmdeploy_ext.proving.untraced import Untraced
from mmdeploy_ext.proving.verdict import Verdict
from mmdeploy_ext.proving.views import report
from mmdeploy_ext.proving.views.commands import next_command
from mmdeploy_ext.proving.views.table import print_verdict
from mmdeploy_ext.runtime.detections import Detections

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


def proven() -> Verdict:
    cases = [make_case('traced input', 1, traced=True), make_case('other image', 2)]
    return Verdict(
        subject=dict(
            task='bbox2d',
            file='toy.onnx',
            file_sha256='ab' * 32,
            family='dense',
            form='raw',
            config='c.py',
            checkpoint='c.pth',
            exported_with=dict(torch='2.13.0'),
        ),
        structure=[Check('onnx.checker accepts the file', True), Check('opset as asked', True, '17')],
        cases=cases,
        metrics=[MetricRow('bbox_mAP', 0.4512, 0.45121, 0.0005, True)],
        timing_ms={'PyTorch': 31.25, 'onnxruntime (graph)': 20.5},
        notes=['One note.'],
        graphs=[GraphResult('', 1485, True)],
        preprocessing=PreprocessingResult(('a.jpg', 'b.png')),
    )


def failed() -> Verdict:
    verdict = proven()
    verdict.cases.append(make_case(EVIL, 3, faults=True))
    verdict.structure.append(Check(EVIL, False, EVIL))
    verdict.metrics.append(MetricRow('bbox_mAP_50', 0.7, float('nan'), 0.0005, False))
    verdict.notes.append(EVIL)
    verdict.reasons.append(EVIL)
    verdict.model_classes = [ModelClass(EVIL, EVIL, 64 * 'a', False), ModelClass('RTDETR', 'r.py', '', True)]
    verdict.untraced = [Untraced(f'{EVIL}.forward', EVIL)]
    return verdict


def test_a_metric_that_one_side_lacks_is_said_to_have_no_value():
    failures = failed().failures
    assert 'bbox_mAP_50: no value by the engine (bar 0.0005)' in failures


def test_the_row_of_many_has_the_largest_distance():
    row = DetectionRow('0', 3, 3, 0, 0, 1.0, 1e-6, True, worst_distance=1e-5)
    rows = [row, dataclasses.replace(row, image='1', worst_distance=9e-3, worst_score=0.0)] + [row] * 20
    verdict = dataclasses.replace(proven(), cases=[Case('frames', '', False, (), tuple(rows))])
    verdict.subject['task'] = 'bbox3d'
    console = Console(width=140, file=io.StringIO())
    print_verdict(verdict, console)
    assert '9.00e-03' in console.file.getvalue()


def test_shares_are_rounded_down_to_hundredths_of_a_percent():
    texts = [report.FORMATS['percent'](share) for share in (0.57, 0.99999, 1.0)]
    assert texts == ['57.00 %', '99.99 %', '100.00 %']


def detections_only() -> Verdict:
    verdict = proven()
    verdict.cases = [dataclasses.replace(case, tensors=()) for case in verdict.cases]
    verdict.metrics, verdict.timing_ms, verdict.notes = [], {}, []
    return verdict


VERDICTS = dict(proven=proven, failed=failed, detections_only=detections_only, nothing=lambda: Verdict({}))


class Page(html.parser.HTMLParser):
    """Collects elements with their attributes, the figures, the JSON and the visible text."""

    VOID = ('meta', 'img', 'link', 'br')

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.figures, self.scripts, self.text, self.stack = [], {}, [], '', []
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
        if 'data-path' in attributes:
            key = (attributes['data-path'], attributes['data-format'])
            self.figures.setdefault(key, []).append(data)


@pytest.fixture(params=VERDICTS)
def written(request, tmp_path, pictures):
    verdict = VERDICTS[request.param]()
    path = report.write_report(
        verdict, pictures if verdict.cases else [], ['cat', 'dog'], tmp_path / 'report'
    )
    return verdict, path, path.read_text(encoding='utf-8')


def test_the_page_says_the_verdict_first_in_words(written):
    verdict, _, text = written
    page = Page(text)
    assert not page.stack, 'every element is closed'
    headline = re.search(r'<h1>(.*?)</h1>', text)[1]
    assert headline.endswith('PROVEN') and headline.endswith('NOT PROVEN') != verdict.proven
    assert all(reason in page.text for reason in verdict.failures)


def test_every_figure_on_the_page_equals_the_json(written):
    verdict, path, text = written
    page = Page(text)
    ((attributes, embedded),) = page.scripts
    assert attributes == dict(type='application/json', id='verdict')
    content = json.loads(embedded)
    assert content == json.loads((path.parent / 'verdict.json').read_text()) == verdict.to_json()
    for (where, kind), shown in page.figures.items():
        assert set(shown) == {report.FORMATS[kind](report.look_up(content, where))}, where


def test_every_figure_of_the_json_is_on_the_page(written):
    verdict, _, text = written
    paths = {path for path, _ in Page(text).figures}
    expected = {f'timing_ms/{name}' for name in verdict.timing_ms}
    for index, case in enumerate(verdict.cases):
        for level, names in (
            ('tensors', ('max_abs', 'max_rel', 'cosine', 'tolerance')),
            ('detections', ('reference', 'matched', 'missing', 'extra', 'worst_iou', 'worst_score')),
        ):
            rows = range(len(getattr(case, level)))
            expected |= {f'cases/{index}/{level}/{row}/{name}' for row in rows for name in names}
    expected |= {
        f'metrics/{index}/{name}'
        for index in range(len(verdict.metrics))
        for name in ('reference', 'candidate', 'difference', 'bar')
    }
    assert expected <= paths


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


def test_page_and_console_say_whose_classes_the_model_has_and_which_methods_no_graph_shows(tmp_path):
    verdict, output = proven(), io.StringIO()
    classes = [ModelClass(f'Mine{index}', 'plugin/a.py', 64 * 'b', False, 7) for index in range(9)]
    verdict.model_classes = classes
    verdict.model_classes.append(ModelClass('RTDETR', 'mmdeploy_ext/models/a.py', 64 * 'c', True))
    verdict.untraced = [Untraced('Mine0.get_bboxes (plugin/a.py:9)', 'compared by its results')]
    sentence = 'Mine0.get_bboxes (plugin/a.py:9): compared by its results'
    print_verdict(verdict, Console(file=output, width=120))
    lines = output.getvalue().splitlines()
    assert [line for line in lines if line.startswith('class: Mine')] == [
        f'class: Mine{index} (plugin/a.py:7)' for index in range(6)
    ]
    for line in (
        'class: 3 more that no installed library has; the JSON file has them all',
        'our implementation: RTDETR',
        f'untraced: {sentence}',
    ):
        assert line in lines
    assert lines[-2].startswith('PROVEN toy.onnx equals')
    text = Page(report.write_report(verdict, [], [], tmp_path).read_text(encoding='utf-8')).text
    assert 'Mine8' in text and sentence in text and 'our implementation' in text


def test_the_pictures_decode_and_show_both_sides(written):
    verdict, _, text = written
    images = [attributes for tag, attributes in Page(text).elements if tag == 'img']
    assert len(images) == (2 if verdict.cases else 0)
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


def test_histogram_bars_keep_the_order_of_the_counts():
    drawn = report.histogram_bars([0, 1, 100, 10], 100, 50)
    heights = [bar['height'] for bar in drawn]
    assert heights[0] == 0 and heights[1] < heights[3] < heights[2] == 50
    assert all(bar['x'] >= 0 and bar['x'] + bar['width'] <= 100 for bar in drawn)


def printed(verdict: Verdict, width: int = 120) -> list[str]:
    stream = io.StringIO()
    print_verdict(verdict, Console(file=stream, width=width))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize('width', [120, 150])
def test_the_table_fits_and_ends_with_the_verdict_and_the_next_command(width):
    lines = printed(proven(), width)
    assert max(map(len, lines)) <= width
    assert lines[:3] == [
        'graph: equal to a fresh export (1,485 nodes)',
        'structure: 2 checks passed',
        "preprocessing: equal to the config's test pipeline (2 pictures)",
    ]
    assert (
        lines[-2]
        == 'PROVEN toy.onnx equals the PyTorch model: 2 inputs, 30 tensor comparisons, 4 matched detections'
    )
    assert lines[-1].startswith('next: python tools/onnx/onnx_no_topk_nms.py toy.onnx')
    assert sum(line.strip().startswith('cls_score_') for line in lines) == 10


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


def test_a_failed_verdict_names_every_reason_and_keeps_odd_text():
    lines = printed(failed())
    assert lines[1] == f'class: {EVIL} ({EVIL})' and lines[2] == 'our implementation: RTDETR'
    assert f'FAILED structure: {EVIL}: {EVIL}' in lines
    assert lines[-2].startswith(f'NOT PROVEN: {EVIL}; structure: {EVIL}; ')
    for part in (
        '24 of 24 values differ',
        'centerness_4: missing in the candidate',
        'candidate: 1 NaN',
        '1 missing',
    ):
        assert part in lines[-2]
    assert sum('FAILED' in line for line in lines) >= 5
    assert lines[-1].startswith(
        'next: python tools/deployment/pytorch2onnx.py c.py c.pth --verify --output-file toy'
    )


def test_a_long_table_shows_the_worst_of_each_kind_and_every_failed_kind():
    verdict = proven()
    verdict.cases += [make_case(f'image {seed}', seed, faults=seed == 5) for seed in range(3, 6)]
    lines = printed(verdict)
    assert len(lines) < 60
    tensors = [line.split() for line in lines if re.match(r'\s+(cls_score|bbox_pred|centerness)_', line)]
    assert len(tensors) == 5 * 3 + 3
    worst = max(verdict.cases[0].tensors[:5], key=lambda row: row.max_rel)
    assert tensors[0][0] == worst.tensor and f'{worst.max_rel:.2e}' in tensors[0] and '5)' in tensors[0]
    assert len(verdict.to_json()['cases'][0]['tensors']) == 15


def test_an_empty_verdict_is_not_proven_and_says_why():
    lines = printed(Verdict({}))
    assert 'structure was not checked' in lines[-2]
    assert lines[-2].startswith('NOT PROVEN: the graph was not compared with a fresh export; ')
    assert proven().failures == []


DIFFERENCES = tuple(PreprocessingDifference(EVIL, f'value {index}', '1', '2') for index in range(5))


@pytest.mark.parametrize(
    ('result', 'words'),
    [
        (PreprocessingResult(()), 'no picture was compared'),
        (
            PreprocessingResult((), 'sweep', note='at 9x9'),
            "no sweep was compared with the config's test pipeline at 9x9",
        ),
        (PreprocessingResult(('a.jpg',), error='KeyError: img'), 'KeyError: img'),
        (PreprocessingResult(('a.jpg',), differences=DIFFERENCES), 'value 2: got 1, expected 2; and 2 more'),
    ],
)
def test_preprocessing_that_differs_or_was_not_compared_is_not_proven(result, words):
    verdict = proven()
    verdict.preprocessing = result
    lines, content = printed(verdict), verdict.to_json()
    assert lines[2].startswith('FAILED preprocessing: ') and words in lines[2]
    assert lines[-2].startswith('NOT PROVEN: preprocessing: ') and words in lines[-2]
    assert content['verdict'] == 'not proven' and content['preprocessing']['text'] == result.text
    text = Page(report.render(verdict, [], ())).text
    assert result.text in text and all(difference.text in text for difference in result.differences)


@pytest.mark.parametrize('task', ['bbox2d', 'bev'])
def test_nothing_is_proven_without_preprocessing(task):
    verdict = proven()
    verdict.subject['task'], verdict.preprocessing = task, None
    assert verdict.failures == ["preprocessing was not compared with the config's test pipeline"]
    assert not verdict.passed


@pytest.mark.parametrize('side', ['reference', 'candidate'])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_bright_in_its_own_cell_of_a_map_alone(side, value):
    cells = np.linspace(0.01, 1, 36, dtype=np.float32).reshape(1, 6, 6)
    pair = Pair('sweep', None, cells, cells)
    broken = cells.copy()
    broken[0, 0, 0] = value
    changed = draw_bev(dataclasses.replace(pair, **{side: broken})) != draw_bev(pair)
    assert 0.01 < changed.any(-1).mean() < 0.06  # a cell of two of the three panels, and a number


def test_a_failed_full_form_points_to_the_raw_form():
    verdict = failed()
    verdict.structure = proven().structure
    verdict.subject['form'] = 'full'
    assert '--output-file toy_raw.onnx --postprocess raw' in printed(verdict)[-1]


def test_a_failed_raw_form_of_sound_structure_points_to_the_report():
    verdict = failed()
    verdict.structure = proven().structure
    assert printed(verdict)[-1].startswith(
        'next: python tools/deployment/verify.py c.py c.pth toy.onnx --report '
    )
