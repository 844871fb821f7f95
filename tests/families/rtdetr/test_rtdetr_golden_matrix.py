"""RT-DETR R50vd with the goldens' weights gives what the original repository gave."""

import pytest

import rtdetr_golden as golden

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize('case', ['a', 'b', 'b_rowmajor'])
def test_every_tensor_and_detection_is_the_originals(case):
    golden.require_golden()
    found = golden.run_model(golden.golden_model('r50vd', case), 'r50vd', case)
    measured = golden.compare('r50vd', case, found)
    print('\n' + '\n'.join(f'r50vd {case} {name:15s} {value:.1e}' for name, value in measured.items()))
