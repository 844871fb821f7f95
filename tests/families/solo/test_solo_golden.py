"""Original SOLO checkpoints, converted by the tool, give what the original repository gave.

One SOLOv2 model here, a decoupled one in the matrix, the others in test_solo_golden_matrix.py.
"""

import pytest

import solo_golden as golden


@pytest.fixture(
    scope='module', params=['solov2_light_r34', pytest.param('decoupled_solo_r50', marks=pytest.mark.matrix)]
)
def run(request, tmp_path_factory):
    model = golden.converted_model(request.param, tmp_path_factory.mktemp(request.param))
    return request.param, golden.run_model(model, request.param)


def test_every_tensor_is_the_originals(run):
    name, (taps, _, _) = run
    measured = golden.compare_tensors(name, taps)
    print('\n' + '\n'.join(f'{name} {tensor:12s} {value:.1e}' for tensor, value in measured.items()))


def test_every_instance_is_the_originals(run):
    name, (_, found, linear) = run
    golden.compare_instances(name, found, linear)
