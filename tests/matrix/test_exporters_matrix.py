"""Every family through the dynamo exporter, proven by the tools' own ladder (docs/exporters.md)."""

from pathlib import Path

import pytest

from docs._pages.exporters import rows as exporters

pytestmark = pytest.mark.matrix
REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('opset', [18, 20])
@pytest.mark.parametrize(('name', 'form'), [(name, form) for name, model in exporters.MODELS.items()
                                            for form in model.forms])
def test_the_dynamo_exporter_is_proven(name, form, opset, tmp_path):
    import mmdeploy_ext.families.mmdet3d_plugin
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    model = exporters.MODELS[name]
    export = exporters.Export(model, REPO, REPO / 'demo/toy.jpg')
    (row,) = exporters.measure(export, model.title, form, opset, ('dynamo',), tmp_path, rounds=1)
    assert row.exported and row.proven, row.reason
