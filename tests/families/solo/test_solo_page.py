"""The contract tables of the SOLO page are the spec; grids of a checkpoint are read where they can be."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet.models import build_head

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.core.config import load_config, mmdet_config
from mmdeploy_ext.core.errors import CheckpointError
from mmdeploy_ext.families.solo.family import SoloFamily, check_grids
from mmdeploy_ext.proving.views.table import export_command
from mmdeploy_ext.weights.checkpoint import Checkpoint

PAGE = Path(__file__).resolve().parents[3] / 'mmdeploy_ext/families/solo/README.md'
LIGHT, SOLO = 'solov2/solov2_light_r34_fpn_3x_coco.py', 'solo/solo_r50_fpn_1x_coco.py'
DECOUPLED = 'solo/decoupled_solo_r50_fpn_1x_coco.py'
GRIDS = SimpleNamespace(num_grids=[40, 36, 24, 16, 12])


@pytest.mark.parametrize(
    ('config', 'options'),
    [
        (LIGHT, dict(form='full', dynamic=True)),
        (SOLO, dict(form='full', dynamic=True)),
        (DECOUPLED, dict(form='full', dynamic=True)),
        (LIGHT, dict(form='full', max_candidates=3000)),
        (LIGHT, dict(form='raw', dynamic=True)),
        (SOLO, dict(form='raw', dynamic=True)),
        (DECOUPLED, dict(form='raw', dynamic=True)),
        ('solov2/solov2_r50_fpn_1x_coco.py', dict(form='raw', layout='fork')),
    ],
)
def test_the_contract_tables_are_the_spec(config, options):
    model = load_config(mmdet_config(config)).model
    with torch.device('meta'):
        head = build_head(dict(model.mask_head, test_cfg=model.test_cfg))
    chosen = SoloFamily().choose(height=448, width=672, **options)
    spec = SoloFamily().spec(SimpleNamespace(mask_head=head), chosen)
    rows = [
        f'| `{tensor.name}` | {side} | {tensor.dtype} | {tensor.shape_text()} | '
        f'{"" if tensor.default is None else f"{tensor.default:g}"} | {tensor.meaning} |'
        for side, tensors in (('in', spec.inputs), ('out', spec.outputs))
        for tensor in tensors
    ]
    assert '\n'.join(rows) in PAGE.read_text()


def of_config(text):
    return Checkpoint('c.pth', {'mask_head.conv_kernel.bias': torch.zeros(3)}, dict(config=text))


@pytest.mark.parametrize(
    'text',
    [
        None,
        3,
        'no grids',
        'num_grids=[40, 36, 24, 16, 12]',
        'max_num_grids=[1]',
        'num_grids=(40, 36, 24, 16, 12)',
        'num_grids=[1, 2], x(num_grids=[3, 4])',
    ],
)
def test_a_checkpoint_that_does_not_tell_its_grids_or_has_the_same_loads(text):
    check_grids(GRIDS, of_config(text))


@pytest.mark.parametrize('text', ['mask_head=dict(num_grids=[24, 20])', 'num_grids=(\n    24,\n    20)'])
def test_a_checkpoint_that_tells_other_grids_is_refused(text):
    with pytest.raises(CheckpointError, match=r'c\.pth.*\[24.*20\]'):
        check_grids(GRIDS, of_config(text))


def test_layers_tell_the_grids_of_solo():
    weights = {
        f'mask_head.conv_mask_list.{level}.weight': torch.zeros(grid**2, 4, 1, 1)
        for level, grid in enumerate([20, 16])
    }
    with pytest.raises(CheckpointError, match=r'\[20.*16\]'):
        check_grids(GRIDS, Checkpoint('c.pth', weights, {}))


def test_a_failed_capped_file_points_to_a_raw_form_that_the_tool_takes():
    options = dict(height=64, width=64, opset=17, exporter='torchscript', batch=1, max_candidates=5)
    subject = dict(family='solo', options=dict(options, form='full'))
    assert '--max-candidates 5' in export_command(subject, 'm.onnx')
    assert '--max-candidates' not in export_command(subject, 'm.onnx', form='raw')
