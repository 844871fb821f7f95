"""What graphs compute in place of methods of a model: which versions they follow, and which differ."""

import ast
import functools
import importlib
import sys
import types
from pathlib import Path
from types import FunctionType

import pytest
from mmdet.datasets import CocoDataset, CustomDataset
from mmdet.models.dense_heads import AnchorFreeHead
from torch import nn

import toy_query
from mmdeploy_ext.compat.older_mmdet import OlderModule
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families import replaced
from mmdeploy_ext.families.base import FAMILIES, LAYERS_FOLDER, find_family, load_families
from mmdeploy_ext.families.parts.regions import check_extractor
from mmdeploy_ext.proving.results import Check, GraphResult
from mmdeploy_ext.proving.verdict import Verdict
from mmdeploy_ext.proving.views.table import code_lines
from toy_atss import REPO, load_toy

load_families()
TOYS = [
    *sorted(REPO.glob('configs/demo/*_toy.py')),
    *(
        REPO / f'projects/configs/{path}_toy.py'
        for path in (
            *('BEVFusion/bevfusion', 'BEVFusion/centerpoint', 'Autoware/centerpoint_pillar'),
            'PointPillars/pointpillars',
        )
    ),
]
TABLES = {replaced.folder_of(family): family.followed for family in FAMILIES.values() if family.followed}
TABLES[LAYERS_FOLDER] = (*replaced.LAYERS, *replaced.SIZED_LAYERS)
"""Folder with a table -> what it follows; families of one folder follow the same."""
QUERIES = replaced.folder_of(FAMILIES['query_regions'])
"""Folder of the family of Sparse R-CNN."""


@pytest.mark.parametrize('folder', TABLES, ids=lambda folder: folder.name)
def test_tables_follow_the_installed_methods(folder):
    table, installed = replaced.table_of(folder), replaced.installed_hashes(TABLES[folder])
    assert list(replaced.changed_hashes(table, installed)) == [], 'python docs/_pages/replaced_methods.py'
    assert all(installed.values())  # no class or module without any of the methods


@pytest.mark.suite(
    'atss_toy', 'mask_rcnn_toy', 'rtdetr_toy', 'solov2_toy', 'bevfusion_toy', 'pointpillars_toy',
)  # fmt: skip
@pytest.mark.parametrize('path', TOYS, ids=lambda path: path.stem)
def test_models_of_the_libraries_have_the_methods_that_graphs_follow(path):
    cfg = load_config(str(path))
    family = find_family(cfg)
    assert family.differing_methods(family.build(cfg)) == []


@pytest.mark.suite('two_stage', 'panoptic', 'regions_masks')
@pytest.mark.parametrize('kind', ['detr', 'two_stage', 'maskformer', 'panoptic', 'regions_masks'])
def test_models_of_queries_have_the_methods_that_graphs_follow(kind):
    cfg = toy_query.toy(kind)
    family = find_family(cfg)
    assert family.differing_methods(family.build(cfg)) == []


def test_a_method_of_a_class_that_is_derived_from_our_implementation_is_named(monkeypatch):
    cfg = load_config(str(REPO / 'projects/configs/BEVFusion/bevfusion_toy.py'))
    family = find_family(cfg)
    model = family.build(cfg)
    head = model.heads['object']

    class LowerHead(type(head)):
        def get_bboxes(self, found):
            return super().get_bboxes(found)

    monkeypatch.setattr(head, '__class__', LowerHead)
    assert [method.name for method in family.differing_methods(model)] == ['LowerHead.get_bboxes']


def test_a_changed_method_of_a_library_is_named():
    table = dict(ATSSHead=dict(get_bboxes=['0' * 16]))
    installed = dict(ATSSHead=dict(get_bboxes='1' * 16))
    (line,) = replaced.changed_hashes(table, installed)
    assert line.startswith('ATSSHead.get_bboxes: the installed one is 1111')


@pytest.fixture(scope='module')
def deployment():
    return load_toy()


def differing(deployment):
    return [method.text for method in deployment.family.differing_methods(deployment.model)]


def test_the_toy_has_the_methods_that_its_graph_follows(deployment):
    assert differing(deployment) == []


