"""Faults in our own code of the rest of the zoo: a fresh export has them, too, and no proof passes."""

import functools

import pytest
import test_corner
import test_query_panoptic
import test_two_stage_panoptic
from query_faulty import DEFORMABLE, EVERY
from two_stage_faulty import iou_left_out, points_a_cell_off

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
import toy_query
import toy_two_stage
from mmdeploy_ext.exporting import model as deploy
from mmdeploy_ext.exporting.files import export_files
from mmdeploy_ext.families.two_stage.family import TwoStageFamily
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.synthetic.seeded import write_seeded
from mmdeploy_ext.zoo.configs import without_augmentation
from planting import altered
from toy_atss import PICTURE

SIZE = (192, 256)
IMAGES = [('toy.jpg', read_image(PICTURE))]
TOYS = dict(
    plain=toy_query.toy,
    panoptic=toy_query.toy,
    maskformer=toy_query.toy,
    fused=lambda kind: toy_two_stage.toy('panoptic'),
    corner=test_corner.toy,
    judged=toy_two_stage.toy,
    points=toy_two_stage.toy,
)
"""Kind -> what gives its config."""


def in_stages(plant):
    """Return a fault of the modules behind the network, whichever model they are of."""

    def faulty(right):
        def stages(self, *given, **named):
            found = right(self, *given, **named)
            plant(found[-1].module)
            return found

        return stages

    return altered(TwoStageFamily, 'stages', faulty)


QUERIES = EVERY | DEFORMABLE
FAULTS = {
    **{
        ('plain', name): QUERIES[name]
        for name in (
            *('padding ignored', 'reference points of another level', 'offsets scaled'),
            *('samples one cell off', 'a query swapped'),
        )
    },
    ('panoptic', 'share of the mask ignored'): test_query_panoptic.FAULTS['share of the mask ignored'],
    ('maskformer', 'padding looked at'): test_query_panoptic.OF_MASKFORMER['padding looked at'],
    ('fused', 'the last instance on top'): test_two_stage_panoptic.FAULTS['the last instance on top'],
    ('corner', 'corners grouped across classes'): test_corner.EVERY['corners grouped across classes'],
    ('judged', 'mask IoU left out of the score'): in_stages(iou_left_out),
    ('points', 'points one cell off'): in_stages(points_a_cell_off),
}
"""Kind of toy and name -> what plants it by a monkeypatch."""
IN_SUITE = {('plain',), ('corner',)}
"""The picture has no border in the file of corners: an export has to give that input itself."""


@pytest.fixture(scope='module')
def deployment_of(tmp_path_factory):
    """Return kind -> its toy with seeded weights, written once."""

    @functools.cache
    def load(kind):
        folder = tmp_path_factory.mktemp(kind)
        cfg = TOYS[kind](kind)
        without_augmentation(cfg)
        config = toy_two_stage.write_config(cfg, folder / 'm.py')
        write_seeded(config, folder / 'm.pth')
        return deploy.load(config, str(folder / 'm.pth'))

    return load


def verdict_of(deployment, path):
    """Return the verdict on a file that is exported by the code as it is now, any size and batch."""
    options = deployment.family.choose(height=SIZE[0], width=SIZE[1], opset=17, dynamic=True)
    picture = deploy.prepare_fixed(deployment.rule, IMAGES[0][1], *SIZE)
    export_files(deployment, options, str(path), [picture])
    return prove(deployment, str(path), IMAGES, {})[0]


def marked(kind, *name):
    """Return a case, which is in the suite or in the matrix."""
    return pytest.param(kind, *name, marks=[] if (kind, *name) in IN_SUITE else [pytest.mark.matrix])


@pytest.mark.parametrize('kind', [marked(kind) for kind in TOYS])
def test_a_file_without_a_fault_is_proven(kind, deployment_of, tmp_path):
    verdict = verdict_of(deployment_of(kind), tmp_path / 'm.onnx')
    assert verdict.proven, verdict.summary()


@pytest.mark.parametrize(('kind', 'fault'), [marked(*case) for case in FAULTS])
def test_a_fault_of_our_own_code_is_not_proven(kind, fault, deployment_of, tmp_path, monkeypatch):
    deployment = deployment_of(kind)
    FAULTS[kind, fault](monkeypatch)
    verdict = verdict_of(deployment, tmp_path / 'm.onnx')
    assert verdict.graphs[0].equal and not verdict.proven
    assert not all(case.passed for case in verdict.cases)
