"""The report on a sequence: the curves are the series, nothing is external."""

import dataclasses
import re

import numpy as np
import pytest

from mmdeploy_ext.proving.levels.drive_run import DriveBars
from mmdeploy_ext.proving.verdict import Results, Verdict
from mmdeploy_ext.proving.views import report
from mmdeploy_ext.synthetic.drive import SyntheticDrive
from mmdeploy_ext.tasks.results import Case, Check, GraphResult, Pair, PreprocessingResult
from proofs import run_modes
from test_report import EVIL, Page
from toy_stepper import MEMORY, SPEC, Altered, ToyStepper

FRAMES = list(SyntheticDrive(frames=12, size=(8, 24), cameras=6))


def broken(stepper, frame, result):
    """Return a frame with NaN, a frame that is off, and else the same."""
    if stepper.count == 3:
        values = np.full_like(result.outputs['all_cls_scores'], np.nan)
        return dataclasses.replace(result, outputs={**result.outputs, 'all_cls_scores': values})
    if stepper.count == 7:
        return dataclasses.replace(result, detections=result.detections.above(0.6))
    return result


def verdict(candidate=lambda: ToyStepper(noise=1e-7)) -> Verdict:
    candidates = {mode: candidate() for mode in ('teacher', 'free')}
    rows = run_modes(ToyStepper(), candidates, FRAMES, SPEC, memory=MEMORY, bars=DriveBars(frames=12))
    teacher = rows['teacher']
    case = Case('teacher-forced', '6x3x8x24', False, teacher.tensors)
    made = Verdict(dict(file='folder', task='bbox3d'), timing_ms={'PyTorch': 2.0})
    graphs = [GraphResult('backbone', 20, True), GraphResult('head', 30, True)]
    preprocessing = PreprocessingResult(('a', 'b'), 'frame')
    Results(graphs, [Check('opset', True)], preprocessing, [case], list(rows.values())).add_to(made)
    return made


def pictures() -> list[Pair]:
    stepper = ToyStepper()
    pairs = []
    for frame in FRAMES[:2]:
        found = stepper.step(frame).detections
        shown = np.full((6, 32, 96, 3), 90, np.uint8)
        pairs.append(Pair(frame.name, shown, found, found, lidar2img=frame.lidar2img))
    return pairs


@pytest.fixture(scope='module', params=['proven', 'failed'])
def written(request, tmp_path_factory):
    made = verdict() if request.param == 'proven' else verdict(lambda: Altered(broken))
    path = report.write_report(made, pictures(), ['car', 'bus', EVIL], tmp_path_factory.mktemp('report'))
    return made, path.read_text(encoding='utf-8')


def test_the_page_says_the_verdict_and_every_reason(written):
    made, text = written
    page = Page(text)
    assert ('NOT PROVEN' in page.text) == (not made.proven)
    assert all(reason in page.text for reason in made.failures)
    assert made.proven or any('all_cls_scores' in reason for reason in made.failures)
    assert 'Free-running' in page.text and 'Teacher-forced' in page.text


def curves(svg: str) -> list[list[tuple[float, float]]]:
    paths = re.findall(r'<path class="line\d" d="([^"]*)"', svg)
    return [
        [tuple(map(float, point)) for point in re.findall(r'[ML]([\d.]+) ([\d.]+)', path)] for path in paths
    ]


def series(ratios, resets=(True, False, False, True)):
    return dict(name=list('abcd'), reset=list(resets), ratios=dict(x=ratios))
