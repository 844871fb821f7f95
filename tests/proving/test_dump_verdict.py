"""A verdict on a dump: a missing dump is a note, a sample of another model is not compared."""

from types import SimpleNamespace

import numpy as np
import pytest

from mmdeploy_ext.base.dump import load_dump, replaced_dump, save_dump
from mmdeploy_ext.proving.against_dump import check_dump
from mmdeploy_ext.proving.subject import Sample, Step, Subject

HASHES = dict(config_sha256='c', checkpoint_sha256='w')
DUMPED = dict(scores=np.float32([1, 2]))


class Dump(Subject):
    again = -1

    def __init__(self, outputs):
        self.outputs = outputs

    def check(self, tensors, manifest):
        assert tensors.keys() == DUMPED.keys()

    def sample(self, entry, index, mode):
        return Sample(entry.name, load_dump(entry)[0])

    def want(self, sample, state):
        return Step(sample.data)

    def got(self, sample, state):
        return Step(self.outputs)


def verdict_on(folder, outputs=DUMPED):
    return check_dump(Dump(outputs), SimpleNamespace(**HASHES), folder)


def test_a_missing_dump_is_a_note(tmp_path):
    verdict = verdict_on(tmp_path / 'dump')
    assert verdict.passed and verdict.notes and not verdict.findings


@pytest.mark.parametrize(('factor', 'agrees'), [(1, True), (1.1, False)])
def test_a_sample_of_another_model_is_not_compared_and_no_failure(tmp_path, factor, agrees):
    with replaced_dump(tmp_path / 'dump') as folder:
        save_dump(folder / '000000', DUMPED, HASHES)
        save_dump(folder / '000001', DUMPED, HASHES | dict(config_sha256='other'))
    verdict = verdict_on(tmp_path / 'dump', {'scores': DUMPED['scores'] * np.float32(factor)})
    assert {finding.passed for finding in verdict.findings} == {None, agrees}
    assert verdict.passed is agrees and len(verdict.failures) == (not agrees)