def test_a_subclass_with_a_method_of_its_own_is_said_with_its_lines(deployment, monkeypatch):
    head = deployment.model.bbox_head
    kind = type(head)

    class MyHead(kind):
        def _bbox_post_process(self, *args, **kwargs):
            return super()._bbox_post_process(*args, **kwargs)

        def forward(self, feats):
            """Of the user's layers: the graph runs them."""
            return super().forward(feats)

    monkeypatch.setattr(head, '__class__', MyHead)
    (text,) = differing(deployment)
    assert text.startswith('MyHead._bbox_post_process differs from the one this export follows (')
    assert 'test_replaced.py lines ' in text


@pytest.mark.parametrize('owner', ['detector', 'instance', 'module', 'wrapper'])
def test_methods_that_were_replaced_elsewhere_are_said(deployment, monkeypatch, owner):
    from mmdet.core.post_processing import bbox_nms
    from mmdet.models.detectors import SingleStageDetector

    def other(*args, **kwargs):
        return None

    if owner == 'detector':
        monkeypatch.setattr(type(deployment.model), 'forward_test', other)
    elif owner == 'instance':
        monkeypatch.setattr(deployment.model.bbox_head, 'get_bboxes', other, raising=False)
    elif owner == 'module':
        monkeypatch.setattr(bbox_nms, 'multiclass_nms', other)
    else:
        monkeypatch.setattr(
            SingleStageDetector, 'simple_test', functools.wraps(SingleStageDetector.simple_test)(other)
        )
    (text,) = differing(deployment)
    name = dict(
        detector='ATSS.forward_test',
        instance='ATSSHead.get_bboxes',
        module='mmdet.core.post_processing.bbox_nms.multiclass_nms',
        wrapper='ATSS.simple_test',
    )[owner]
    assert text.startswith(f'{name} differs from ')


def test_all_entries_of_one_module_have_hashes():
    from mmdet.core.post_processing import bbox_nms

    (methods,) = replaced.installed_hashes(
        ((bbox_nms, ('multiclass_nms',)), (bbox_nms, ('fast_nms',)))
    ).values()
    assert sorted(methods) == ['fast_nms', 'multiclass_nms']


def test_a_detector_of_solo_that_is_derived_from_nothing_known_is_named():
    class OwnSolo(nn.Module):
        def simple_test(self, img, img_metas, rescale=False):
            return self.mask_head.simple_test(self.extract_feat(img), img_metas)

    detector = OwnSolo()
    detector.mask_head = nn.Identity()
    names = [method.name for method in FAMILIES['solo'].differing_methods(detector)]
    assert 'OwnSolo.simple_test' in names


def test_a_part_of_this_package_that_no_entry_follows_is_as_its_graph_has_it():
    ours = replaced.DifferingMethod('', '', 0, 0, '')
    parts = {ours: 'Part', type('Own', (), {})(): 'Part'}
    entries = list(replaced.replaced_parts(parts, True, (), dict(Part=('text',)), {}))
    assert [type(entry.part).__name__ for entry in entries] == ['Own']


def test_functions_of_the_module_of_an_inherited_method_are_looked_at(monkeypatch):
    def followed(rows):
        return rows

    def changed(rows):
        return rows + 1

    modules = {name: types.ModuleType(name) for name in ('plugin_head', 'user_head')}
    modules['plugin_head'].gather, modules['plugin_head'].refresh = followed, changed
    modules['user_head'].gather = followed
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    kind = type('Head', (), dict(__module__='plugin_head'))
    part = type('UserHead', (kind,), dict(__module__='user_head'))()
    methods = replaced.replaced_parts(
        {part: 'Head'}, False, (), dict(Head=()), dict(Head=('gather', 'refresh'))
    )
    digest = replaced.hash_of(followed)
    table = {'Head': {}, 'functions of Head': dict(gather=[digest], refresh=[digest])}
    (method,) = replaced.differing_methods(methods, table)
    assert method.name == 'plugin_head.refresh'


def test_a_method_that_is_no_python_function_differs_and_is_not_called_absent(deployment, monkeypatch):
    head = deployment.model.bbox_head
    monkeypatch.setattr(head, 'get_bboxes', functools.partial(head.get_bboxes, cfg=None), raising=False)
    (text,) = differing(deployment)
    assert text.startswith('ATSSHead.get_bboxes differs from ')
    assert text.endswith('(a partial, whose source cannot be read)')


