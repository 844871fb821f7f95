"""Mask2Former: queries that look at the maps inside their masks, and instances from logits of masks.

Source of the algorithm: mmdet 2.28.2 `plugins/msdeformattn_pixel_decoder.py`,
`dense_heads/mask2former_head.py` and `seg_heads/panoptic_fusion_heads/maskformer_fusion_head.py`
(`instance_postprocess`). Padding is no different from the image to this head.

Glossary: B batch, Q queries, C classes, D embedding, S tokens, L levels, n results, H, W network input in
pixels, H4, W4 a quarter of it, h, w size of the results.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.ops.attention import attend_tokens
from mmdeploy_ext.exporting.postprocess.mask_resize import resizing_of
from mmdeploy_ext.exporting.postprocess.sizes import hw
from mmdeploy_ext.exporting.postprocess.soft_masks import pick_rows
from mmdeploy_ext.exporting.same_bytes import SameBytes
from mmdeploy_ext.families.parts.padding import Level, SinePositions, tokens_of
from mmdeploy_ext.families.parts.query_networks import (
    among_themselves,
    attend_to,
    encode_points,
    reference_points,
    run_layer,
)
from mmdeploy_ext.families.query.postprocess import best_pairs

NAMES = ('logits', 'mask_logits')
MASKS_FULL = ('masks', 'scores', 'labels')
RATIO = 4
"""Pixels of the input per pixel of the masks."""
EPS = 1e-6
"""Of mmdet's mean score of a mask."""


