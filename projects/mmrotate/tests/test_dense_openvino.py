"""One-stage detectors with deformable convolutions are proven in OpenVINO, whose reader has no DeformConv."""

import pytest
import small_models

from dev.seeded.weights import seeded_model
from dev.zoo.config_proof import Settings, prove_config
from dev.zoo.configs import Config
from mmdeploy_ext.engines.registry import BACKENDS
from mmdeploy_ext.proving.inputs import read_images

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(900)]
SIZE = (192, 256)


@pytest.mark.parametrize('export', ['fixed', 'dynamic'])
@pytest.mark.parametrize('name', ['s2anet', 'reppoints_oc', 'oriented_reppoints', 'sam_reppoints'])
def test_a_file_is_proven_in_openvino(tmp_path, name, export):
    pytest.importorskip('openvino', reason='optional: pip install openvino')
    engine = BACKENDS['OpenVinoBackend'].runner_options(threads=1)
    picture = read_images(['demo/toy.jpg'], 1)[0]
    settings = Settings(SIZE, picture, seeded_model, engine, (export,))
    path = small_models.write_config(name, tmp_path)
    record = prove_config(Config(f'{name}.py', path, {}), settings, lambda record: None)
    proof = getattr(record, export)
    assert proof.proven, proof.why
    assert proof.matched > 20
