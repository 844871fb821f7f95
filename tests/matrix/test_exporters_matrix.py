"""Every family through the dynamo exporter, proven by the tools' own ladder (docs/exporters.md)."""

from pathlib import Path

import pytest

from mmdeploy_ext.benchmark import exporters
from projects.toydata.seeded import write_seeded

pytestmark = pytest.mark.matrix
REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('opset', [18, 20])
@pytest.mark.parametrize(('name', 'form'), [(name, form) for name, model in exporters.MODELS.items()
                                            for form in model.forms])
def test_the_dynamo_exporter_is_proven(name, form, opset, tmp_path, monkeypatch):
    import projects.mmdet3d_plugin
    import projects.mmdet_plugin  # noqa: F401

    monkeypatch.chdir(REPO)
    model = exporters.MODELS[name]
    checkpoint = model.checkpoint
    if not checkpoint:
        checkpoint = tmp_path / 'seeded.pth'
        write_seeded(model.config, checkpoint)
    export = exporters.open_model(model, str(checkpoint), REPO / 'demo/toy.jpg')
    (row,) = exporters.measure(export, model.title, form, opset, ('dynamo',), tmp_path, rounds=1)
    assert row.exported and row.proven, row.reason
