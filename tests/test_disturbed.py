"""Toys of `--disturb SEED`."""

import numpy as np
import pytest
import torch

from disturbed import CHECKPOINTS, disturb_toys

DRAW = """
generator = torch.Generator().manual_seed(0)
tensors = torch.rand(99, generator=generator), torch.empty(99).normal_(generator=generator)
arrays = np.random.default_rng(0).uniform(1, 2, 99), np.random.default_rng(1).standard_normal(99, np.float32)
trained = torch.load(checkpoint, weights_only=True)['state_dict']['bbox_head.atss_cls.weight']
found = [*(tensor.numpy() for tensor in tensors), *arrays, trained.numpy()]
"""


def drawn(file='toy.py'):
    names = dict(np=np, torch=torch, checkpoint=CHECKPOINTS / 'atss_toy.pth')
    exec(compile(DRAW, file, 'exec'), names)
    return names['found']


def test_toys_are_disturbed_by_less_than_a_unit_of_float32_and_those_of_stored_results_are_not(
    monkeypatch, request
):
    if request.config.option.disturb is not None:
        pytest.skip('skipped: toys are disturbed already')
    before = drawn()
    disturb_toys(1, monkeypatch.setattr)
    after, again, golden = drawn(), drawn(), drawn('toy_golden.py')
    for one, other, same, kept in zip(before, after, again, golden, strict=True):
        assert other.dtype == one.dtype and (other == same).all()
        off = np.abs(other.astype(float) / one - 1)
        assert 0.4e-7 < off.mean() < 1.2e-7 and off.max() < 7e-7
        assert (kept == one).all()
    disturb_toys(2, monkeypatch.setattr)
    assert not any((one == other).all() for one, other in zip(after, drawn(), strict=True))
