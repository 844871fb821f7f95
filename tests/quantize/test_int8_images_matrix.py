"""INT8 at full size against its bars: time and size on a CPU with VNNI, and the metric on the toy sets."""

from pathlib import Path

import pytest

from mmdeploy_ext.cli import quantize_app, test_app
from mmdeploy_ext.core.files import read_json
from mmdeploy_ext.synthetic.coco import ensure_toy_coco

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(3600)]
REPO = Path(__file__).resolve().parents[2]
TIME_BAR, SIZE_BAR, AP_BAR = 0.42, 0.30, 0.01
TOYS = {'atss_toy': ('bbox', 'bbox_mAP'), 'solov2_toy': ('segm', 'segm_mAP')}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'toy'
    ensure_toy_coco(root)
    return root


def quantise(model, data, *options):
    """Quantise beside the file; returns the INT8 file and its report."""
    output, report = model.with_suffix('.int8.onnx'), model.with_suffix('.json')
    arguments = [str(model), '--calibrate', str(data / 'train2017'), '--output', str(output)]
    assert quantize_app.main([*arguments, '--json', str(report), *options]) == 0
    return output, read_json(report)


@pytest.mark.parametrize('name', TOYS)
def test_the_metric_of_a_toy_falls_by_no_more_than_the_bar(name, data, tmp_path):
    kind, key = TOYS[name]
    config = str(REPO / f'configs/demo/{name}_onnx.py')
    checkpoint = str(REPO / f'demo/checkpoints/{name}.pth')
    model = tmp_path / 'model.onnx'

    def evaluate(path, folder):
        options = [
            f'data.test.ann_file={data}/annotations/instances_val2017.json',
            f'data.test.img_prefix={data}/val2017/',
            f'backend_config.onnx_file={path}',
            'backend_config.check_dump=False',
        ]
        arguments = [config, checkpoint, '--eval', kind, '--work-dir', str(folder)]
        assert test_app.main([*arguments, '--cfg-options', *options]) == 0
        return read_json(folder / 'metrics_onnx.json')['metrics'][key]

    reference = evaluate(model, tmp_path / 'float')  # exports it
    output, report = quantise(model, data, '--rounds', '0')
    size = output.stat().st_size
    found = evaluate(output, tmp_path / 'int8')
    assert output.stat().st_size == size, 'the loop took the file as it was'
    print(f'{name}: {key} {reference:.4f} -> {found:.4f}, size {report["size_ratio"]:.3f}')
    assert reference - found <= AP_BAR
