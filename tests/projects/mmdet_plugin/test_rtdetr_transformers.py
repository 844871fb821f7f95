"""RT-DETR against an independent implementation, that of transformers, with the same seeded weights."""

import numpy as np
import pytest
import torch

import toy_rtdetr
from mmdeploy_ext.config import load_config
from mmdeploy_ext.convert import rtdetr as library
from mmdeploy_ext.convert import rtdetr_names as names

transformers = pytest.importorskip(
    'transformers',
    reason='skipped: transformers is not installed (pip install transformers -c requirements-lock.txt)')


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """Return our toy model with the row-major embedding and transformers' model of the same weights."""
    deployment = toy_rtdetr.load_toy(
        tmp_path_factory.mktemp('transformers'), {'model.encoder.position_layout': 'row_major'})
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[2, 2, 2, 2], layer_type='basic',
        out_features=['stage2', 'stage3', 'stage4'])
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[32, 64, 128], encoder_hidden_dim=96,
        encoder_ffn_dim=192, encoder_attention_heads=4, hidden_expansion=0.5, d_model=96,
        decoder_in_channels=[96, 96, 96], num_queries=60, decoder_layers=3, decoder_attention_heads=4,
        decoder_ffn_dim=192, num_labels=6)
    theirs = transformers.RTDetrForObjectDetection(config).eval()
    theirs.load_state_dict(as_transformers(deployment.model.state_dict(), theirs.state_dict()), strict=True)
    return deployment, theirs


def as_transformers(tensors, wanted):
    """Return our tensors by the names that transformers' own model has."""
    result = {}
    for key, own in wanted.items():
        name = names.original_name(key)
        split = names.SPLIT_PROJECTION.match(name)
        if split:
            result[key] = tensors[f'{split[1]}in_proj_{split[3]}'].chunk(3)['qkv'.index(split[2])]
        else:
            result[key] = tensors[name]
        assert result[key].shape == own.shape, key
    return result


@pytest.mark.parametrize('shape', [(2, 3, 192, 192), (1, 3, 128, 224)])
def test_logits_and_boxes_are_those_of_transformers(pair, shape):
    deployment, theirs = pair
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = theirs(pixel_values=images)
        logits, boxes = deployment.model.forward_dummy(images)
    for ours, other in ((logits, wanted.logits), (boxes, wanted.pred_boxes)):
        assert float((ours - other).abs().max()) <= 1e-4 * float(other.abs().max())


def test_its_state_dict_is_converted_back(pair):
    deployment, theirs = pair
    source = library.Source(dict(theirs.state_dict()), 'transformers')
    found = library.convert(source, load_config(toy_rtdetr.CONFIG))
    for key, value in deployment.model.state_dict().items():
        np.testing.assert_array_equal(found.state_dict[key].numpy(), value.numpy(), err_msg=key)
