"""Configs that are missing, broken, or that mm2onnx does not export; and overrides that do not fit."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TOY = REPOSITORY / 'configs/demo/atss_toy.py'
LEAF = f"_base_ = ['{TOY}']\n"
UNBUILDABLE = 'bad.py: the model cannot be built: '
CASES = {
    'missing': (None, ['bad.py: no such config file']),
    'syntax error': ('model = dict(type=\n', ["bad.py: syntax error: '(' was never closed (line 1)"]),
    'undefined name': (
        'model = dict(type=ATSS)\n',
        ['bad.py: cannot be read', "NameError: name 'ATSS'", 'bad.py:1)'],
    ),
    'missing base': (
        "_base_ = ['./no_such_base.py']\n",
        ['bad.py: cannot be read', 'no_such_base.py, which it needs, such as for `_base_`: no such file'],
    ),
    'a base of mmdet 3': (
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n",
        ['bad.py: is a config of mmdet 3 (it uses `mmdet::retinanet/', 'translate it first'],
    ),
    'a binary file': (b'\x00\x01\xff\xfe' * 20, ['bad.py: cannot be read']),
    'a plugin that is not there': (
        LEAF + "custom_imports = dict(imports=['no_such_plugin'], allow_failed_imports=False)\n",
        [
            "bad.py: custom_imports=['no_such_plugin']: No module named 'no_such_plugin'; the folder that "
            'no_such_plugin is in has to be on PYTHONPATH'
        ],
    ),
    'a module that a package lacks': (
        LEAF + "custom_imports = dict(imports=['mmdet.no_such_heads'])\n",
        [
            "bad.py: custom_imports=['mmdet.no_such_heads']: No module named 'mmdet.no_such_heads'",
            'mmdet 2.28.2 is /',
            'which has no such module',
        ],
    ),
    'a plugin folder that is not there': (
        LEAF + "plugin = True\nplugin_dir = 'no_such/plugin/'\n",
        ["bad.py: plugin_dir=['no_such.plugin']: No module named 'no_such'", 'PYTHONPATH'],
    ),
    'unknown detector': (
        LEAF + "model = dict(type='NoSuchDetector')\n",
        [f'{UNBUILDABLE}KeyError', 'NoSuchDetector'],
    ),
    'unknown backbone': (
        LEAF + "model = dict(backbone=dict(type='NoSuchNet'))\n",
        [UNBUILDABLE, 'NoSuchNet'],
    ),
    'unknown argument': (LEAF + 'model = dict(backbone=dict(dept=18))\n', [UNBUILDABLE, 'dept']),
    'a mistyped head': (
        LEAF + "model = dict(bbox_head=dict(type='ATSSHaed'))\n",
        [
            "bad.py: model.bbox_head.type='ATSSHaed' is registered by no",
            '(did you mean ATSSHead',
            'no family',
        ],
    ),
    'a head of queries': (
        LEAF + "model = dict(bbox_head=dict(type='DETRHead'))\n",
        ["bad.py: model.type='ATSS' with bbox_head='DETRHead' belongs to no family", 'nearest is query'],
    ),
    'a head with a get_bboxes of its own': (
        LEAF + "model = dict(bbox_head=dict(_delete_=True, type='CornerHead', in_channels=64, "
        'num_classes=6))\n',
        ['bad.py: CornerHead.get_bboxes (', 'of no kind of dense head'],
    ),
    'no model': ('img_norm_cfg = dict(mean=[0], std=[1])\n', ['bad.py: has no `model`']),
    'a model that is no dict': ("model = 'ATSS'\n", ["bad.py: model='ATSS'", 'expected a dict']),
    'another box coder': (
        LEAF + "model = dict(bbox_head=dict(bbox_coder=dict(_delete_=True, type='YOLOBBoxCoder')))\n",
        ['bad.py: ', 'YOLOBBoxCoder.decode() got an unexpected keyword', '--postprocess raw'],
    ),
    'no test pipeline': (
        LEAF + 'data = dict(_delete_=True)\ntest_pipeline = []\n',
        ['bad.py: has neither data.test.pipeline nor test_pipeline'],
    ),
    'no type': ('model = dict(depth=3)\n', ['model.type=None', 'no family']),
    'a step that a file cannot describe': (
        LEAF + "data = dict(test=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='Rot90')]))\n",
        ["bad.py: test pipeline step 'Rot90'", 'if it changes neither, take it out', 'supported: Resize'],
    ),
}
NORMALIZE = 'data.test.pipeline.1.transforms.2'
"""Key of a step of the toy's test pipeline."""
OVERRIDES = {
    'no value': ('model.test_cfg', ['--cfg-options model.test_cfg: expected key=value']),
    'no key': ('=3', ['--cfg-options =3', 'expected key=value']),
    'below a number': ('model.backbone.depth.x=3', ['bad.py: cannot be read', 'depth']),
    'unknown argument': ('model.neck.no_such=1', ['bad.py: the model cannot be built', 'no_such']),
    'a mean of one number': (
        f'{NORMALIZE}.mean=0',
        ['bad.py: test pipeline step Normalize: mean=0 ', 'expected 3 numbers'],
    ),
    'a deviation of zero': (
        f'{NORMALIZE}.std=0,1,1',
        ['bad.py: std is [0.0, 1.0, 1.0], expected positive numbers'],
    ),
    'two means': (f'{NORMALIZE}.mean=1,2', ['step Normalize: mean=[1, 2] ', 'expected 3 numbers']),
    'a step of text': ('data.test.pipeline.1.transforms=a,b', ['bad.py: ', 'data.test', "the step 'a'"]),
    'a step without a type': (f'{NORMALIZE}.type=0', ['bad.py: ', 'data.test', "'type': 0"]),
    'a pipeline of text': ('data.test.pipeline=text', ['bad.py: the pipeline of data.test', "'text'"]),
    'data of text': ('data=text', ["bad.py: data='text'"]),
    'a divisor of text': (
        'data.test.pipeline.1.transforms.3.size_divisor=many',
        ["bad.py: test pipeline step {'type': 'Pad'", "'many'"],
    ),
    'a detector of several types': ('model.type=[1,2]', ['bad.py: model.type=[1, 2]']),
    'a scale of one number': ('data.test.pipeline.1.img_scale=[64]', ['img_scale=[64]; expected one width']),
    'another class count': ('model.bbox_head.num_classes=7', ['(6, 64, 3, 3) in the file, (7, 64, 3, 3) in']),
}