def test_inputs_decide_where_a_method_differs():
    method = replaced.DifferingMethod('MyHead.forward', 'plugin/head.py', 120, 163, 'ATSSHead')
    verdict = Verdict({}, graphs=[GraphResult('', 9, True)], structure=[Check('opset', True)])
    verdict.differing_methods = [method]
    assert verdict.by_inputs == 'MyHead.forward differs'
    (line,) = code_lines(verdict)
    assert line == f'inputs decide: {method.text}'
    assert method.text.endswith('differs from the one this export follows (plugin/head.py lines 120-163)')
    (entry,) = verdict.to_json()['differing_methods']
    assert entry['text'] == method.text and entry['first'] == 120


@pytest.mark.parametrize(
    ('config', 'module', 'function'),
    [
        (
            'configs/demo/mask_rcnn_toy.py',
            'mmdet.models.roi_heads.mask_heads.fcn_mask_head',
            '_do_paste_mask',
        ),
        ('configs/demo/deformable_detr_toy.py', 'mmdet.core.bbox.transforms', 'bbox_cxcywh_to_xyxy'),
        (
            'projects/configs/PointPillars/pointpillars_toy.py',
            'mmdet3d.core.bbox.structures.utils',
            'limit_period',
        ),
        (
            'projects/configs/Autoware/centerpoint_pillar_toy.py',
            'mmdet3d.core.post_processing.box3d_nms',
            'circle_nms',
        ),
        ('projects/configs/Monocular/fcos3d_toy.py', 'mmdet3d.core.bbox.structures.utils', 'points_img2cam'),
        (
            'projects/configs/ImVoxelNet/imvoxelnet_toy.py',
            'mmdet3d.core.bbox.structures.utils',
            'points_cam2img',
        ),
    ],
)
def test_a_changed_function_of_a_library_is_named_also_behind_its_decorator(
    config, module, function, monkeypatch
):
    library = importlib.import_module(module)
    cfg = load_config(str(REPO / config))
    family = find_family(cfg)
    model = family.build(cfg)
    assert family.differing_methods(model) == []
    original = getattr(library, function)
    changed = FunctionType(change.__code__, globals(), function)
    is_decorated = isinstance(original, FunctionType) and hasattr(original, '__wrapped__')
    if is_decorated:  # a library's file that was edited has the same decorator around the function
        monkeypatch.setattr(original, '__wrapped__', changed)
    else:
        monkeypatch.setattr(library, function, changed)
    assert f'{module}.{function}' in [method.name for method in family.differing_methods(model)]


def change(*args, **kwargs):
    return args, kwargs


def test_an_extractor_that_is_derived_from_mmdets_is_taken_and_what_it_overrides_is_named(monkeypatch):
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    class Coarser(SingleRoIExtractor):
        def map_roi_levels(self, rois, num_levels):
            return super().map_roi_levels(rois * 1.5, num_levels)

    cfg = load_config(str(REPO / 'configs/demo/mask_rcnn_toy.py'))
    family = find_family(cfg)
    model = family.build(cfg)
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        monkeypatch.setattr(extractor, '__class__', Coarser)
        check_extractor(extractor)
    assert [method.name for method in family.differing_methods(model)] == ['Coarser.map_roi_levels']


def test_anchors_and_a_coder_that_a_user_derives_are_taken_and_what_they_override_is_named(monkeypatch):
    from mmdet.core.anchor.builder import ANCHOR_GENERATORS
    from mmdet.core.bbox.builder import BBOX_CODERS
    from mmdet3d.core.anchor import AlignedAnchor3DRangeGenerator
    from mmdet3d.core.bbox.coders import DeltaXYZWLHRBBoxCoder

    from mmdeploy_ext.families.anchor3d.family import check_parts

    class HigherAnchors(AlignedAnchor3DRangeGenerator):
        def anchors_single_range(self, *args, **kwargs):
            anchors = super().anchors_single_range(*args, **kwargs)
            return anchors + anchors.new_tensor([0, 0, 0.1, 0, 0, 0, 0])

    class LargerBoxes(DeltaXYZWLHRBBoxCoder):
        @staticmethod
        def decode(anchors, deltas):
            return DeltaXYZWLHRBBoxCoder.decode(anchors, deltas) * 1.01

    for registry, kind in ((ANCHOR_GENERATORS, HigherAnchors), (BBOX_CODERS, LargerBoxes)):
        monkeypatch.setitem(registry.module_dict, kind.__name__, kind)
    config = str(REPO / 'projects/configs/PointPillars/pointpillars_toy.py')
    types_of_parts = dict(anchor_generator='HigherAnchors', bbox_coder='LargerBoxes')
    cfg = load_config(
        config, {f'model.pts_bbox_head.{part}.type': name for part, name in types_of_parts.items()}
    )
    family = find_family(cfg)
    check_parts(config, cfg.model)
    methods = [method.name for method in family.differing_methods(family.build(cfg))]
    assert methods == ['HigherAnchors.anchors_single_range', 'LargerBoxes.decode']


