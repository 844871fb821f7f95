"""The program on the page about streaming models runs as written, on files of pictures and poses."""

import json
import re

import cv2

import toy_stream_files as files
import toy_streampetr_deploy as toy
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.cli import command
from mmdeploy_ext.families.evaluate.loop import DatasetFrames
from mmdeploy_ext.runtime.tasks.bbox3d import match_detections
from toy_atss import REPO


def test_the_program_on_the_page_gives_what_the_data_set_gives(tmp_path, capsys):
    from mmdet3d.datasets import build_dataset

    place = files.write_model(tmp_path)
    model, infos = str(place / 'deploy'), str(place / 'set/toy_val.pkl')
    page = (REPO / 'docs/models-cameras.md').read_text(encoding='utf-8')
    (program,) = re.findall(r'^```python\n(.*?)^```', page, re.M | re.S)
    names = {}
    exec(program.replace('infos_val.pkl', infos).replace('work_dirs/model', model), names)
    printed = capsys.readouterr().out.splitlines()

    cfg, family = load_config(str(place / 'toy_stream.py')), toy.detector().family
    dataset = build_dataset(cfg.data.test)
    stepper = family.runner(list(toy.files()), dict(threads=1))
    frames = list(DatasetFrames(family, dataset, range(len(dataset))))
    expected = [stepper.step(frame).detections for frame in frames]
    assert len(printed) == len(expected) >= 4
    row = match_detections('last frame', expected[-1], names['boxes'], score_thr=0.0)
    assert row.passed and row.matched == 20, row.reason
    assert all(info['token'] in line for info, line in zip(dataset.data_infos, printed, strict=True))

    # mm2onnx run finds the same, and draws it
    found = place / 'found.json'
    assert command.main(['run', model, infos, '--out', str(place / 'drawn'), '--json', str(found)]) == 0
    entries = json.loads(found.read_text())['frames']
    assert [entry['frame'] for entry in entries] == [info['token'] for info in dataset.data_infos]
    assert entries[-1]['detections'] == names['boxes'].to_json(names['model'].classes)
    assert len({cv2.imread(entry['picture']).shape for entry in entries}) == 1
