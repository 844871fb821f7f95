"""Files of the rest of the zoo with the other tools: runner and pictures, INT8, half precision, TensorRT."""

import importlib.util
import json

import onnx
import pytest

import toy_query
import toy_yolact
from instances_json import decoded
from mmdeploy_ext.cli import graph_app
from mmdeploy_ext.core.errors import EngineError
from mmdeploy_ext.engines.tensorrt.limits import check_limits, find_refusals
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.runtime.detections import Instances
from mmdeploy_ext.seeded.weights import write_seeded
from mmdeploy_ext.tasks.mask import match_detections
from toy_atss import PICTURE, REPO
from toy_two_stage import write_config
from verdicts import cases_of, graphs_of

SIZE = (192, 256)
MASKS = ('instances', 'regions_masks', 'yolact')
IN_SUITE = ('instances',)


def marked(kinds):
    return [pytest.param(kind, marks=[] if kind in IN_SUITE else [pytest.mark.matrix]) for kind in kinds]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Return kind -> a toy with seeded weights and its file of one size, written once."""
    known = {}

    def make(kind):
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            cfg = toy_yolact.toy() if kind == 'yolact' else toy_query.toy(kind)
            config = write_config(cfg, folder / 'm.py')
            write_seeded(config, folder / 'm.pth')
            deployment = deploy.load(config, str(folder / 'm.pth'))
            options = deployment.family.choose(height=SIZE[0], width=SIZE[1], opset=17)
            picture = deploy.prepare_fixed(deployment.rule, read_image(PICTURE), *SIZE)
            export_files(deployment, options, str(folder / 'm.onnx'), [picture])
            known[kind] = deployment, folder / 'm.onnx'
        return known[kind]

    return make


def tool(name):
    spec = importlib.util.spec_from_file_location(name, REPO / f'tools/onnx/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.matrix
@pytest.mark.parametrize('kind', marked(MASKS))
def test_masks_are_those_of_pytorch_in_pixels_of_the_picture_and_drawn(kind, made, tmp_path):
    deployment, path = made(kind)
    words = ['--out', str(tmp_path / 'p.png'), '--json', str(tmp_path / 'p.json'), '--score-thr', '0.05']
    assert tool('onnx_with_postprocess').main([str(path), str(PICTURE), *words]) == 0
    (entry,) = json.loads((tmp_path / 'p.json').read_text())['images']
    prepared = deploy.prepare_fixed(deployment.rule, read_image(PICTURE), *SIZE)
    wanted = deployment.family.reference(deployment.model).results([prepared], True)[0]
    wanted = Instances(wanted.masks, wanted.scores, wanted.labels)
    row = match_detections('toy.jpg', wanted, decoded(entry))
    assert row.passed and row.matched >= 5, row
    assert entry['drawn'] == (wanted.scores >= 0.05).sum() > 0
    drawn, plain = read_image(tmp_path / 'p.png'), read_image(PICTURE)
    factor = len(drawn) // len(plain)
    changed = (drawn != plain.repeat(factor, 0).repeat(factor, 1)).any(2)[::factor, ::factor]
    covered = wanted.masks[wanted.scores >= 0.05].any(0)
    assert changed[covered].mean() > 0.5


@pytest.mark.parametrize('kind', marked(MASKS))
def test_tensorrt_rtx_takes_what_has_one_form_for_every_picture(kind, made):
    """Regions of queries are told apart by their level, with NonZero."""
    model = onnx.load(made(kind)[1])
    wanted = {'NonZero'} if kind == 'regions_masks' else set()
    assert {one.operator for one in find_refusals(model, rtx=True)} == wanted
    if wanted:
        with pytest.raises(EngineError, match='cannot take 12 nodes'):
            check_limits(model, rtx=True, file='m.onnx')


@pytest.mark.matrix
@pytest.mark.parametrize('converted_later', [False, True])
def test_half_precision_finds_the_regions_of_queries(made, tmp_path, converted_later):
    """With boxes in float16 one result of five was another."""
    deployment, single = made('regions_masks')
    half = str(tmp_path / 'm.onnx')
    if converted_later:
        assert graph_app.main(['fp16', str(single), '--output', half, '--no-proof']) == 0
    else:
        options = deployment.family.choose(height=SIZE[0], width=SIZE[1], opset=17, precision='fp16')
        picture = deploy.prepare_fixed(deployment.rule, read_image(PICTURE), *SIZE)
        export_files(deployment, options, half, [picture])
    verdict, _ = prove(deployment, half, [('toy.jpg', read_image(PICTURE))], {})
    assert all(graph.passed for graph in graphs_of(verdict))
    rows = [row for case in cases_of(verdict) for row in case.detections]
    assert sum(row.matched for row in rows) == sum(row.reference for row in rows) > 100
