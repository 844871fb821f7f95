"""ATSS: three forms, fixed and dynamic, traced on one input, equal to mmdet on others; variants; refusals."""

import copy
import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mmcv import ConfigDict

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from marking import in_suite
from mmdeploy_ext.cli import graph_app
from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.config import load_config, mmdet_config
from mmdeploy_ext.core.errors import CheckpointError, ConfigError, ShapeError, UsageError
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.exporting.ops.deform_conv import MIN_OPSET
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.files import export_files, export_graphs
from mmdeploy_ext.preprocess.pictures import PreprocessRule
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.seeded.weights import fill_seeded
from mmdeploy_ext.synthetic import coco
from mmdeploy_ext.tasks.bbox2d import match_detections
from proofs import prove_samples

PUBLISHED = mmdet_config('atss/atss_r50_fpn_1x_coco.py')
SMALL = {
    'model.backbone.depth': 18,
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.neck.in_channels': [8, 16, 32, 64],
    'model.neck.out_channels': 32,
    'model.bbox_head.in_channels': 32,
    'model.bbox_head.feat_channels': 16,
    'model.bbox_head.stacked_convs': 1,
    'model.bbox_head.norm_cfg': dict(type='GN', num_groups=4),
    'model.bbox_head.num_classes': 7,
}
DCN = {
    kind: {
        'model.backbone.depth': 50,
        'model.neck.in_channels': [32, 64, 128, 256],
        'model.backbone.dcn': dict(type=kind, deform_groups=1, fallback_on_stride=False),
        'model.backbone.stage_with_dcn': (False, False, False, True),
    }
    for kind in ('DCN', 'DCNv2')
}
FORMS = ('full', 'decode', 'raw')
TRACED = (128, 160)
KINDS = {'fixed': False, 'dynamic': True}
MATRIX = pytest.mark.matrix
SOME = 11, 18
"""The first, and one that turned attributes into inputs; elsewhere it is 17, the default, 19 or 20."""


def load(folder, cfg_options=SMALL, config=PUBLISHED):
    """Return a small ATSS with seeded weights, read from a checkpoint file as users' models are."""
    cfg = load_config(config, copy.deepcopy(cfg_options))
    path = folder / 'seeded.pth'
    torch.save(dict(state_dict=fill_seeded(find_family(cfg).build(cfg)).state_dict()), path)
    return deploy.load(config, str(path), copy.deepcopy(cfg_options))


@pytest.fixture(scope='module')
def deployment(tmp_path_factory):
    return load(tmp_path_factory.mktemp('weights'))


@functools.cache
def picture(index, height=150, width=200):
    return coco.sample(3, 'picture', index, (height, width))[0]


def prepared(deployment, index, size=TRACED):
    return deploy.prepare_fixed(deployment.rule, picture(index), *size)


def options_for(**changes):
    return FAMILIES['dense'].choose(**{'height': TRACED[0], 'width': TRACED[1], **changes})


