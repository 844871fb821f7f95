"""Outputs with values of several magnitudes: right files are proven by any exporter, wrong ones never."""

import itertools

import pytest
import torch

import mmdeploy_ext
from magnitudes import CASES, Case, Net, rows
from marking import in_suite
from verdicts import cases_of

SUITE = list(CASES)[:20]
EXPORTERS = {
    'opset 17': dict(opset_version=17, dynamo=False),
    'opset 11': dict(opset_version=11, dynamo=False),
    'dynamo': dict(opset_version=18, dynamo=True),
}


def proof_of(case, folder, k=1.0, exporter='opset 17', **options):
    """Prove the file of a case with the fault `k` against the module without one."""
    path, samples = folder / 'm.onnx', case.samples()
    torch.onnx.export(Net(case.function, k).eval(), samples[0], str(path), **EXPORTERS[exporter])
    return mmdeploy_ext.prove_module(Net(case.function).eval(), path, samples, fresh=False, **options)


@pytest.mark.parametrize('name', in_suite(CASES, *SUITE))
def test_the_right_file_is_proven_and_one_that_is_a_little_off_is_not(name, tmp_path):
    case = CASES[name]
    right, wrong = proof_of(case, tmp_path), proof_of(case, tmp_path, case.wrong)
    assert right.proven, right.failures
    assert not wrong.proven
    assert {finding.level for finding in wrong.findings if not finding.passed} == {'outputs'}


@pytest.mark.matrix
@pytest.mark.parametrize(('name', 'exporter'), itertools.product(CASES, ['opset 11', 'dynamo']))
def test_other_exporters_write_right_files(name, exporter, tmp_path):
    try:
        verdict = proof_of(CASES[name], tmp_path, exporter=exporter)
    except torch.onnx.OnnxExporterError as error:
        pytest.skip(str(error))
    assert verdict.proven, verdict.failures


def test_other_constants_in_the_same_graph_are_a_failure_though_no_output_shows_them(tmp_path):
    def clipped(net, x, k):
        return torch.cat([net.scores(x), (-k - x.abs()).relu()], 1)

    path, samples = tmp_path / 'm.onnx', rows()
    torch.onnx.export(Net(clipped, 1.001).eval(), samples[0], str(path), **EXPORTERS['opset 17'])
    verdict = mmdeploy_ext.prove_module(Net(clipped).eval(), path, samples)
    assert [finding.level for finding in verdict.findings if not finding.passed] == ['file']


@pytest.mark.parametrize(('rtol', 'proven'), [(1e-3, False), (3e-2, True)])
def test_a_tolerance_of_float16_is_of_whole_tensors(tmp_path, rtol, proven):
    def scores(net, x, k):
        return torch.cat([net.boxes(x).sigmoid(), k * (net.scores(x) - 9).sigmoid()], 1)

    assert proof_of(Case(scores, 1.0, rows), tmp_path, 1.2, rtol=rtol).proven == proven


def test_an_input_with_one_value_in_all_samples_is_named(tmp_path):
    class Memory(torch.nn.Module):
        def forward(self, image, memory):
            return image + memory

    path, samples = tmp_path / 'm.onnx', [(x, torch.zeros(7, 8)) for (x,) in rows()]
    names = dict(input_names=['image', 'memory'], output_names=['out'])
    torch.onnx.export(Memory(), samples[0], str(path), **EXPORTERS['opset 17'], **names)
    verdict = mmdeploy_ext.prove_module(Memory().eval(), path, samples, fresh=False)
    assert verdict.proven and any(note.startswith('input memory: 0 in all samples') for note in verdict.notes)
    assert not any('input image' in note for note in verdict.notes)


def test_float64_runs_only_for_inputs_that_fail_without_it_and_bounds_what_is_allowed(tmp_path):
    dtypes = []

    def rounded(net, x, k):
        dtypes.append(x.dtype)
        off = 1e-5 if x.dtype == torch.float32 else 0.0
        return torch.cat([1000 * net.boxes(x), 0.001 * net.scores(x) + k * off], 1)

    for k, proven in (
        (1, True),
        (-1, True),
        (-3, False),
    ):  # off by 0, 2, 4 times the distance
        dtypes.clear()
        verdict = proof_of(Case(rounded, 1.0, rows), tmp_path, k)
        assert verdict.proven == proven, verdict.failures
        assert (torch.float64 in dtypes) == (k != 1)


def test_infinities_on_both_sides_are_compared(tmp_path):
    def masked(net, x, k):
        return net.scores(x) * torch.inf

    verdict = proof_of(Case(masked, 1.0, rows), tmp_path)
    assert verdict.proven, verdict.failures
    assert {'sample 2', 'zeros'} <= {case.name for case in cases_of(verdict)}
