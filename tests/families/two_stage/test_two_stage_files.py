"""Files of two-stage detectors, each form against a fresh export and by its results."""

import functools
from importlib.util import find_spec
from pathlib import Path

import pytest

from marking import in_suite
from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
from mmdeploy_ext.engines.openvino import OpenVinoBackend
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.proof import open_file
from mmdeploy_ext.proving.references import references
from mmdeploy_ext.seeded.weights import write_seeded
from proofs import check_files, run_once
from toy_atss import REPO
from toy_two_stage import toy, write_config
from verdicts import checks_of, graphs_of

PICTURE = read_image(Path(REPO) / 'demo/toy.jpg')
SIZE = (192, 256)
CONFIG = f'{REPO}/configs/demo/mask_rcnn_toy.py'


class Known:
    """A model with seeded weights and its honest file of each form."""

    def __init__(self, folder, config=CONFIG, batch=1):
        import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

        self.folder, self.batch = folder, batch
        write_seeded(config, folder / 'm.pth')
        self.deployment = deploy.load(config, str(folder / 'm.pth'))

    def options(self, form):
        chosen = dict(height=SIZE[0], width=SIZE[1], dynamic=self.batch > 1)
        return self.deployment.family.choose(form=form, opset=17, **chosen)

    @functools.cache  # noqa: B019
    def path(self, form):
        picture = deploy.prepare_fixed(self.deployment.rule, PICTURE, *SIZE)
        path = self.folder / f'{form}.onnx'
        export_files(self.deployment, self.options(form), str(path), [picture])
        return str(path)

    @functools.cache  # noqa: B019
    def inputs(self, form):
        every = references(self.deployment, self.options(form), [('toy.jpg', PICTURE)])[1:]
        return [one for one in every if len(one.images) == self.batch][:1]

    def cases(self, form, path):
        with OnnxRuntimeBackend(path) as backend:
            return list(run_once(self.inputs(form), backend))


@pytest.fixture(scope='module')
def known(tmp_path_factory):
    return Known(tmp_path_factory.mktemp('two_stage'))


@pytest.fixture(scope='module')
def cascade(tmp_path_factory):
    """A cascade with masks, whose file takes any size and batch."""
    folder = tmp_path_factory.mktemp('cascade')
    return Known(folder, write_config(toy('cascade_mask'), folder / 'm.py'), 3)


@pytest.mark.skipif(find_spec('openvino') is None, reason='optional: pip install openvino')
def test_openvino_knows_the_four_columns_of_computed_boxes(cascade):
    with OpenVinoBackend(cascade.path('full')) as backend:
        cases = list(run_once(cascade.inputs('full'), backend))
    assert cases
    assert all(case.passed for case in cases)


@pytest.mark.parametrize('form', in_suite(['full', 'regions', 'proposals'], 'full'))
def test_an_honest_file_passes(known, form):
    verdict = check_files(known.deployment, known.path(form), [('toy.jpg', PICTURE)])
    assert graphs_of(verdict)[0].passed
    cases = known.cases(form, known.path(form))
    assert all(case.passed for case in cases) and all(case.detections for case in cases)
    assert all(bool(case.tensors) == (form != 'full') for case in cases)


@pytest.mark.matrix
def test_a_size_that_no_box_is_clipped_to_is_an_input_of_no_use(tmp_path):
    cfg = toy('faster')
    for head in (cfg.model.rpn_head, cfg.model.roi_head.bbox_head):
        head.bbox_coder.clip_border = False
    known = Known(tmp_path, write_config(cfg, tmp_path / 'm.py'))
    verdict = check_files(known.deployment, known.path('full'), [('toy.jpg', PICTURE)])
    assert graphs_of(verdict)[0].passed and all(check.passed for check in checks_of(verdict))
    assert open_file(known.path('full')).metadata.spec.tensor('img_shape').unused