@pytest.fixture(scope='module')
def files(deployment, tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')

    @functools.cache
    def export(**changes):
        options = options_for(**changes)
        path = folder / ('_'.join(f'{key}-{value}' for key, value in changes.items()) + '.onnx')
        export_files(deployment, options, str(path), [prepared(deployment, 0)])
        return str(path)

    return export


def check_outputs(deployment, path, images, rescale):
    """Compare one file with unpatched mmdet: tensors to 1e-4 of their scale, detections by class and IoU."""
    family = deployment.family
    with build_backend('OnnxRuntimeBackend', path) as backend:
        feeds = family.feeds(images, rescale)
        outputs = backend.infer({name: feeds[name] for name in backend.spec.input_names if name in feeds})
        metadata = backend.metadata
    if metadata.form != 'full':
        reference = family.reference(deployment.model).tensors(feeds, metadata.form)
        assert list(reference) == list(outputs)
        for name, wanted in reference.items():
            assert outputs[name].shape == wanted.shape
            assert np.abs(outputs[name] - wanted).max() <= 1e-4 * np.abs(wanted).max()
    expected = family.reference(deployment.model).results(images, rescale)
    rows = [
        match_detections('image', wanted, got)
        for wanted, got in zip(expected, results_of(family.name, metadata, outputs, feeds), strict=True)
    ]
    assert all(row.passed for row in rows), rows
    assert sum(row.matched for row in rows) >= 25


@pytest.mark.suite('False-full', 'True-full', 'False-raw', 'True-raw')
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('rescale', [False, True])
def test_a_fixed_file_equals_mmdet_on_an_image_it_never_saw(deployment, files, form, rescale):
    path = files(form=form, dynamic=False)
    check_outputs(deployment, path, [prepared(deployment, 1)], rescale)


@pytest.mark.suite(
    'size0-1-full', 'size1-2-full', 'size2-2-full', 'size0-1-raw', 'size1-2-raw', 'size2-2-raw',
)  # fmt: skip
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(('size', 'batch'), [((96, 256), 1), ((192, 128), 2), ((150, 203), 2)])
def test_a_dynamic_file_equals_mmdet_at_other_sizes_and_batches(deployment, files, form, size, batch):
    path = files(form=form, dynamic=True)
    images = [prepared(deployment, index + 1, size) for index in range(batch)]
    check_outputs(deployment, path, images, rescale=batch == 2)


@pytest.mark.matrix  # in the suite: batches of dynamic files, above
def test_a_batch_of_two_can_be_fixed(deployment, files):
    path = files(form='full', batch=2)
    assert read_metadata(path).spec.tensor('input').axes == (2, 3, *TRACED)
    check_outputs(deployment, path, [prepared(deployment, 1), prepared(deployment, 2)], True)


def graph_tensors(values):
    return [
        (
            value.name,
            str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    ]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('kind', KINDS)
def test_spec_names_are_graph_names_are_metadata(deployment, files, form, kind):
    path = files(form=form, dynamic=KINDS[kind])
    model, metadata = onnx.load(path), read_metadata(path)
    spec = deployment.family.spec(deployment.model, options_for(form=form, dynamic=KINDS[kind]))
    assert metadata.spec == spec
    for values, tensors in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        wanted = [(tensor.name, tensor.dtype, tensor.axes) for tensor in tensors]
        assert graph_tensors(values) == wanted
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert (metadata.family, metadata.form) == ('dense', form)
    assert metadata.classes == deployment.classes
    assert metadata.checkpoint_sha256 == deployment.checkpoint_sha256
    assert metadata.config_sha256 == deployment.config_sha256


def test_raw_outputs_are_named_by_kind_and_level_with_mmdets_shapes(files):
    spec = read_metadata(files(form='raw', dynamic=False)).spec
    kinds = ('cls_score', 'bbox_pred', 'centerness')
    assert spec.output_names == [f'{kind}_{level}' for kind in kinds for level in range(5)]
    assert spec.output_names[:2] == ['cls_score_0', 'cls_score_1']
    assert spec.tensor('cls_score_0').axes == (1, 7, 16, 20)
    assert spec.tensor('centerness_4').axes == (1, 1, 1, 2)


def test_the_product_of_scores_and_centerness_is_what_mmdet_multiplies(deployment, files):
    path = files(form='decode', score_form='product', dynamic=True)
    feeds = deployment.family.feeds([prepared(deployment, 2, (96, 96))], False)
    reference = deployment.family.reference(deployment.model).tensors(feeds, 'decode')
    with build_backend('OnnxRuntimeBackend', path) as backend:
        found = backend.infer({'input': feeds['input']})
    assert list(found) == ['boxes', 'scores']
    wanted = reference['scores'] * reference['centerness'][..., None]
    assert np.abs(found['scores'] - wanted).max() <= 1e-4 * wanted.max()


@pytest.mark.suite('11')
@pytest.mark.parametrize(
    'opset', [pytest.param(opset, marks=[] if opset in SOME else MATRIX) for opset in range(11, 21)]
)
def test_the_opset_asked_for_is_the_opset_written(files, opset):
    model = onnx.load(files(form='full' if opset in (11, 20) else 'raw', opset=opset))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [('', opset)]
    assert {node.domain for node in model.graph.node} == {''}
    onnx.checker.check_model(model, full_check=True)


def test_img_shape_and_scale_factor_really_are_inputs(deployment, files):
    image = prepared(deployment, 1)
    with build_backend('OnnxRuntimeBackend', files(form='full', dynamic=False)) as backend:
        plain = backend.infer({'input': image.tensor[None]})['dets'][0]
        small = np.float32([[40, 50]])
        clipped = backend.infer({'input': image.tensor[None], 'img_shape': small})['dets'][0]
        factor = np.float32([[2, 4, 2, 4]])
        scaled = backend.infer({'input': image.tensor[None], 'scale_factor': factor})['dets'][0]
    assert plain[:, [0, 2]].max() > 50
    assert plain[:, [1, 3]].max() > 40
    assert clipped[:, [0, 2]].max() <= 50
    assert clipped[:, [1, 3]].max() <= 40
    assert scaled[:, 2].max() <= TRACED[1] / 2
    assert scaled[:, 3].max() <= TRACED[0] / 4


@pytest.mark.parametrize('shape', [(1, 3, 128, 192), (2, 3, 128, 160), (1, 1, 128, 160)])
def test_a_wrong_shape_gives_the_same_error_on_both_engines(deployment, files, shape):
    options = options_for(form='full', dynamic=False)
    stages = deployment.family.stages(deployment.model, options)
    spec = deployment.family.spec(deployment.model, options)
    messages = set()
    path = files(form='full', dynamic=False)
    for arguments in (('TorchBackend', stages, spec), ('OnnxRuntimeBackend', path)):
        with build_backend(*arguments) as backend, pytest.raises(ShapeError, match='1x3x128x160') as caught:
            backend.infer({'input': np.zeros(shape, np.float32)})
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert 'x'.join(map(str, shape)) in messages.pop()


@pytest.mark.parametrize('form', FORMS)
def test_the_torch_backend_runs_the_same_chain(deployment, form):
    options = options_for(form=form, dynamic=True)
    family, images = deployment.family, [prepared(deployment, 1), prepared(deployment, 2)]
    stages = family.stages(deployment.model, options)
    feeds = family.feeds(images, True)
    with build_backend('TorchBackend', stages, deployment.family.spec(deployment.model, options)) as backend:
        outputs = backend.infer({name: feeds[name] for name in backend.spec.input_names})
    if form == 'full':
        wanted = family.reference(deployment.model).results(images, True)
        assert [int((labels >= 0).sum()) for labels in outputs['labels']] == [len(image) for image in wanted]
        return
    for name, wanted in family.reference(deployment.model).tensors(feeds, form).items():
        np.testing.assert_allclose(outputs[name], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_exporting_twice_gives_identical_bytes(deployment, files, tmp_path):
    path, options = tmp_path / 'again.onnx', options_for(form='full', dynamic=True)
    export_files(deployment, options, str(path), [prepared(deployment, 0)])
    assert path.read_bytes() == Path(files(form='full', dynamic=True)).read_bytes()


def training_loss(model):
    torch.manual_seed(0)
    model.train()
    metas = [dict(img_shape=(96, 96, 3), pad_shape=(96, 96, 3), ori_shape=(96, 96, 3), scale_factor=1.0)]
    losses = model.forward_train(
        torch.randn(1, 3, 96, 96), metas, [torch.tensor([[8.0, 8, 60, 70]])], [torch.tensor([2])]
    )
    total = sum(value if isinstance(value, torch.Tensor) else sum(value) for value in losses.values())
    total.backward()
    return total.item(), {name: value.grad for name, value in model.named_parameters() if value.requires_grad}


def test_exporting_leaves_the_model_untouched_and_trainable(deployment):
    never = copy.deepcopy(deployment.model)
    model = copy.deepcopy(deployment.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    work = copy.copy(deployment)
    work.model = model
    export_graphs(work, options_for(form='decode'), [prepared(deployment, 0)])[0]
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [type(module) for module in model.modules()] == [type(module) for module in never.modules()]
    loss, gradients = training_loss(model)
    wanted, wanted_gradients = training_loss(never)
    assert loss == wanted
    assert all(torch.equal(gradients[name], wanted_gradients[name]) for name in wanted_gradients)


def check(opset=17, cfg_options=SMALL, checkpoint=None, **changes):
    options = options_for(opset=opset, **changes)
    options.check()
    model = deploy.read_config(PUBLISHED, str(checkpoint), copy.deepcopy(cfg_options))
    deploy.build(model)
    deploy.check_options(options, model.unbuilt_cfg, model.family, model.model)
    deploy.load_weights(model)


def test_a_pipeline_that_stretches_without_a_scale_is_traced_at_640_pixels():
    options = options_for(opset=17, height=0, width=0)
    rule = PreprocessRule(keep_ratio=False, size_divisor=32)
    resolved = deploy.resolve(options, torch.nn.Identity(), rule)
    assert (resolved.height, resolved.width) == (640, 640)


@pytest.fixture
def garbage(tmp_path):
    path = tmp_path / 'garbage.pth'
    path.write_bytes(b'no weights')
    return path


def proof_of(deployment, path, proof=prove, **changes):
    """Export a file and return the verdict about it and the options."""
    options = options_for(opset=0, **{'height': 128, 'width': 160, **changes})
    options = deploy.resolve(options, deployment.model, deployment.rule)
    traced = prepared(deployment, 0, (options.height, options.width))
    export_files(deployment, options, str(path), [traced])
    verdict, _ = proof(deployment, str(path), [('a', picture(0)), ('b', picture(1))])
    return verdict, options


def prove_file(deployment, path, proof=prove, **changes):
    verdict, options = proof_of(deployment, path, proof, **changes)
    assert verdict.proven, verdict.to_json()
    return options, onnx.load(str(path))


@pytest.mark.parametrize('kind', [pytest.param('DCN', marks=pytest.mark.matrix), 'DCNv2'])
def test_deformable_backbones_default_to_opset_19_and_are_proven(tmp_path, kind):
    deployment = load(tmp_path, {**SMALL, **DCN[kind]})
    options, model = prove_file(deployment, tmp_path / 'm.onnx', prove_samples, form='raw', dynamic=True)
    assert options.opset == MIN_OPSET == 19
    assert [node.op_type for node in model.graph.node].count('DeformConv') == 3


@pytest.mark.matrix
@pytest.mark.parametrize('engine', ['OnnxRuntimeBackend', 'OpenVinoBackend'])
@pytest.mark.parametrize(('form', 'exporter'), [('full', 'torchscript'), ('raw', 'dynamo')])
def test_deformable_backbones_in_other_operators_are_proven(tmp_path, form, exporter, engine):
    if engine == 'OpenVinoBackend':
        pytest.importorskip('openvino', reason='optional: pip install openvino')
    deployment = load(tmp_path, {**SMALL, **DCN['DCNv2']})
    path, sampled = tmp_path / 'm.onnx', tmp_path / 'sampled.onnx'
    prove_file(deployment, path, form=form, dynamic=True, exporter=exporter)
    assert graph_app.main(['replace', str(path), '--named', 'deform-conv', '--output', str(sampled)]) == 0
    assert all(node.op_type != 'DeformConv' for node in onnx.load(sampled).graph.node)
    for file in (path, sampled):
        verdict, _ = prove(deployment, str(file), [('a', picture(0)), ('b', picture(1))], dict(engine=engine))
        assert verdict.proven, verdict.to_json()


@pytest.mark.matrix
def test_dyhead_is_proven_dynamic(tmp_path):
    neck = load_config(PUBLISHED, SMALL).model.neck
    dyhead = dict(type='DyHead', in_channels=32, out_channels=32, num_blocks=1)
    deployment = load(tmp_path, {**SMALL, 'model.neck': [neck, dyhead]})
    _, model = prove_file(deployment, tmp_path / 'm.onnx', dynamic=True)
    assert [node.op_type for node in model.graph.node].count('DeformConv') == 13


SWIN = dict(
    _delete_=True,
    type='SwinTransformer',
    embed_dims=16,
    depths=(2, 1, 1, 1),
    num_heads=(2, 2, 4, 4),
    window_size=4,
    out_indices=(1, 2, 3),
)
PVTV2 = dict(
    _delete_=True,
    type='PyramidVisionTransformerV2',
    embed_dims=8,
    num_layers=(1, 1, 1, 1),
    num_heads=(1, 2, 4, 4),
    out_indices=(1, 2, 3),
)
PVT = dict(PVTV2, type='PyramidVisionTransformer', pretrain_img_size=64)
TRANSFORMERS = {'Swin': (SWIN, [32, 64, 128]), 'PVT': (PVT, [16, 32, 32]), 'PVTv2': (PVTV2, [16, 32, 32])}


def with_transformer(name):
    backbone, channels = TRANSFORMERS[name]
    return {
        **{key: value for key, value in SMALL.items() if '.backbone.' not in key},
        'model.backbone': backbone,
        'model.neck.in_channels': channels,
        'model.neck.start_level': 0,
    }


@pytest.mark.parametrize(
    ('name', 'dynamic'),
    in_suite([(name, dynamic) for name in TRANSFORMERS for dynamic in (False, True)], ('Swin', True)),
)
def test_transformer_backbones_are_proven_at_one_size_and_at_any(tmp_path, name, dynamic):
    deployment = load(tmp_path, with_transformer(name))
    prove_file(deployment, tmp_path / 'm.onnx', prove_samples, form='raw', dynamic=dynamic)


@pytest.mark.matrix  # in the suite: test_backbone_attention.py names the method
def test_attention_of_the_user_is_named_for_a_file_of_any_size(tmp_path, monkeypatch):
    """A factor that no input shows."""
    from mmdet.models.backbones.swin import ShiftWindowMSA

    forward = ShiftWindowMSA.forward
    monkeypatch.setattr(ShiftWindowMSA, 'forward', lambda *arguments: forward(*arguments) * (1 + 1e-6))
    deployment = load(tmp_path, with_transformer('Swin'))
    verdict, _ = proof_of(deployment, tmp_path / 'any.onnx', form='raw', dynamic=True)
    assert verdict.proven and verdict.untraced[0].startswith('ShiftWindowMSA.forward (')


SOFTMAX = dict(_delete_=True, type='CrossEntropyLoss', use_sigmoid=False)
VARIANTS = {
    'class scores by softmax': {'model.bbox_head.loss_cls': SOFTMAX},
    'moves of centres bounded by pixels': {
        'model.bbox_head.bbox_coder.add_ctr_clamp': True,
        'model.bbox_head.bbox_coder.ctr_clamp': 2,
    },
    'sides of boxes over a normalizer of 4, which may be turned': {
        'model.bbox_head.bbox_coder': dict(_delete_=True, type='TBLRBBoxCoder', normalizer=4.0),
    },
}


@pytest.mark.matrix  # in the suite: scores and coders of test_dense_heads.py
@pytest.mark.parametrize(('variant', 'form'), [(variant, form) for variant in VARIANTS for form in FORMS])
def test_other_scores_and_coders_are_proven(tmp_path, variant, form):
    deployment = load(tmp_path, {**SMALL, **VARIANTS[variant]})
    prove_file(deployment, tmp_path / 'm.onnx', form=form, dynamic=True)


@pytest.mark.matrix  # in the suite but for one class: test_bbox2d_postprocess.py
def test_other_test_cfg_and_classes_are_proven(tmp_path):
    options = {
        **SMALL,
        'model.bbox_head.num_classes': 1,
        'model.test_cfg.nms.class_agnostic': True,
        'model.test_cfg.deploy_nms_pre': -1,
        'model.test_cfg.max_per_img': 7,
        'model.test_cfg.score_thr': 0.01,
    }
    prove_file(load(tmp_path, options), tmp_path / 'm.onnx', form='full')


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_deformable_backbones_refuse_opset_17_before_the_weights_load(kind, garbage):
    with pytest.raises(UsageError, match=r'--opset-version 17.*19'):
        check(17, {**SMALL, **DCN[kind]}, garbage)
    with pytest.raises(CheckpointError):
        check(19, {**SMALL, **DCN[kind]}, garbage)


CODER = 'model.bbox_head.bbox_coder'


@pytest.mark.parametrize(
    ('cfg_options', 'changes', 'message'),
    [
        ({}, dict(form='mask'), '--postprocess mask: expected one of full, decode, raw'),
        ({}, dict(height=127), '--shape 127 160: each side .* largest stride of the model, 128'),
        ({}, dict(opset=10), '--opset-version 10: .* 11 to 20'),
        ({}, dict(opset=21), '--opset-version 21: .* 11 to 20'),
        ({}, dict(opset=17, exporter='dynamo'), '--opset-version 17: the dynamo exporter writes opsets 18'),
        ({CODER: dict(_delete_=True, type='YOLOBBoxCoder')}, {}, r'raises TypeError: YOLOBBoxCoder\.decode'),
        ({'model.test_cfg.nms.type': 'soft_nms'}, {}, "nms.type='soft_nms'"),
        (
            {'model.bbox_head.anchor_generator.strides': [(8, 4), 16, 32, 64, 128]},
            {},
            r'strides=\[\(8, 4\), \(16, 16\).*equal in x and y',
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name_before_the_weights_load(
    garbage, cfg_options, changes, message
):
    options = {**SMALL, **cfg_options}
    with pytest.raises((UsageError, ConfigError), match=message):
        check(cfg_options=options, checkpoint=garbage, **changes)


def test_other_heads_belong_to_no_family():
    model = dict(type='RetinaNet', bbox_head=dict(type='DETRHead'))
    cfg = ConfigDict(model=model, filename='retina.py')
    said = (
        r"retina\.py: .*'RetinaNet' with bbox_head='DETRHead' belongs to no family.*"
        r'nearest is query: .*DETR.*known: .*dense'
    )
    with pytest.raises(ConfigError, match=said):
        find_family(cfg)
