"""Names that mmdet3d.ops had before 1.0 are there for modules of users, with the boxes of that time."""

import importlib
import math
import sys

import pytest
import torch

from mmdeploy_ext.upstream import compat
from mmdeploy_ext.upstream.compat import older_operators, operator_forms, stand_ins

compat.apply()

USER = """
from mmdet3d.ops import Voxelization, points_in_boxes_batch
from mmdet3d.ops.iou3d.iou3d_utils import nms_gpu
from mmdet3d.ops.roiaware_pool3d import RoIAwarePool3d, points_in_boxes_gpu
from mmdet3d.ops.furthest_point_sample import Points_Sampler
"""
FORK = {
    'bev_pool/__init__.py': 'from .bev_pool import bev_pool\n',
    'bev_pool/bev_pool.py': 'from . import bev_pool_ext\ndef bev_pool(x): return bev_pool_ext.pool(x)\n',
    'bev_pool/src/pool.cpp': 'int pool(int x) { return x + 1; }\n'
    'PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("pool", &pool); }\n',
}


@pytest.fixture
def imported(tmp_path, monkeypatch):
    pytest.importorskip('mmdet3d.ops')
    monkeypatch.syspath_prepend(str(tmp_path))
    stand_ins.forget()

    def imported(text):
        name = f'users_{tmp_path.name}'
        (tmp_path / f'{name}.py').write_text(text)
        return importlib.import_module(name)

    yield imported
    stand_ins.forget()


def test_the_registry_of_torch_onnx_1_12_is_empty_for_a_users_module_and_takes_its_functions(imported):
    module = imported(
        'from torch.onnx.symbolic_registry import get_registered_op, is_registered_op, register_op\n'
        'before = is_registered_op("nms", "custom", 9)\n'
        'register_op("nms", len, "custom", 9)\n'
        'after = is_registered_op("nms", "custom", 9), get_registered_op("nms", "custom", 9)\n'
    )
    assert not stand_ins.lacks and 'torch.onnx.symbolic_registry' not in sys.modules
    assert not module.before and module.after == (True, len)


def test_operators_of_mmdet3d_0_have_their_signatures_and_boxes(imported):
    module = imported(USER)
    assert not stand_ins.lacks
    boxes = torch.tensor([[[1.0, 0, 0, 2, 6, 2, 0]]])  # long in y
    points = torch.tensor([[[1.0, 2.5, 1], [3.5, 0, 1]]])
    assert module.points_in_boxes_gpu(points, boxes).tolist() == [[0, -1]]
    assert module.points_in_boxes_batch(points, boxes).tolist() == [[[1], [0]]]
    boxes = torch.tensor([[0.0, 0, 4, 2, 0.3], [0, 0, 4, 2, 0.3], [0, 0, 4, 2, math.pi / 2 + 0.3]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    assert module.nms_gpu(boxes, scores, 0.5).tolist() == [1, 2]
    assert module.nms_gpu(boxes, scores, 0.5, pre_maxsize=2, post_max_size=1).tolist() == [1]
    assert 'mmdet3d.ops.nms_gpu before 1.0' in operator_forms.executed_operators


def test_an_operator_of_the_repositorys_copy_runs_by_the_form_of_its_source(imported, tmp_path, monkeypatch):
    for name, content in FORK.items():
        (tmp_path / 'mmdetection3d/mmdet3d/ops' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'mmdetection3d/mmdet3d/ops' / name).write_text(content)
    source = tmp_path / 'mmdetection3d/mmdet3d/ops/bev_pool/src/pool.cpp'
    digest = operator_forms.source_hash([source], 'pool')
    monkeypatch.setitem(operator_forms.known_forms(), 'pool', {digest: lambda x: x + 1})
    module = imported('from mmdet3d.ops import bev_pool\n')
    assert module.bev_pool(3) == 4
    assert f'pool (source {digest})' in operator_forms.executed_operators


def test_a_package_that_is_imported_is_not_read_again(imported, tmp_path):
    folder = tmp_path / 'mmdetection3d/mmdet3d/ops/spconv'
    folder.mkdir(parents=True)
    (folder / '__init__.py').write_text('')
    importlib.import_module('mmdet3d.ops.spconv')
    file = str(tmp_path / 'mmdetection3d/mmdet3d/ops/spconv/ops.py')
    assert older_operators.older_module('mmdet3d.ops.spconv.sparse_conv_ext', file) is None
