"""The program on the page about streaming models runs as written, on files of pictures and poses."""

import dataclasses
import json
import re
from pathlib import Path

import cv2
import pytest

import real_nuscenes
import toy_streampetr_deploy as toy
from marking import in_suite
from mmdeploy_ext.cli import command
from mmdeploy_ext.evaluate.loop import DatasetFrames
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.cameras import multiview_rule
from mmdeploy_ext.tasks.bbox3d import match_detections
from projects.configs.nuscenes_stream import image_augmentation, stream_data
from test_streampetr_video import write_dataset

PAGE = Path(__file__).resolve().parents[3] / 'docs/models-cameras.md'
INFOS = 'infos_val.pkl'
SOURCES = dict(generated=(90, 160), real=(900, 1600))


@pytest.fixture(params=in_suite(SOURCES, 'generated'))
def drive(request, tmp_path):
    """A data set's `test` section, its info file, and the files of a toy for its pictures."""
    if request.param == 'real':
        path = real_nuscenes.scene_0103(tmp_path)
    else:
        write_dataset(tmp_path)
        path = tmp_path / 'infos_val.pkl'
    image = image_augmentation((32, 96), (0.6, 0.7), source=SOURCES[request.param])
    test = stream_data(image, root=f'{tmp_path}/', infos='infos')['test']
    deployment = dataclasses.replace(toy.deployment(), rule=multiview_rule(test['pipeline']))
    files = export_files(deployment, deployment.family.choose(), str(tmp_path / 'deploy'))[0]
    return test, path, files


def test_the_program_on_the_page_gives_what_the_data_set_gives(drive, capsys):
    from mmdet3d.datasets import build_dataset

    test, path, files = drive
    (program,) = re.findall(r'^```python\n(.*?)^```', PAGE.read_text(encoding='utf-8'), re.M | re.S)
    assert INFOS in program and "'work_dirs/model'" in program
    names = {}
    exec(program.replace(INFOS, str(path)).replace('work_dirs/model', str(Path(files[0]).parent)), names)
    printed = capsys.readouterr().out.splitlines()

    dataset, family = build_dataset(test), toy.deployment().family
    stepper = family.runner(files, dict(threads=1))
    frames = list(DatasetFrames(family, dataset, range(len(dataset))))
    expected = [stepper.step(frame).detections for frame in frames]
    assert len(printed) == len(expected) >= 4
    row = match_detections('last frame', expected[-1], names['boxes'], score_thr=0.0)
    assert row.passed and row.matched == 20, row.reason
    assert all(info['token'] in line for info, line in zip(dataset.data_infos, printed, strict=True))

    # mm2onnx run finds the same, and draws it
    out, found = path.parent / 'drawn', path.parent / 'found.json'
    words = ['run', str(Path(files[0]).parent), str(path), '--out', str(out), '--json', str(found)]
    assert command.main(words) == 0
    entries = json.loads(found.read_text())['frames']
    assert [entry['frame'] for entry in entries] == [info['token'] for info in dataset.data_infos]
    assert entries[-1]['detections'] == names['boxes'].to_json(names['model'].classes)
    assert len({cv2.imread(entry['picture']).shape for entry in entries}) == 1
