"""Copies of mmdet in research repositories: what they lack and what they refuse, by modules like theirs."""

import importlib.util

import pytest

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.compat import PATCHES

torch = pytest.importorskip('torch')
mmcv = pytest.importorskip('mmcv')
mmdet = pytest.importorskip('mmdet')

VERSION_CHECK = """
import mmcv
mmcv_minimum_version = '1.2.4'
mmcv_maximum_version = {newest!r}
seen = mmcv.__version__
release = [int(part) for part in mmcv.__version__.split('.')]
assert release <= [int(part) for part in mmcv_maximum_version.split('.')], f'MMCV=={{mmcv.__version__}}'
"""


def run_patched(tmp_path, name, source):
    """Return a module of this name and source, run inside the patches, and never a part of sys.modules."""
    path = tmp_path / 'module.py'
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    PATCHES.run(module, lambda: spec.loader.exec_module(module))
    return module


@pytest.mark.parametrize(('newest', 'seen'), [('1.4.0', '1.2.4'), ('1.8.0', mmcv.__version__)])
def test_a_copy_of_mmdet_that_refuses_this_mmcv_is_imported(tmp_path, newest, seen):
    before = mmcv.__version__
    assert run_patched(tmp_path, 'mmdet', VERSION_CHECK.format(newest=newest)).seen == seen
    assert mmcv.__version__ == before


def test_a_copy_of_mmdet_that_is_too_old_is_refused_by_its_version(tmp_path):
    (tmp_path / 'version.py').write_text("__version__ = '2.6.0'\n")
    assert run_patched(tmp_path, 'mmdet', 'ran = True\n').ran
    (tmp_path / 'version.py').write_text("__version__ = '2.2.0+36e1e54'\n")
    with pytest.raises(ConfigError, match=r'2\.2\.0\+36e1e54'):
        run_patched(tmp_path, 'mmdet', 'raise RuntimeError("it ran")\n')


ANCHORS = """
import torch
class AnchorGenerator:
    def __init__(self):
        self.strides = [(4, 8)]
        self.base_anchors = [torch.tensor([[-1., -2, 1, 2], [-3, -1, 3, 1]])]
    num_base_anchors = property(lambda self: [2])
"""


def slow_anchors(base, height, width, stride_x, stride_y):
    return [
        [x0 + column * stride_x, y0 + row * stride_y, x1 + column * stride_x, y1 + row * stride_y]
        for row in range(height)
        for column in range(width)
        for x0, y0, x1, y1 in base.tolist()
    ]


@pytest.mark.parametrize('size', [(2, 3), (0, 2)])
def test_anchors_of_mmdet_2_11_are_priors_of_a_level(tmp_path, size):
    generator = run_patched(tmp_path, 'mmdet.core.anchor.anchor_generator', ANCHORS).AnchorGenerator()
    priors = generator.single_level_grid_priors(size, 0, dtype=torch.float64, device='cpu')
    assert priors.dtype == torch.float64 and generator.num_base_priors == [2]
    expected = slow_anchors(generator.base_anchors[0], *size, 4, 8)
    assert priors.tolist() == expected


POINTS = """
import torch
class AnchorFreeHead(torch.nn.Module):
    strides = (4, 7)
    def __init__(self):
        super().__init__()
    def _get_points_single(self, featmap_size, stride, dtype, device):
        rows, columns = featmap_size
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing='ij')
        return {points}
"""


@pytest.mark.parametrize(
    ('points', 'expected'),
    [
        (
            'torch.stack([x.reshape(-1) * stride, y.reshape(-1) * stride], -1) + stride // 2',
            [[3, 3], [10, 3], [17, 3], [3, 10], [10, 10], [17, 10]],
        ),
        (
            '(y + 0.5, x + 0.5)',
            [[3.5, 3.5], [10.5, 3.5], [17.5, 3.5], [3.5, 10.5], [10.5, 10.5], [17.5, 10.5]],
        ),
    ],
    ids=['pixels', 'cells'],
)
def test_heads_of_points_of_an_older_mmdet_have_a_generator_and_a_coder(tmp_path, points, expected):
    source = POINTS.format(points=points)
    head = run_patched(tmp_path, 'mmdet.models.dense_heads.anchor_free_head', source).AnchorFreeHead()
    generator = head.prior_generator
    priors = generator.single_level_grid_priors((2, 3), 1, device='cpu')
    assert priors.tolist() == expected and priors.dtype == torch.float32
    assert generator.strides == [(4, 4), (7, 7)] and generator.num_base_priors == [1, 1]
    boxes = head.bbox_coder.decode(torch.tensor([[5.0, 6]]), torch.tensor([[1.0, 2, 3, 4]]))
    assert boxes.tolist() == [[4, 4, 8, 10]] and head.use_sigmoid_cls
    head.prior_generator = 'its own'
    assert head.prior_generator == 'its own'


@pytest.mark.parametrize('factor_first', [False, True])
def test_the_threshold_of_an_older_mmdet_is_one_of_products(monkeypatch, factor_first):
    from mmdet.core.post_processing import bbox_nms

    from mmdeploy_ext.families.common.dense_heads import compares_products

    upstream = bbox_nms.multiclass_nms

    def multiclass_nms(boxes, scores, score_thr, nms_cfg, max_num=-1, score_factors=None):
        if factor_first and score_factors is not None:
            scores, score_factors = scores * score_factors[:, None], None
        return upstream(boxes, scores, score_thr, nms_cfg, max_num, score_factors)

    monkeypatch.setattr(bbox_nms, 'multiclass_nms', multiclass_nms)
    assert compares_products() == factor_first
