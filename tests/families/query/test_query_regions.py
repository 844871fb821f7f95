"""Sparse R-CNN and QueryInst against mmdet's own `simple_test`: eager, exported, what is refused."""

import types

import pytest

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.tasks import task_module
from toy_query import REGIONS, exported, images, options_of, run_stages, seeded, toy


def family_of(kind):
    return find_family(toy(kind))


def options(kind, **chosen):
    return options_of(**chosen)


def rows(kind, outputs, prepared, wanted=None):
    """Return how results match those of `simple_test`, a row per image."""
    family = family_of(kind)
    metadata = types.SimpleNamespace(form='full', options={}, postprocess=family.facts(seeded(kind)))
    found = results_of(family.name, metadata, outputs, family.feeds(prepared, True))
    wanted = family.reference(seeded(kind)).results(prepared, True) if wanted is None else wanted
    match = task_module(family.task).match_detections
    return [match('image', *pair) for pair in zip(wanted, found, strict=True)]


def same(kind, outputs, prepared):
    for row in rows(kind, outputs, prepared):
        assert row.passed and row.reference >= 20, row


@pytest.mark.parametrize('kind', REGIONS)
def test_eager_results_of_every_image_are_those_of_simple_test(kind):
    prepared, family = images(3), family_of(kind)
    family.check(toy(kind), options(kind))
    same(kind, run_stages(family.stages(seeded(kind), options(kind)), family.feeds(prepared, True)), prepared)
    found = family.reference(seeded(kind)).results(prepared, True)
    assert all(len(set(one.labels.tolist())) > 1 for one in found)


@pytest.mark.parametrize(
    ('kind', 'exporter', 'paste'),
    [
        ('regions_masks', 'torchscript', True),
        *(pytest.param(kind, 'torchscript', False, marks=pytest.mark.matrix) for kind in REGIONS),
        *(pytest.param(kind, 'dynamo', False, marks=pytest.mark.matrix) for kind in REGIONS),
    ],
)
def test_an_exported_graph_is_right_at_sizes_and_batches_that_it_never_saw(kind, exporter, paste):
    family, model = family_of(kind), seeded(kind)
    chosen = options(kind, dynamic=True, exporter=exporter, **(dict(paste_masks=True) if paste else {}))
    chosen = chosen.replace(opset=18) if exporter == 'dynamo' else chosen
    run = exported(family, model, chosen, images(1))
    for prepared in (images(3, seed=9), images(2, (250, 161), 3)):
        same(kind, run(prepared), prepared)


def change(path, value, kind='regions'):
    """Return what sets a key of a config, and the kind of toy."""

    def apply(model):
        *keys, last = path.split('.')
        for key in keys:
            model = model[int(key) if key.isdigit() else key]
        model[last] = value

    return kind, apply


REFUSED = {
    'rcnn.max_per_img=400': change('test_cfg.rcnn.max_per_img', 400),
    'RPNHead': change('rpn_head', dict(type='RPNHead', in_channels=32)),
}


@pytest.mark.parametrize('said', REFUSED)
def test_what_is_not_exported_is_refused_by_the_name_of_the_part(said):
    kind, apply = REFUSED[said]
    cfg = toy(kind)
    apply(cfg.model)
    with pytest.raises(ConfigError, match=said) as refused:
        find_family(cfg).check(cfg, options(kind))
    assert cfg.filename in str(refused.value) and '\n' not in str(refused.value)
