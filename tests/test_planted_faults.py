"""The registry of planted faults: enough of each family, by public names, undone afterwards."""

import collections
import importlib

import pytest

from planted_faults import FAULTS
from planted_toys import FAULT_TOYS, toys_of
from planting import TOYS_OF, replaced, result

OF_PICTURES = (
    *(
        'dense',
        'two_stage',
        'masks',
        'query',
        'query_masks',
        'panoptic',
        'yolact',
        'corner',
        'solo',
        'rtdetr',
    ),
)
ENOUGH = 25


def holder(place):
    """Return what holds the function or constant of a place, and its name there."""
    module, path = place.split(':')
    *classes, name = path.split('.')
    owner = importlib.import_module(module)
    for part in classes:
        owner = getattr(owner, part)
    return owner, name


def test_every_family_of_pictures_has_enough_faults():
    counts = collections.Counter(fault.family for fault in FAULTS)
    assert {family: counts[family] for family in OF_PICTURES if counts[family] < ENOUGH} == {}


def test_a_toy_has_no_two_faults_of_a_name():
    counts = collections.Counter((fault.toy, fault.name) for fault in FAULTS)
    assert [pair for pair, count in counts.items() if count > 1] == []
    assert {fault.toy for fault in FAULTS} <= set(FAULT_TOYS)
    assert toys_of(TOYS_OF) == list(dict.fromkeys(toy for toys in TOYS_OF.values() for toy in toys))


@pytest.mark.parametrize('family', OF_PICTURES)
def test_faults_are_planted_in_public_functions_alone(family):
    places = {place for fault in FAULTS if fault.family == family for place in fault.places}
    words = {
        place: place.replace(':', '.').replace('__call__', '').replace('__init__', '') for place in places
    }
    assert [place for place, name in words.items() if '._' in name] == []
    assert [place for place in places if not hasattr(*holder(place))] == []


@pytest.mark.parametrize('toy', sorted({fault.toy for fault in FAULTS}))
def test_every_fault_finds_its_place_and_leaves_it_as_it_was(toy):
    for fault in [fault for fault in FAULTS if fault.toy == toy]:
        before = [getattr(*holder(place)) for place in fault.places]
        with fault.apply() as idle:
            changed = [getattr(*holder(place)) for place in fault.places]
        assert all(one is not other for one, other in zip(before, changed, strict=True)), fault.name
        assert [getattr(*holder(place)) for place in fault.places] == before, fault.name
        assert set(idle()) <= set(fault.places) or not fault.places


def test_a_function_is_wrong_in_modules_tables_and_classes_but_not_in_the_reference():
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
    from mmdeploy_ext.families.dense import forms, graphs, heads, reference
    from mmdeploy_ext.preprocess import pictures

    original = heads.thresholds
    with replaced('mmdeploy_ext.families.dense.heads:thresholds', result(lambda right, *_: right)):
        assert forms.thresholds is graphs.thresholds is heads.thresholds is not original
        assert reference.thresholds is original
    assert forms.thresholds is graphs.thresholds is heads.thresholds is original
    resize = pictures.resize_cv2
    with replaced('mmdeploy_ext.preprocess.pictures:resize_cv2', result(lambda right, *_: right)):
        assert pictures.RESIZERS['cv2'] is pictures.resize_cv2 is not resize
    assert pictures.RESIZERS['cv2'] is pictures.resize_cv2 is resize
