"""Steps of every converter: what is refused, by file, key or suffix."""

import pytest
import torch
from mmcv import Config

from mmdeploy_ext.base.errors import CheckpointError, ConfigError, Mm2OnnxError, UsageError
from mmdeploy_ext.upstream.weights.convert.conversion import (
    FOREIGN_SUFFIXES,
    check_output,
    config_text,
    in_model_order,
    model_tensors,
    save_checkpoint,
)


def config(**values):
    return Config(values, cfg_text='model', filename='c.py')


def test_a_config_needs_a_model():
    with pytest.raises(ConfigError, match=r'c\.py: model=3'):
        model_tensors(config(model=3))


def test_tensors_that_do_not_fit_the_model_are_named():
    with pytest.raises(CheckpointError, match=r'c\.py: .*neck\.weight'):
        in_model_order({}, {'neck.weight': torch.ones(1)}, 'c.py', '')


@pytest.mark.parametrize('suffix', FOREIGN_SUFFIXES)
def test_a_checkpoint_has_no_suffix_of_another_kind(suffix, tmp_path):
    with pytest.raises(UsageError, match=f'k{suffix}: '):
        check_output('source.pth', tmp_path / f'k{suffix}')


@pytest.mark.parametrize('value', [object, 'C:\\new'])
def test_a_value_that_mmcv_would_read_as_another_one_is_refused(value):
    with pytest.raises(ConfigError, match=r'c\.py: '):
        config_text(config(value=value))


@pytest.mark.parametrize('cause', [OSError(28, 'No space left on device'), None])
def test_a_checkpoint_that_torch_cannot_write_is_named_with_the_cause(cause, tmp_path, monkeypatch):
    def failing(*args):
        raise RuntimeError('unexpected pos 64') from cause

    monkeypatch.setattr(torch, 'save', failing)
    reason = 'No space left on device' if cause else 'unexpected pos 64'
    with pytest.raises(Mm2OnnxError, match=rf'k\.pth: .*{reason}'):
        save_checkpoint(tmp_path / 'k.pth', {}, {})
    assert not list(tmp_path.iterdir())