@pytest.mark.parametrize(
    ('config', 'key', 'module', 'name'),
    [
        ('StreamPETR/stream_petr_toy.py', 'pts_bbox_head', 'streampetr.head', 'StreamPETRHead'),
        ('PETR/petr_toy.py', 'pts_bbox_head', 'petr.head', 'PETRHead'),
        ('BEVFormer/bevformer_toy.py', 'pts_bbox_head', 'bevformer.head', 'BEVFormerHead'),
        ('Sparse4D/sparse4d_toy.py', 'head', 'sparse4d.head', 'Sparse4DHead'),
    ],
)
def test_a_head_of_cameras_that_a_user_derives_is_taken_beside_the_detector_of_its_model(
    config, key, module, name, monkeypatch
):
    from mmdet.models.builder import HEADS

    base = getattr(importlib.import_module(f'mmdeploy_ext.models.{module}'), name)
    derived = type(f'My{name}', (base,), dict(loss=lambda head, *args: {}))
    monkeypatch.setitem(HEADS.module_dict, derived.__name__, derived)
    cfg = load_config(str(REPO / 'projects/configs' / config), {f'model.{key}.type': derived.__name__})
    family = find_family(cfg)
    model = family.build(cfg)
    assert type(getattr(model, key)) is derived
    assert type(model).__module__ == f'mmdeploy_ext.models.{module.partition(".")[0]}.detector'
    assert family.differing_methods(model) == []
    monkeypatch.setattr(derived, 'forward', lambda head, *args, **kwargs: base.forward(head, *args, **kwargs))
    names = [method.name for method in family.differing_methods(model)]
    assert names == [f'My{name}.forward']


def test_heads_that_a_repository_adds_to_its_copy_of_mmdet_are_taken_and_what_differs_is_named(monkeypatch):
    from mmdet.models.builder import HEADS
    from mmdet.models.dense_heads import AnchorHead, RetinaHead

    from mmdeploy_ext.families.dense.heads import check_library_head
    from mmdeploy_ext.families.parts import proposals

    class AddedRPNHead(AnchorHead):
        __module__ = 'mmdet.models.dense_heads.added_head'

        def _init_layers(self):
            self.rpn_cls = nn.Conv2d(self.in_channels, self.num_base_priors, 1)
            self.rpn_reg = nn.Conv2d(self.in_channels, self.num_base_priors * 4, 1)

        def forward_single(self, x):
            return self.rpn_cls(x), self.rpn_reg(x)

    class AddedHead(RetinaHead):
        __module__ = 'mmdet.models.dense_heads.added_head'

        def get_bboxes(self, *args, **kwargs):
            return super().get_bboxes(*args, **kwargs)

    monkeypatch.setitem(HEADS.module_dict, 'AddedRPNHead', AddedRPNHead)
    config = str(REPO / 'configs/demo/mask_rcnn_toy.py')
    cfg = load_config(config, {'model.rpn_head.type': 'AddedRPNHead', 'model.rpn_head.num_classes': 1})
    family = find_family(cfg)
    model = family.build(cfg)
    proposals.check_head(model.rpn_head)
    names = [method.name for method in family.differing_methods(model)]
    assert 'AddedRPNHead._bbox_post_process' in names  # AnchorHead's, of which a graph does RPNHead's

    cfg = load_config(str(REPO / 'configs/demo/retinanet_toy.py'))
    head = find_family(cfg).build(cfg).bbox_head
    monkeypatch.setattr(head, '__class__', AddedHead)
    check_library_head(head)


