"""MaskFormer: queries that look at one coarse map, and masks from a pyramid that it is the top of.

Source of the algorithm: mmdet 2.28.2 `plugins/pixel_decoder.py` and `dense_heads/maskformer_head.py`.

Glossary: B batch, Q queries, C classes, D embedding, S tokens of the coarsest map, H, W network input in
pixels, H4, W4 a quarter of it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.postprocess.sizes import hw
from mmdeploy_ext.families.parts.padding import Level, PaddedSinePositions, SinePositions, tokens_of
from mmdeploy_ext.families.parts.query_networks import decode_queries, encode_tokens
from mmdeploy_ext.families.query.masks import NAMES, masks_of


class MaskFormerNetwork(nn.Module):
    """`MaskFormerHead` behind flat tensors, with either of its pixel decoders."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        head = model.panoptic_head
        self.positions = SinePositions(head.decoder_pe)
        own = getattr(head.pixel_decoder, 'positional_encoding', None)
        self.pixel_positions = None if own is None else PaddedSinePositions(own)

    def forward(self, image: torch.Tensor, img_shape: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return class logits (B, Q, C + 1) and mask logits (B, Q, H4, W4) of images (B, 3, H, W).

        `img_shape` (B, 2) is h, w before padding, whose tokens are no keys; 0 means the input size.
        """
        head, maps = self.model.panoptic_head, self.model.extract_feat(image)
        content = torch.where(img_shape > 0, img_shape, hw(image).to(img_shape)[None])
        level = Level(content, image, maps[-1])
        padded = level.inside()[:, None, None] < 0.5
        features, memory = self.pixels(maps, level, padded)
        tokens = tokens_of([head.decoder_input_proj(memory)])
        places = head.query_embed.weight[None]
        query = decode_queries(head.transformer_decoder, tokens, self.positions(level), places, padded)
        found = head.cls_embed(query), masks_of(head.mask_embed(query), features)
        return tuple(tap(name, tensor) for name, tensor in zip(NAMES, found, strict=True))

    def pixels(
        self, maps: Sequence[torch.Tensor], level: Level, padded: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features (B, D, H4, W4) of masks, and the map that queries look at."""
        decoder = self.model.panoptic_head.pixel_decoder
        if self.pixel_positions is None:
            memory, found = maps[-1], decoder.last_feat_conv(maps[-1])
        else:
            memory = self._encoded(decoder, maps[-1], self.pixel_positions(level), padded)
            found = decoder.encoder_out_proj(memory)
        for index in reversed(range(len(decoder.lateral_convs))):
            lateral = decoder.lateral_convs[index](maps[index])
            found = lateral + F.interpolate(found, lateral.shape[-2:], mode='nearest')
            found = decoder.output_convs[index](found)
        return decoder.mask_feature(found), memory

    def _encoded(
        self, decoder: nn.Module, coarse: torch.Tensor, position: torch.Tensor, padded: torch.Tensor
    ) -> torch.Tensor:
        """Return the coarsest map (B, D, h, w) after its tokens have looked at each other."""
        projected = decoder.encoder_in_proj(coarse)
        tokens = encode_tokens(decoder.encoder, tokens_of([projected]), position, padded)
        return tokens.transpose(1, 2).reshape(projected.shape)
