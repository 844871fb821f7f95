"""The inputs of a proof set off what they are named after, whatever the model, and take what is given."""

import numpy as np
import pytest

import toy_solo
from mmdeploy_ext.proving.inputs import plain_inputs, proof_inputs, zoomed_input
from mmdeploy_ext.proving.pictures import (
    InputReference,
    empty_reference,
    object_boxes,
    reference_with_empty_image,
    smallest,
)
from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image, read_image
from toy_atss import PICTURE, load_toy


@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp('toys')
    return dict(
        atss=load_toy(),
        decoupled=toy_solo.load_toy('decoupled', folder),
    )


@pytest.fixture(scope='module')
def picture():
    return read_image(PICTURE)


def options(detector, **changes):
    return detector.family.choose(**{'height': 256, 'width': 320, 'dynamic': True, **changes})


FAMILIES = 'atss', 'decoupled'
BOX = np.float32([10, 10, 90, 60])


@pytest.mark.parametrize('size', [(256, 320), (64, 96)])
@pytest.mark.parametrize('family', FAMILIES)
def test_a_dynamic_file_is_given_every_kind_of_size_and_batch(toys, picture, family, size):
    chosen = options(toys[family], height=size[0], width=size[1])
    inputs = proof_inputs(toys[family], chosen, [('a', picture)])
    shapes = [(len(one.images), *one.images[0].tensor.shape[1:]) for one in inputs]
    assert inputs[0].traced and shapes[0] == (1, *size)
    assert {batch for batch, _, _ in shapes} == {1, 3}
    for wanted in (
        lambda h, w: h > w,
        lambda h, w: w > h,
        lambda h, w: w > 2 * h,
        lambda h, w: h > 2 * w,
        lambda h, w: h > size[0],
        lambda h, w: w > size[1],
        lambda h, w: h % 64 == 32,
        lambda h, w: w % 64 == 32,
        lambda h, w: h % 64 == 0,
    ):
        assert any(wanted(h, w) for _, h, w in shapes[1:])
    spec = toys[family].family.spec(toys[family].model, options(toys[family]))
    finer = [shape for shape in shapes[1:] if shape[1] % 32 and shape[2] % 32]
    assert bool(finer) == (spec.inputs[0].multiple == 1)
    assert len({one.name for one in inputs}) == len(inputs)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('dynamic', [True, False])
def test_every_optional_input_is_left_out_alone_and_with_the_others(toys, picture, family, dynamic):
    chosen = options(toys[family], dynamic=dynamic)
    inputs = proof_inputs(toys[family], chosen, [('a', picture)])
    spec = toys[family].family.spec(toys[family].model, chosen)
    optional = tuple(tensor.name for tensor in spec.inputs if tensor.default is not None)
    wanted = {(), optional, *((name,) for name in optional)} if optional else {()}
    assert {one.left_out for one in inputs} == wanted
    for one in inputs:
        feeds = InputReference(toys[family], one).feeds
        assert not set(one.left_out) & set(feeds)
        assert all(f'{name}' in one.name for name in one.left_out)


def test_what_is_left_out_is_its_default_to_the_reference(toys, picture):
    for family in ('atss', 'decoupled'):
        detector = toys[family]
        chosen = options(detector, height=200, width=300, dynamic=False)
        for one in proof_inputs(detector, chosen, [('a', picture)]):
            (image, *_), (given, *_) = InputReference(detector, one).images, one.images
            whole = (200, 300) if family == 'atss' else (200, 304)
            assert image.img_shape == (whole if 'img_shape' in one.left_out else given.img_shape)
            assert image.ori_shape == (whole if 'ori_shape' in one.left_out else given.ori_shape)
            if 'scale_factor' in one.left_out:
                assert (image.scale_factor == 1).all()


def test_an_empty_list_is_beside_others_in_a_batch_of_three(toys, picture):
    atss = toys['atss']
    chosen = options(atss, height=128, width=160)
    empty, _ = empty_reference(atss, chosen)
    inputs = proof_inputs(atss, chosen, [('a', picture)])
    index, reference = reference_with_empty_image(atss, inputs, empty.input)
    assert [bool(len(result)) for result in reference.results] == [True, False, True]
    assert reference.input.name == inputs[index].name and 'batch' in reference.input.name
    assert [image.tensor.shape for image in reference.images] == [
        image.tensor.shape for image in inputs[index].images
    ]


def test_given_pictures_are_added_at_the_size_that_the_rule_of_the_config_gives_them(toys, picture):
    portrait, wide = np.ascontiguousarray(picture.transpose(1, 0, 2)), picture[:100]
    given = [('landscape', picture), ('portrait', portrait), ('wide', wide)]
    detector = toys['atss']
    inputs = proof_inputs(detector, options(detector), given)
    by_rule = {one.sources[0][0]: one for one in inputs if one.name.startswith('resized as in the config')}
    for title, image in given[1:]:
        expected = prepare_image(detector.rule, image)
        assert np.array_equal(by_rule[title].images[0].tensor, expected.tensor)
        assert by_rule[title].rescale
    height, width = by_rule['portrait'].images[0].tensor.shape[1:]
    assert height > width


def test_of_a_large_dynamic_file_the_traced_input_alone_has_its_size(toys, picture):
    atss = toys['atss']
    for height, width, small, large in (
        (800, 1216, (192, 288), (416, 640)),
        (160, 256, (160, 256), (160, 256)),
    ):
        chosen = options(atss, height=height, width=width)
        inputs = {one.name.split(',')[0]: one for one in proof_inputs(atss, chosen, [('a', picture)])}
        plain, zoomed = plain_inputs(atss, chosen)[0], zoomed_input(atss, chosen, ('a', picture), BOX)
        sizes = [one.images[0].tensor.shape[1:] for one in (inputs['dark'], inputs['bright'], plain, zoomed)]
        assert sizes == [small] * 3 + [large]
        assert inputs['traced input'].images[0].tensor.shape[1:] == (height, width)
        listed = [*inputs.values()]
        assert smallest(listed) > 0  # which runs again at the end


def test_objects_are_shares_of_an_oblong_picture_and_score_half_of_the_best():
    boxes, scores = np.float32([[20, 5, 60, 45]] * 3), np.float32([0.6, 0.31, 0.29])
    found = object_boxes(Detections(boxes, scores, np.zeros(3)), (50, 200))
    np.testing.assert_allclose(found, [[0.1, 0.1, 0.3, 0.9]] * 2, rtol=1e-6)
    masks = np.zeros((3, 40, 100), bool)
    masks[:, 10:20, 30:50] = True
    found = object_boxes(Instances(masks, scores, np.zeros(3)), (50, 200))
    np.testing.assert_allclose(found, [[0.3, 0.25, 0.5, 0.5]] * 2, rtol=1e-6)