def test_the_head_of_regions_of_queryinsts_repository_is_taken_by_its_name_and_compared():
    from mmdet.models.roi_heads import CascadeRoIHead

    from mmdeploy_ext.families.query import supported_parts

    kind = type('QueryRoIHead', (CascadeRoIHead,), dict(simple_test=lambda head, *args: None))
    head = kind.__new__(kind)
    nn.Module.__init__(head)
    (entry,) = replaced.replaced_of_class(head, supported_parts.REPOSITORIES_FOLLOWED)
    names = [method.name for method in replaced.differing_methods([entry], replaced.table_of(QUERIES))]
    assert names[0] == 'QueryRoIHead.simple_test'


def step_of_copy(folder, name, edit):
    """Return the class of a step of mmdet as a copy of mmdet in a folder has it, with an edited text."""
    from mmdet.datasets.pipelines import transforms

    tree = ast.parse(Path(transforms.__file__).read_text(encoding='utf-8'))
    definition = next(node for node in tree.body if getattr(node, 'name', '') == name)
    definition.decorator_list = []
    path = folder / 'mmdet' / 'transforms.py'
    path.parent.mkdir(parents=True)
    path.write_text(edit(ast.unparse(definition)), encoding='utf-8')
    names = dict(vars(transforms))
    exec(compile(path.read_text(encoding='utf-8'), str(path), 'exec'), names)
    return names[name]


def test_a_step_of_a_copy_of_mmdet_is_named_if_it_was_edited_and_not_in_its_repr(tmp_path, monkeypatch):
    from mmdet.datasets.builder import PIPELINES

    edits = dict(
        none=lambda text: text,
        repr=lambda text: text.replace('return repr_str', "return repr_str + '.'"),
        call=lambda text: text.replace('return results', 'results.pop(None, None)\n        return results'),
    )
    table, named = replaced.table_of(LAYERS_FOLDER), {}
    for edit, change in edits.items():
        step = step_of_copy(tmp_path / edit, 'Normalize', change)
        monkeypatch.setitem(PIPELINES.module_dict, 'Normalize', step)
        methods = replaced.differing_steps([dict(type='Normalize')], table)
        named[edit] = [method.name for method in methods]
    assert named == dict(none=[], repr=[], call=['Normalize.__call__'])


def test_a_step_that_the_user_has_in_mmdets_registry_is_named_beside_one_of_mmdet3d(monkeypatch):
    from mmdet.datasets.builder import PIPELINES
    from mmdet3d.datasets.builder import PIPELINES as OF_MMDET3D

    kind = type('MultiScaleFlipAug', (PIPELINES.get('MultiScaleFlipAug'),), {})
    assert 'MultiScaleFlipAug' in OF_MMDET3D.module_dict
    monkeypatch.setitem(PIPELINES.module_dict, 'MultiScaleFlipAug', kind)
    steps = [dict(type='MultiScaleFlipAug')]
    assert [step.name for step in replaced.differing_steps(steps, {})] == ['MultiScaleFlipAug']


def test_compose_and_what_reads_files_are_named_if_they_are_the_users(monkeypatch):
    from mmcv.fileio import FileClient
    from mmcv.fileio.file_client import HardDiskBackend
    from mmdet.datasets.pipelines import Compose

    encrypted = type('Encrypted', (HardDiskBackend,), dict(get=lambda backend, path: b''))
    monkeypatch.setitem(FileClient._backends, 'encrypted', encrypted)
    monkeypatch.setattr(Compose, '__call__', lambda compose, data: data)
    steps = [dict(type='LoadImageFromFile', file_client_args=dict(backend='encrypted'))]
    table = replaced.table_of(LAYERS_FOLDER)
    assert [step.name for step in replaced.differing_steps(steps, table)] == [
        'Compose.__call__',
        'Encrypted.get',
    ]


def dataset_of_users(name, **methods):
    from mmdet.datasets import CocoDataset

    return type(name, (CocoDataset,), methods)


def init_that_passes_on(self, *args, pipeline=None, extra=1, **kwargs):
    CustomDataset.__init__(self, *args, pipeline=pipeline, **kwargs)


def init_that_edits(self, *args, pipeline=None, **kwargs):
    pipeline[0]['type'] = 'LoadTwo'
    CustomDataset.__init__(self, *args, pipeline=pipeline, **kwargs)