class Mask2FormerNetwork(nn.Module):
    """`Mask2FormerHead` behind flat tensors."""

    def __init__(self, model: nn.Module, size: tuple[int, int] | None) -> None:
        """Keep the detector.

        `size` is H, W of a graph of one size, whose positions are constants: they are computed here, the same
        bytes on every machine.
        """
        super().__init__()
        self.model = model
        head = model.panoptic_head
        encodings = head.pixel_decoder.postional_encoding, head.decoder_positional_encoding
        self.encodings = nn.ModuleList(SinePositions(one) for one in encodings)
        self.fixed = size is not None
        if size is not None:
            with torch.no_grad():
                image = next(model.parameters()).new_zeros((1, 3, *size))
                levels = self.levels(image, self.projected(model.extract_feat(image)))
            with SameBytes():
                for which, encoding in enumerate(self.encodings):
                    for index, level in enumerate(levels):
                        self.register_buffer(f'place_{which}_{index}', encoding(level), persistent=False)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return class logits (B, Q, C + 1) and mask logits (B, Q, H4, W4) of images (B, 3, H, W)."""
        maps = self.model.extract_feat(image)
        projected = self.projected(maps)
        levels = self.levels(image, projected)
        sources, features = self.pixels(maps, projected, levels)
        found = self.decode(sources, features, levels)
        return tuple(tap(name, tensor) for name, tensor in zip(NAMES, found, strict=True))

    def projected(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return what the encoder takes, coarse to fine, (B, D, h, w)."""
        convs = self.model.panoptic_head.pixel_decoder.input_convs
        return [conv(maps[-1 - index]) for index, conv in enumerate(convs)]

    def levels(self, image: torch.Tensor, maps: Sequence[torch.Tensor]) -> list[Level]:
        """Return where the cells of maps are; all of the input is image."""
        content = hw(image).to(image)[None]
        return [Level(content, image, one) for one in maps]

    def place(self, which: int, index: int, level: Level) -> torch.Tensor:
        """Return the positions (1, h * w, D) of a level: of the encoder (0) or of the decoder (1)."""
        if self.fixed:
            return self.get_buffer(f'place_{which}_{index}')
        return self.encodings[which](level)

    def pixels(
        self, maps: Sequence[torch.Tensor], projected: Sequence[torch.Tensor], levels: Sequence[Level]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the maps that queries look at, coarse to fine, and the features (B, D, H4, W4) of masks."""
        decoder = self.model.panoptic_head.pixel_decoder
        keep = torch.cat([level.inside() for level in levels], 1)[..., None]
        ratios = torch.stack([level.ratios() for level in levels], 1)
        look = functools.partial(attend_tokens, keep=keep, sizes=[level.size for level in levels])
        embeds = decoder.level_encoding.weight
        position = torch.cat(
            [embeds[index] + self.place(0, index, one) for index, one in enumerate(levels)], 1
        )
        reference = reference_points(levels, ratios)
        memory = encode_points(decoder.encoder, tokens_of(projected), position, reference, look)
        found, begin = [], 0
        for height, width in (level.size for level in levels):
            one = memory[:, begin : begin + height * width].transpose(1, 2)
            found.append(one.reshape(one.shape[0], one.shape[1], height, width))  # `unflatten` freezes sizes
            begin = begin + height * width
        for index in reversed(range(len(decoder.lateral_convs))):
            lateral = decoder.lateral_convs[index](maps[index])
            finer = F.interpolate(found[-1], lateral.shape[-2:], mode='bilinear', align_corners=False)
            found.append(decoder.output_convs[index](lateral + finer))
        return found[: decoder.num_outs], decoder.mask_feature(found[-1])

    def decode(
        self, sources: Sequence[torch.Tensor], features: torch.Tensor, levels: Sequence[Level]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return class logits and mask logits after the last layer."""
        head = self.model.panoptic_head
        values = [
            tokens_of([head.decoder_input_projs[index](one)]) + head.level_embed.weight[index]
            for index, one in enumerate(sources)
        ]
        keys = [one + self.place(1, index, levels[index]) for index, one in enumerate(values)]
        places = head.query_embed.weight[None]
        query = head.query_feat.weight[None].expand(features.shape[0], -1, -1)
        for index, layer in enumerate(head.transformer_decoder.layers):
            at = index % len(values)
            outside = self._outside(query, features, sources[at])

            def look(
                attention: nn.Module, own: torch.Tensor, at: int = at, outside: torch.Tensor = outside
            ) -> torch.Tensor:
                return attend_to(attention, own + places, keys[at], values[at], outside)

            query = run_layer(layer, query, dict(self_attn=among_themselves(places), cross_attn=look))
        normed = head.transformer_decoder.post_norm(query)
        return head.cls_embed(normed), self._masks(normed, features)

    def _masks(self, normed: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return masks_of(self.model.panoptic_head.mask_embed(normed), features)

    def _outside(self, query: torch.Tensor, features: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Return (B, 1, Q, h * w) bool: cells outside of the mask of a query; nowhere where it is empty."""
        masks = self._masks(self.model.panoptic_head.transformer_decoder.post_norm(query), features)
        masks = F.interpolate(masks, source.shape[-2:], mode='bilinear', align_corners=False)
        inside = (masks.sigmoid() >= 0.5).to(masks.dtype).flatten(2)
        return ((inside < 0.5) & (inside.amax(2, True) > 0.5))[:, None]


def masks_of(embedded: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Return mask logits (B, Q, H4, W4) of queries (B, Q, D) in features (B, D, H4, W4)."""
    masks = embedded @ features.flatten(2)
    return masks.reshape(masks.shape[0], masks.shape[1], features.shape[2], features.shape[3])


class MasksFullForm(nn.Module):
    """What the `full` form adds to the network: the best pairs of query and class, and their masks."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.most, self.things = max_per_image(fusion), int(fusion.num_things_classes)

    def forward(
        self, img_shape: torch.Tensor, ori_shape: torch.Tensor, logits: torch.Tensor, masks: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return masks (B, n, h, w) bool, scores (B, n) descending and labels (B, n) int64.

        Empty masks, and classes that are no things, have score 0 and label -1, and come last. `ori_shape`
        (2,) int64 is height and width of the results, 0 means the input size; for `img_shape` see
        `dense.forms.FullForm`.
        """
        scores, labels, query = best_pairs(logits.softmax(2)[..., :-1], self.most)
        values = self._resized(masks, query, img_shape, ori_shape)
        inside = values > 0
        weights = inside.to(values.dtype)
        scores = scores * (values.sigmoid() * weights).sum((2, 3)) / (weights.sum((2, 3)) + EPS)
        scores = scores * (labels < self.things).to(scores.dtype)
        scores, order = scores.topk(self.most, 1)
        labels = torch.where(scores > 0, labels.gather(1, order), torch.full_like(order, -1))
        results = pick_rows(inside, order), scores, labels
        return tuple(tap(name, tensor) for name, tensor in zip(MASKS_FULL, results, strict=True))

    def _resized(
        self, masks: torch.Tensor, query: torch.Tensor, img_shape: torch.Tensor, ori_shape: torch.Tensor
    ) -> torch.Tensor:
        """Return logits (B, n, h, w): resized to the input, cut to the image, resized to the original."""
        rows, columns = resizing_of(masks, img_shape, ori_shape, RATIO)
        return rows[:, None] @ (pick_rows(masks, query) @ columns.transpose(1, 2)[:, None])


def max_per_image(fusion: nn.Module) -> int:
    """Return how many results a fusion head gives."""
    return int(fusion.test_cfg.get('max_per_image', 100))
