"""The trained Panoptic FPN: panoptic quality by both engines, pictures, and a file that was changed."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mmdeploy_ext.cli import export_app, run_app, test_app, verify_app
from mmdeploy_ext.core.files import read_json
from toy_atss import PICTURE, REPO

CHECKPOINT = REPO / 'demo/checkpoints/panoptic_fpn_toy.pth'
CONFIG = str(REPO / 'configs/demo/panoptic_fpn_toy.py')


def data_of(root, count):
    """Make a set of so many pictures; return the options that name it."""
    from mmdeploy_ext.synthetic.coco import ensure_toy_panoptic

    ensure_toy_panoptic(root, train_images=1, val_images=count, quiet=True)
    return [
        f'data.test.ann_file={root}/annotations/panoptic_val2017.json',
        f'data.test.seg_prefix={root}/annotations/panoptic_val2017/',
        f'data.test.img_prefix={root}/val2017/',
        'data.workers_per_gpu=0',
    ]


def metrics_of(engine, data, folder, *more):
    config = str(REPO / f'configs/demo/panoptic_fpn_toy_{engine}.py')
    words = '--eval', 'pq', '--eval-options', 'nproc=1', '--work-dir', str(folder)
    assert test_app.main([config, str(CHECKPOINT), *words, *more, '--cfg-options', *data]) == 0
    return read_json(folder / f'metrics_{engine}.json')['metrics']


@pytest.mark.matrix  # in the suite: the loop by ATSS (test_test_loop.py)
def test_both_engines_have_the_same_panoptic_quality(tmp_path, capsys):
    data, shown = data_of(tmp_path / 'toy', 8), tmp_path / 'shown'
    wanted = metrics_of('pth', data, tmp_path)
    found = metrics_of('onnx', data, tmp_path, '--show-dir', str(shown))
    assert found == pytest.approx(wanted, abs=1e-3) and wanted['PQ_th'] > 40
    said = capsys.readouterr().out
    assert 'PQ_st' in said and 'equal' in said and 'DIFFERS' not in said
    assert len(list(shown.glob('*.jpg'))) == 8
    (file,) = tmp_path.glob('*.onnx')
    assert run_app.main([str(file), str(PICTURE), '--out', str(shown / 'run.png')]) == 0
    assert (shown / 'run.png').is_file()


@pytest.mark.matrix
def test_files_of_both_forms_are_proven_and_one_with_another_limit_of_stuff_is_not(tmp_path, capsys):
    words = ['--shape', '192', '256', '--input-img', str(PICTURE), '--verify']
    for form in ('raw', 'full'):
        path = tmp_path / f'{form}.onnx'
        target = ['--output-file', str(path), '--postprocess', form]
        assert export_app.main([CONFIG, str(CHECKPOINT), *target, *words]) == 0
    model = onnx.load(path)
    tensors = [*model.graph.initializer]
    tensors += [one.t for node in model.graph.node for one in node.attribute if one.HasField('t')]
    limits = [one for one in tensors if numpy_helper.to_array(one).tolist() in (256, [256])]
    assert limits
    for limit in limits:
        right = numpy_helper.to_array(limit)
        limit.CopyFrom(numpy_helper.from_array(np.full_like(right, 20000), limit.name))
    onnx.save(model, path)
    capsys.readouterr()
    assert verify_app.main([CONFIG, str(CHECKPOINT), str(path), '--images', str(PICTURE)]) == 1
    assert 'NOT PROVEN' in capsys.readouterr().out


def test_instances_beside_a_map_are_encoded_as_the_evaluator_takes_them():
    from mmdeploy_ext.evaluate.loop import _compact

    mask, panoptic = np.eye(4, dtype=bool), np.zeros((4, 4), np.int32)
    found = _compact(dict(pan_results=panoptic, ins_results=([np.zeros((1, 5))], [[mask]])))
    assert found['pan_results'] is panoptic and found['ins_results'][1][0][0]['size'] == [4, 4]