@pytest.mark.parametrize(
    ('methods', 'expected'),
    [
        (dict(evaluate=lambda *_: {}, CLASSES=('a',)), []),
        (dict(__init__=init_that_passes_on), []),
        (dict(__init__=init_that_edits), ['Mine.__init__']),
        (dict(pre_pipeline=lambda dataset, results: None), ['Mine.pre_pipeline']),
        (dict(prepare_test_img=lambda dataset, index: {}), ['Mine.prepare_test_img']),
        (dict(__getitem__=lambda dataset, index: {}), ['Mine.__getitem__']),
        (dict(get_data_info=lambda dataset, index: {}), ['Mine.get_data_info']),
    ],
)
def test_methods_of_a_users_data_set_that_make_test_pictures_are_named(methods, expected):
    settings = [dict(type=dataset_of_users('Mine', **methods))]
    differing = replaced.differing_datasets(settings, replaced.table_of(LAYERS_FOLDER))
    assert [method.name for method in differing] == expected


def test_the_installed_steps_of_a_pipeline_are_in_the_table():
    from mmdet.datasets.builder import DATASETS, PIPELINES

    for kind, methods in replaced.table_of(LAYERS_FOLDER).items():
        library, _, name = kind.partition('mmdet.')
        part = PIPELINES.get(name) or DATASETS.get(name)
        if not library and name and part:
            hashes = {method: replaced.hash_of(getattr(part, method)) for method in methods}
            assert all(hashes[method] in methods[method] for method in methods), kind


def test_a_box_coder_that_a_user_derives_is_taken_and_what_it_overrides_is_named(monkeypatch):
    from mmdet.core.bbox.coder import DeltaXYWHBBoxCoder

    class LargerBoxes(DeltaXYWHBBoxCoder):
        def decode(self, *args, **kwargs):
            return super().decode(*args, **kwargs) * 1.01

    cfg = load_config(str(REPO / 'configs/demo/retinanet_toy.py'))
    family = find_family(cfg)
    model = family.build(cfg)
    before = family.postprocess_facts(model)
    monkeypatch.setattr(model.bbox_head.bbox_coder, '__class__', LargerBoxes)
    assert family.postprocess_facts(model) == before
    assert [method.name for method in family.differing_methods(model)] == ['LargerBoxes.decode']


def test_parts_that_a_graph_computes_are_looked_at_also_in_attributes_of_a_head(monkeypatch):
    from mmcv.ops import RoIAlign
    from mmdet.core.anchor import AnchorGenerator

    class Anchors(AnchorGenerator):
        def grid_priors(self, *args, **kwargs):
            return super().grid_priors(*args, **kwargs)

    class Align(RoIAlign):
        def forward(self, *args):
            return super().forward(*args)

    cfg = load_config(str(REPO / 'configs/demo/mask_rcnn_toy.py'))
    family = find_family(cfg)
    model = family.build(cfg)
    monkeypatch.setattr(model.rpn_head.prior_generator, '__class__', Anchors)
    monkeypatch.setattr(model.roi_head.mask_roi_extractor.roi_layers[0], '__class__', Align)
    names = [method.name for method in family.differing_methods(model)]
    assert sorted(names) == ['Align.forward', 'Anchors.grid_priors']


def test_a_distribution_of_gfl_of_any_class_is_looked_at():
    family, detector = FAMILIES['dense'], nn.Module()
    detector.bbox_head = nn.Module()
    detector.bbox_head.integral = nn.Softmax(1)
    (entry,) = [entry for entry in family.replaced(detector) if entry.part is detector.bbox_head.integral]
    assert (entry.upstream, entry.methods) == ('Integral', ('forward',))


def test_a_base_method_that_a_followed_method_calls_by_super_is_looked_at(monkeypatch):
    from mmcv.cnn.bricks.transformer import TransformerLayerSequence

    cfg = toy_query.toy('detr')
    family = find_family(cfg)
    model = family.build(cfg)
    monkeypatch.setattr(TransformerLayerSequence, 'forward', change)
    names = [method.name for method in family.differing_methods(model)]
    assert names == ['mmcv.cnn.bricks.transformer.TransformerLayerSequence.forward']


def test_a_users_hook_on_a_part_that_a_graph_computes_is_named():
    cfg = toy_query.toy('detr')
    family = find_family(cfg)
    model = family.build(cfg)
    attention = model.bbox_head.transformer.decoder.layers[0].attentions[0]
    attention.register_forward_hook(lambda module, args, output: output.clamp(max=1e4))
    (method,) = family.differing_methods(model)
    assert method.name == 'a hook of MultiheadAttention' and method.first


