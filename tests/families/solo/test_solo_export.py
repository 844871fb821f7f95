"""SOLO family: raw, fork and full graphs, traced on one input, equal to mmdet on others."""

import functools

import numpy as np
import onnx
import pytest

from marking import in_suite
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.engines.tensorrt.limits import find_refusals
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.tasks.mask import match_detections
from proofs import check_files
from toy_solo import GRIDS, HEADS, TRACED, load_toy, options_for, picture, prepared
from verdicts import graphs_of, matched_of

OPSETS = {'solov2_light_dcn': 19}
MATRIX = pytest.mark.matrix
"""Of heads whose post-processing is another's: SOLOv2 with deformable convolutions, Decoupled SOLO light."""


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    return functools.cache(lambda name: load_toy(name, folder))


@pytest.fixture(scope='module')
def files(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')

    @functools.cache
    def export(name, **changes):
        changes.setdefault('opset', OPSETS.get(name, 17))
        path = folder / ('_'.join([name, *(f'{key}-{value}' for key, value in changes.items())]) + '.onnx')
        export_files(models(name), options_for(**changes), str(path), [prepared(models(name), 0)])
        return str(path)

    return export


def run_each(deployment, path, cases):
    """Yield what a file says of itself, feeds and outputs, of each list of images."""
    with build_backend('OnnxRuntimeBackend', path, graph_optimization='basic') as backend:
        for images in cases:
            feeds = deployment.family.feeds(images, True)
            known = {key: value for key, value in feeds.items() if key in backend.spec.input_names}
            yield backend.metadata, feeds, backend.infer(known)


def run(deployment, path, images):
    return next(run_each(deployment, path, [images]))


def check_tensors(deployment, metadata, feeds, outputs):
    """Compare with unpatched mmdet to 1e-4 of the scale."""
    family, layout = deployment.family, metadata.options['layout']
    reference = family.reference(deployment.model).tensors(feeds, 'raw', layout=layout)
    assert list(reference) == list(outputs) == metadata.spec.output_names
    for name, wanted in reference.items():
        assert outputs[name].shape == wanted.shape
        assert np.abs(outputs[name] - wanted).max() <= 1e-4 * np.abs(wanted).max(), name


def check_instances(deployment, metadata, feeds, outputs, images):
    """Compare with mmdet's own `get_results`; enough are compared."""
    family, model = deployment.family, deployment.model
    expected = family.reference(model).results(images, True)
    found = results_of(family.name, metadata, outputs, feeds)
    rows = [match_detections('image', *pair) for pair in zip(expected, found, strict=True)]
    assert all(row.passed for row in rows), rows
    assert min(row.matched for row in rows) >= 25


@pytest.mark.matrix
@pytest.mark.parametrize(
    ('name', 'size', 'whole'),
    [
        pytest.param('solo', (101, 135), (104, 136), marks=MATRIX),
        ('decoupled', (101, 135), (104, 136)),
        pytest.param('solov2', (96, 128), (96, 128), marks=MATRIX),
    ],
)
def test_without_their_sizes_masks_are_of_the_input_up_to_a_multiple_of_8(models, files, name, size, whole):
    image = np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)
    with build_backend('OnnxRuntimeBackend', files(name, form='full', dynamic=True)) as backend:
        assert backend.infer({'input': image})['masks'].shape[2:] == whole
        meaning = {tensor.name: tensor.meaning for tensor in backend.metadata.spec.inputs}['ori_shape']
    assert meaning.endswith('0 means those of the input, up to a multiple of 8')


@pytest.mark.parametrize(
    ('form', 'name'),
    [
        *in_suite(('raw', name) for name in HEADS),
        *in_suite((('full', name) for name in HEADS), ('full', 'solov2')),
    ],
)
def test_a_dynamic_file_equals_mmdet_at_sizes_and_batches_it_never_saw(models, files, name, form):
    deployment, path = models(name), files(name, form=form, dynamic=True)
    cases = [
        [prepared(deployment, 1, (160, 128))],
        [prepared(deployment, index, (96, 192)) for index in (2, 1)],
    ]
    if not name.startswith('solov2'):  # which takes multiples of 32
        cases.append([prepared(deployment, 1, (101, 150))])
    for images, found in zip(cases, run_each(deployment, path, cases), strict=True):
        if form == 'raw':
            check_tensors(deployment, *found)
        check_instances(deployment, *found, images)


