"""Boxes of one-stage heads, by numpy and by PyTorch, against mmrotate's own coders."""

import itertools

import numpy as np
import pytest
import small_models
import torch
from mmcv.utils import build_from_cfg
from mmdet.core.bbox.builder import BBOX_CODERS
from mmrotate.core.bbox.transforms import norm_angle as upstream_norm_angle

from mm2onnx_mmrotate.angles import VERSIONS, norm_angle
from mm2onnx_mmrotate.deltas import delta_of
from mm2onnx_mmrotate.dense import kinds, settings

ENDS = [-np.pi, -np.pi / 2, -np.pi / 4, 0, np.pi / 4, np.pi / 2, 3 * np.pi / 4, np.pi, 3 * np.pi / 2]
SETTINGS = [
    *(dict(zip(('edge_swap', 'proj_xy', 'norm_factor'), values, strict=True))
      for values in itertools.product((False, True), (False, True), (None, 2))),
    dict(add_ctr_clamp=True, ctr_clamp=7),
    dict(target_means=(0.1, -0.2, 0.3, 0.0, 0.2), target_stds=(0.1, 0.2, 0.5, 0.4, 0.3)),
]  # fmt: skip


@pytest.mark.parametrize('version', VERSIONS)
def test_angles_wrap_as_upstream_also_at_the_ends_of_the_interval(version):
    about = [end + step for end in ENDS for step in (-1e-6, 0.0, 1e-6)]
    angles = torch.tensor([*about, *np.linspace(-8, 8, 1001)], dtype=torch.float32)
    expected = upstream_norm_angle(angles, version)
    assert torch.equal(norm_angle(torch, angles, version), expected)
    np.testing.assert_array_equal(norm_angle(np, angles.numpy(), version), expected.numpy())


def deltas_and_priors(count=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    priors = torch.rand(count, 5, generator=generator) * torch.tensor([300, 200, 90, 60, 3.0]) + 1
    deltas = torch.randn(count, 5, generator=generator) * torch.tensor([1, 1, 3.0, 3.0, 2.0])
    return deltas, priors


def both(coder, rows, priors, level=0):
    """Return boxes by PyTorch and by numpy for rows (A, columns) and priors (A, columns)."""
    batch = {name: value[None] for name, value in rows.items()}
    by_torch = coder.boxes(torch, priors, batch, level)
    arrays = {name: value[None].numpy() for name, value in rows.items()}
    return by_torch[0], coder.boxes(np, priors.numpy(), arrays, level)[0]


@pytest.mark.parametrize('changes', SETTINGS, ids=repr)
@pytest.mark.parametrize('version', VERSIONS)
def test_deltas_become_the_boxes_of_mmrotate(version, changes):
    content = dict(type='DeltaXYWHAOBBoxCoder', angle_range=version, **changes)
    coder = build_from_cfg(content, BBOX_CODERS)
    deltas, priors = deltas_and_priors()
    expected = coder.decode(priors, deltas)
    by_torch, by_numpy = both(delta_of(coder, 'delta'), dict(bbox_pred=deltas), priors)
    assert torch.equal(by_torch, expected)
    np.testing.assert_allclose(by_numpy, expected.numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('name', ['csl', 'csl_angle', 'fcos', 'csl_fcos'])
def test_rows_of_other_heads_become_the_boxes_of_mmrotate(name):
    _, _, model = small_models.seeded(name)
    head, generator = model.bbox_head, torch.Generator().manual_seed(1)
    facts, kind = settings.facts_of(head), kinds.kind_of(head)
    deltas, priors = deltas_and_priors()
    rows = {
        output: torch.randn(len(deltas), columns, generator=generator)
        for output, columns in kind.describe(head).outputs
    }
    if 'fcos' in name:
        priors, rows['bbox_pred'] = priors[:, :2], rows['bbox_pred'].exp() * 20
    else:
        rows['bbox_pred'] = deltas
    expected = kind.boxes(head, 0, rows, priors)
    by_torch, by_numpy = both(facts.coder, rows, priors)
    torch.testing.assert_close(by_torch, expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(by_numpy, expected.numpy(), rtol=1e-5, atol=1e-4)
    scores, factors = kind.scores(head, rows)
    batch = {output: value[None] for output, value in rows.items()}
    assert torch.equal(facts.head.class_scores(torch, batch)[0], scores)
    if factors is not None:
        assert torch.equal(facts.head.score_factors(torch, batch, facts.coder)[0], factors)


def test_another_coder_is_refused_by_name():
    _, _, model = small_models.seeded('retina_oc')
    model.bbox_head.bbox_coder = build_from_cfg(
        dict(type='DeltaXYWHAHBBoxCoder', angle_range='oc'), BBOX_CODERS
    )
    with pytest.raises(Exception, match='DeltaXYWHAHBBoxCoder; expected DeltaXYWHAOBBoxCoder'):
        settings.facts_of(model.bbox_head)