def test_a_users_call_and_look_up_of_a_detector_are_named(deployment, monkeypatch):
    kind = type(deployment.model)
    changed = type('MyATSS', (kind,), {'__call__': change, '__getattr__': kind.__getattr__})
    monkeypatch.setattr(deployment.model, '__class__', changed)
    methods = deployment.family.differing_methods(deployment.model)
    assert [method.name for method in methods] == ['MyATSS.__call__']


def test_the_functions_of_an_older_mmdet_are_looked_at():
    entry, absent = (OlderModule(f'mmdet.models.utils.{name}') for name in ('transformer', 'nothing_there'))
    followed = (entry, ('inverse_sigmoid',)), (absent, ('inverse_sigmoid',))
    assert list(replaced.replaced_of_class(object(), followed)) == []
    (found,) = replaced.replaced_functions(followed)
    assert callable(found.part.inverse_sigmoid) and found.upstream == 'mmdet.models.utils.transformer'


def only_of_a_fork(values):
    return values


class HeadOfAFork(AnchorFreeHead):
    def forward(self, feats):
        return only_of_a_fork(feats)


def test_a_method_of_a_forks_own_is_no_copy_of_a_librarys():
    HeadOfAFork.__abstractmethods__ = frozenset()
    assert replaced.called_of_copies(HeadOfAFork.__new__(HeadOfAFork), 'forward') == []


class PicturesOfAPackage(CocoDataset):
    CLASSES = ('thing',)

    def load_annotations(self, ann_file):
        return super().load_annotations(ann_file)[:9]

    def prepare_train_img(self, idx):
        return self.prepare_test_img(idx)


class BrighterPictures(PicturesOfAPackage):
    def pre_pipeline(self, results):
        super().pre_pipeline(results)
        results['gamma'] = 2


def test_a_method_of_the_users_data_set_that_makes_a_test_sample_is_named(monkeypatch):
    from mmdet.datasets.builder import DATASETS

    cfg = load_toy().cfg
    names = {}
    for kind in (PicturesOfAPackage, BrighterPictures):
        monkeypatch.setitem(DATASETS.module_dict, kind.__name__, kind)
        cfg.data.test.type = kind.__name__
        names[kind] = [method.name for method in find_family(cfg).differing_steps(cfg)]
    assert names == {PicturesOfAPackage: [], BrighterPictures: ['BrighterPictures.pre_pipeline']}


def wrapped(original):
    @functools.wraps(original)
    def with_fewer_sweeps(self, argument):
        changed = original(self, argument)
        if len(changed['sweeps']) == 4:
            changed['sweeps'] = changed['sweeps'][:1]
        return changed

    return with_fewer_sweeps


@pytest.mark.parametrize(
    'owner, method',
    [
        ('mmdet3d.datasets.NuScenesDataset', 'get_data_info'),
        ('mmdet3d.datasets.pipelines.LoadPointsFromMultiSweeps', '__call__'),
    ],
)
def test_a_wrapper_around_a_method_of_mmdet3d_that_makes_a_sample_is_named(owner, method, monkeypatch):
    module, _, name = owner.rpartition('.')
    kind = getattr(importlib.import_module(module), name)
    cfg = load_config(f'{REPO}/projects/configs/Autoware/centerpoint_pillar_toy.py')
    assert not find_family(cfg).differing_steps(cfg)
    monkeypatch.setattr(kind, method, wrapped(getattr(kind, method)))
    assert [found.name for found in find_family(cfg).differing_steps(cfg)] == [f'{name}.{method}']


def test_a_data_set_of_pictures_with_boxes_of_its_own_class_is_named():
    class OwnBoxes(CustomDataset):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.box_type_3d = dict

    assert replaced._changes_sample(OwnBoxes.__init__)
    assert not replaced._changes_sample(CustomDataset.pre_pipeline)


@pytest.mark.parametrize(
    'config, boxes', [('Monocular/fcos3d_toy', 'LiDAR'), ('ImVoxelNet/imvoxelnet_toy', 'Camera')]
)
def test_boxes_of_another_class_than_those_of_a_graph_are_refused(config, boxes):
    cfg = load_config(f'{REPO}/projects/configs/{config}.py')
    family = find_family(cfg)
    family.check(cfg, family.choose())
    cfg.data.test.box_type_3d = boxes
    with pytest.raises(ConfigError, match=f"data.test.box_type_3d='{boxes}'"):
        family.check(cfg, family.choose())
