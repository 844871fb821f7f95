"""The RT-DETR of transformers for a config of ours, with the weights of our model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.models.rtdetr.backbone import STAGE_BLOCKS
from mmdeploy_ext.weights.convert import rtdetr_names as names

if TYPE_CHECKING:
    from mmdeploy_ext.families.model import Model

ROW_MAJOR = {'model.encoder.position_layout': 'row_major'}
"""What transformers 5 has."""


def require_transformers() -> Any:
    """Return the package; skip the test where it is not installed."""
    reason = 'skipped: transformers is not installed (pip install transformers -c requirements/lock.txt)'
    return pytest.importorskip('transformers', reason=reason)


def twin(deployment: Model) -> torch.nn.Module:
    """Return transformers' model of the same sizes and weights; every key is taken."""
    transformers, cfg = require_transformers(), deployment.cfg.model
    backbone, encoder, decoder = cfg.backbone, cfg.encoder, cfg.decoder
    deep, base = backbone.depth >= 50, backbone.get('base_channels', 64)
    resnet = transformers.RTDetrResNetConfig(
        embedding_size=base,
        hidden_sizes=[base * 2**stage * (4 if deep else 1) for stage in range(4)],
        depths=list(STAGE_BLOCKS[backbone.depth]),
        layer_type='bottleneck' if deep else 'basic',
        out_features=['stage2', 'stage3', 'stage4'],
    )
    config = transformers.RTDetrConfig(
        backbone_config=resnet,
        encoder_in_channels=list(encoder.in_channels),
        encoder_hidden_dim=encoder.hidden_dim,
        encoder_ffn_dim=encoder.feedforward,
        encoder_attention_heads=encoder.num_heads,
        hidden_expansion=encoder.expansion,
        d_model=decoder.hidden_dim,
        decoder_in_channels=list(decoder.in_channels),
        num_queries=decoder.num_queries,
        decoder_layers=decoder.num_layers,
        decoder_attention_heads=decoder.num_heads,
        decoder_ffn_dim=decoder.feedforward,
        num_labels=decoder.num_classes,
    )
    theirs = transformers.RTDetrForObjectDetection(config).eval()
    theirs.load_state_dict(as_transformers(deployment.model.state_dict(), theirs.state_dict()), strict=True)
    return theirs


def as_transformers(
    tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
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


def differences(deployment: Model, theirs: torch.nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """Return the largest differences of logits and boxes, relative to the largest value of transformers.

    Queries are the tokens that transformers selects, which may differ from ours by ties only.
    """
    model = deployment.model
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(next(model.parameters()).dtype)
    with torch.no_grad():
        wanted = theirs(pixel_values=images)
        tokens = wanted.enc_outputs_class.amax(-1).topk(model.decoder.num_queries, dim=1).indices
        features = model.extract_feat(images)
        scores = model.decoder.tokens(model.decoder.project(features))[1].amax(-1)
        best = model.decoder(features)[2]
        assert_tied(scores, best, tokens)
        logits, boxes, _ = model.decoder(features, tokens)
    pairs = dict(logits=(logits, wanted.logits), boxes=(boxes, wanted.pred_boxes))
    return {
        name: float((ours - other).abs().max() / other.abs().max()) for name, (ours, other) in pairs.items()
    }


def assert_tied(scores, best, selected):
    """Assert that the selected tokens (B, Q) have the scores of the best ones, and are none twice."""
    gaps = (scores.gather(1, selected) - scores.gather(1, best)).abs()
    assert (gaps <= 1e-4 * scores.abs().amax(1, keepdim=True)).all(), 'other tokens'
    assert all(len(set(tokens.tolist())) == len(tokens) for tokens in selected), 'a token twice'