@pytest.mark.parametrize(('content', 'words'), CASES.values(), ids=CASES)
def test_a_config_that_cannot_be_exported_is_refused_by_name(content, words, bench):
    path = bench.folder / 'bad.py'
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    bench.refuses('export', *words, config=path)


@pytest.mark.parametrize(('option', 'words'), OVERRIDES.values(), ids=OVERRIDES)
def test_an_override_that_does_not_fit_is_refused_by_name(option, words, bench):
    path = bench.folder / 'bad.py'
    path.write_text(LEAF)
    bench.refuses('export', *words, config=path, more=f'--cfg-options {option}')


def test_a_folder_or_a_text_for_a_config_is_refused(bench):
    bench.refuses('export', 'is a folder; give the file of the config in it', config=bench.folder)
    path = bench.folder / 'notes.txt'
    path.write_text('model = dict()')
    words = 'notes.txt: is no config; expected a file ending in .py, .yml', 'before the checkpoint'
    bench.refuses('export', *words, config=path)


def test_a_syntax_error_is_one_line_in_a_process_of_its_own(bench):
    path = bench.folder / 'bad.py'
    path.write_text('model = dict(type=\n')
    bench.refuses('export', 'bad.py: syntax error', "'(' was never closed", how='spawn', config=path)


def test_debug_shows_the_traceback_too(bench):
    done = bench.call('export', config='none.py', more='--debug')
    assert done.status == 2 and done.err.startswith('Traceback (most recent call last)')
    assert done.err.splitlines()[-1] == 'error: none.py: no such config file'


def test_a_module_that_an_own_module_lacks_is_to_be_installed(bench, monkeypatch):
    (bench.folder / 'heads_of_mine.py').write_text('import no_such_package.layers\n')
    monkeypatch.syspath_prepend(bench.folder)
    monkeypatch.setattr('sys.dont_write_bytecode', True)  # the folder has to stay as it is
    path = bench.folder / 'bad.py'
    path.write_text(LEAF + "custom_imports = dict(imports='heads_of_mine')\n")
    words = "custom_imports=['heads_of_mine']: No module named 'no_such_package'", 'install it for'
    bench.refuses('export', *words, config=path)


def test_a_config_of_mmdet_3_is_told_before_its_modules_are_missed(bench):
    path = bench.folder / 'bad.py'
    modules = "custom_imports = dict(imports=['mmdet.no_such_module_of_3'])\n"
    path.write_text(f'{modules}model = dict(data_preprocessor=dict())\n')
    bench.refuses('export', 'translate it first', config=path)
