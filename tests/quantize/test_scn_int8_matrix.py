"""INT8 of BEVFusion's backbone on the real sweep: the figures of docs/engines.md; -s prints them."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import toy_sparse
from mmdeploy_ext.quantize import views
from mmdeploy_ext.quantize.fidelity import fidelity
from mmdeploy_ext.quantize.sparse_calibration import calibrate_sweeps
from mmdeploy_ext.sparse.precision import apply_precision, fp16_ends

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1800)]
VOXELS = Path(__file__).resolve().parents[3] / 'shared/golden/scn/numeric/input_real_bevfusion.npz'
METHODS = (('mse', 99.99), ('percentile', 99.9), ('percentile', 99.99), ('max', 99.99))


@pytest.fixture(scope='module')
def sweep():
    if not VOXELS.is_file():
        pytest.skip(f'skipped: ../shared/golden/scn/numeric/{VOXELS.name} not found')
    content = np.load(VOXELS)
    return content['features_f16'].astype(np.float32), content['coords_bxyz_i16'].astype(np.int32)


@pytest.fixture(scope='module')
def graph():
    return toy_sparse.full()


@pytest.fixture(scope='module')
def ranges(graph, sweep):
    return calibrate_sweeps(graph, [sweep])


@pytest.mark.parametrize(('method', 'percentile'), METHODS)
def test_fidelity_by_method(graph, sweep, method, percentile):
    ranges = calibrate_sweeps(graph, [sweep], method, percentile=percentile)
    found = fidelity(graph, ranges, [sweep], advise=False)
    print(f'\n{ranges.calibrator}: cosine {found.int8.cosine:.4f}, error {found.int8.error:.1%}; fp16 '
          f'{found.fp16.cosine:.7f}, {found.fp16.error:.2%}')  # fmt: skip
    assert found.fp16.cosine > 0.99999
    assert found.int8.cosine > (0.97 if percentile < 99.95 else 0.99)


def test_fidelity_with_fp16_ends(graph, sweep, ranges):
    found = fidelity(apply_precision(graph, 'int8', fp16_ends(graph), ranges), ranges, [sweep], advise=False)
    print(f'\nfp16 ends: cosine {found.int8.cosine:.4f}, error {found.int8.error:.1%}')
    assert found.int8.cosine > 0.99


def test_advice(graph, sweep, ranges):
    found = fidelity(graph, ranges, [sweep])
    Console(width=150).print(views.fidelity_table(found))
    print(found.advice_text())
    cosines = [found.int8.cosine, *(cosine for _, cosine in found.fp16_layers)]
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.998