@pytest.mark.parametrize('name', in_suite(['decoupled', 'solov2', 'solo', 'decoupled_light'], 'solov2'))
def test_a_capped_file_equals_mmdet_and_holds_nothing_that_tensorrt_refuses(models, files, name):
    deployment, images = models(name), [prepared(models(name), 1)]
    path = files(name, form='full', max_candidates=600)
    metadata, feeds, outputs = run(deployment, path, images)
    check_instances(deployment, metadata, feeds, outputs, images)
    assert not find_refusals(onnx.load(path), rtx=True)


@pytest.mark.parametrize('name', in_suite(HEADS, 'solov2'))
def test_the_fork_layout_has_the_forks_outputs_in_its_order(models, files, name):
    deployment, images = models(name), [prepared(models(name), 1)]
    metadata, feeds, outputs = run(deployment, files(name, form='raw', layout='fork'), images)
    check_tensors(deployment, metadata, feeds, outputs)
    check_instances(deployment, metadata, feeds, outputs, images)
    levels = range(5)
    wanted = {
        'solov2': ['cate_pred', 'kernel_pred', 'seg_pred'],
        'solov2_light_dcn': [
            *(f'cate_pred_{level}' for level in levels),
            *(f'kernel_pred_{level}' for level in levels),
            'seg_pred',
        ],
        'solo': [f'{kind}_{level}' for kind in ('seg_preds', 'cate_pred') for level in levels],
    }
    decoupled = [
        f'{kind}_{level}' for kind in ('seg_preds_x', 'seg_preds_y', 'cate_pred') for level in levels
    ]
    assert list(outputs) == wanted.get(name, decoupled)
    cells = sum(grid**2 for grid in GRIDS)
    if name == 'solov2':
        height, width = TRACED
        shapes = [(cells, 5), (cells, 24), (1, 24, height // 4, width // 4)]
        assert [array.shape for array in outputs.values()] == shapes
    else:
        assert outputs['cate_pred_0'].shape == (1, GRIDS[0], GRIDS[0], 5)


@pytest.mark.matrix
@pytest.mark.parametrize('name', ['solo', 'decoupled'])
def test_a_fixed_file_of_the_dynamo_exporter_is_proven(models, files, name):
    path = files(name, form='raw', exporter='dynamo', opset=18)
    verdict, _ = prove(models(name), path, [('picture', picture(0)), ('other', picture(1))])
    assert verdict.proven, verdict.to_json()
    assert matched_of(verdict) >= 50


@pytest.mark.matrix
def test_a_change_of_the_mask_convolutions_in_the_post_processing_is_found(models, files, tmp_path):
    deployment, path = models('solo'), files('solo', form='full', dynamic=True)
    model = onnx.load(path)
    assert graphs_of(check_files(deployment, path, [('picture', picture(0))]))[0].equal
    weight = next(value for value in model.graph.initializer if value.name == 'postprocess/convs.0.weight')
    array = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.00001), weight.name))
    onnx.save(model, tmp_path / 'm.onnx')
    (graph,) = graphs_of(check_files(deployment, str(tmp_path / 'm.onnx'), [('picture', picture(0))]))
    assert not graph.passed and weight.name in graph.text


@pytest.mark.parametrize(
    ('name', 'head'),
    [('solov2', 'SOLOV2Head'), pytest.param('decoupled_light', 'DecoupledSOLOLightHead', marks=MATRIX)],
)
def test_a_head_that_a_user_derives_is_exported_as_the_nearest_head_of_mmdet(name, head, models, tmp_path):
    from mmdet.models import dense_heads
    from mmdet.models.builder import HEADS as REGISTRY

    base = models(name)
    derived = type(f'My{head}', (getattr(dense_heads, head),), dict(loss=lambda *args, **kwargs: {}))
    REGISTRY.register_module(module=derived, force=True)
    mine = load_toy(name, tmp_path, {'model.mask_head.type': derived.__name__})
    assert isinstance(mine.model.mask_head, derived) and mine.family.name == 'solo'
    assert mine.family.facts(mine.model) == base.family.facts(base.model)
    paths = []
    for deployment in (base, mine):
        paths.append(str(tmp_path / f'{len(paths)}.onnx'))
        export_files(deployment, options_for(opset=17, form='raw'), paths[-1], [prepared(deployment, 0)])
    graphs = [onnx.load(path).graph.SerializeToString() for path in paths]
    assert graphs[0] == graphs[1]
