"""MaskFormer and Mask2Former: queries with masks; instances or panoptic maps of their logits.

Source: mmdet 2.28.2 `plugins/{pixel_decoder,msdeformattn_pixel_decoder}.py`,
`dense_heads/{maskformer,mask2former}_head.py` and `seg_heads/panoptic_fusion_heads/maskformer_fusion_head.py`
(`instance_postprocess`).
Glossary: B batch, Q queries, C classes, D embedding, n results, H, W network input in pixels, H4, W4 a
quarter of it, h, w size of a map or of the results.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.mask_resize import resizing_of
from mmdeploy_ext.exporting.postprocess.panoptic import QueryFusion
from mmdeploy_ext.exporting.postprocess.soft_masks import pick_rows
from mmdeploy_ext.exporting.postprocess.suppression import number
from mmdeploy_ext.families.common.image_graphs import clip_size
from mmdeploy_ext.families.common.padding import PaddedMap, PaddedSinePositions, SinePositions, tokens_of
from mmdeploy_ext.families.query.facts import QueryFacts
from mmdeploy_ext.families.query.layers import (
    decode_queries,
    encode_points,
    encode_tokens,
    reference_points,
    tokens_inside,
)
from mmdeploy_ext.upstream.models.conditional_detr import among_themselves, attend_to, run_layer
from mmdeploy_ext.upstream.operators.attention import attend_tokens
from mmdeploy_ext.upstream.operators.operator import hw

NAMES = ('logits', 'mask_logits')
MASKS_FULL = ('masks', 'scores', 'labels')
RATIO = 4
EPS = 1e-6
"""mmdet adds it to a mask's number of pixels, by which the sum of scores is divided."""


class MaskFormerNetwork(nn.Module):
    """`MaskFormerHead` with flat tensors and either of its pixel decoders."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        head = model.panoptic_head
        self.positions = SinePositions(head.decoder_pe)
        encoding = getattr(head.pixel_decoder, 'positional_encoding', None)
        self.pixel_positions = None if encoding is None else PaddedSinePositions(encoding)

    def forward(self, image: torch.Tensor, img_shape: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return class logits (B, Q, C + 1) and mask logits (B, Q, H4, W4) of images (B, 3, H, W).

        `img_shape` (B, 2) is h, w before padding, 0: the input size; padding is masked.
        """
        head, maps = self.model.panoptic_head, self.model.extract_feat(image)
        content = clip_size(image, img_shape)
        level = PaddedMap(content, image, maps[-1])
        padded = level.inside()[:, None, None] < 0.5
        features, memory = self.pixels(maps, level, padded)
        tokens = tokens_of([head.decoder_input_proj(memory)])
        places = head.query_embed.weight[None]
        query = decode_queries(head.transformer_decoder, tokens, self.positions(level), places, padded)
        outputs = head.cls_embed(query), masks_of(head.mask_embed(query), features)
        return tuple(tap(name, tensor) for name, tensor in zip(NAMES, outputs, strict=True))

    def pixels(
        self, maps: Sequence[torch.Tensor], level: PaddedMap, padded: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features (B, D, H4, W4) of masks, and the map (B, channels, h, w) of queries.

        `maps` are fine to coarse; `level` and `padded` (B, 1, 1, h * w) bool have the padding of the last
        map.
        """
        decoder = self.model.panoptic_head.pixel_decoder
        if self.pixel_positions is None:
            memory, features = maps[-1], decoder.last_feat_conv(maps[-1])
        else:
            position = self.pixel_positions(level)
            projected = decoder.encoder_in_proj(maps[-1])
            tokens = encode_tokens(decoder.encoder, tokens_of([projected]), position, padded)
            memory = tokens.transpose(1, 2).reshape(projected.shape)
            features = decoder.encoder_out_proj(memory)
        for index in reversed(range(len(decoder.lateral_convs))):
            lateral = decoder.lateral_convs[index](maps[index])
            features = lateral + F.interpolate(features, lateral.shape[-2:], mode='nearest')
            features = decoder.output_convs[index](features)
        return decoder.mask_feature(features), memory


class Mask2FormerPixels(nn.Module):
    """Backbone and pixel decoder of `Mask2FormerHead`, which ignores padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.encoding = SinePositions(model.panoptic_head.pixel_decoder.postional_encoding)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return mask features (B, D, H4, W4), and the maps (B, D, h, w) of queries, coarse to fine."""
        maps = self.model.extract_feat(image)
        projected = self.projected(maps)
        sources, features = self.pixels(maps, projected, levels_of(image, projected))
        return features, *sources

    def projected(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the encoder's inputs (B, D, h, w), coarse to fine."""
        convs = self.model.panoptic_head.pixel_decoder.input_convs
        return [conv(maps[-1 - index]) for index, conv in enumerate(convs)]

    def pixels(
        self, maps: Sequence[torch.Tensor], projected: Sequence[torch.Tensor], levels: Sequence[PaddedMap]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the maps of queries, coarse to fine, and the features (B, D, H4, W4) of masks."""
        decoder = self.model.panoptic_head.pixel_decoder
        keep = tokens_inside(levels)
        ratios = torch.stack([level.ratios() for level in levels], 1)
        look = functools.partial(attend_tokens, keep=keep, sizes=[level.size for level in levels])
        embeds = decoder.level_encoding.weight
        position = torch.cat([embeds[index] + self.encoding(level) for index, level in enumerate(levels)], 1)
        reference = reference_points(levels, ratios)
        memory = encode_points(decoder.encoder, tokens_of(projected), position, reference, look)
        pyramid, begin = [], 0
        for height, width in (level.size for level in levels):
            tokens = memory[:, begin : begin + height * width].transpose(1, 2)
            # `unflatten` freezes sizes
            pyramid.append(tokens.reshape(tokens.shape[0], tokens.shape[1], height, width))
            begin = begin + height * width
        for index in reversed(range(len(decoder.lateral_convs))):
            lateral = decoder.lateral_convs[index](maps[index])
            finer = F.interpolate(pyramid[-1], lateral.shape[-2:], mode='bilinear', align_corners=False)
            pyramid.append(decoder.output_convs[index](lateral + finer))
        return pyramid[: decoder.num_outs], decoder.mask_feature(pyramid[-1])


class Mask2FormerQueries(nn.Module):
    """The queries of `Mask2FormerHead`, which look at maps inside their masks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.encoding = SinePositions(model.panoptic_head.decoder_positional_encoding)

    def forward(
        self, image: torch.Tensor, features: torch.Tensor, *sources: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last class logits (B, Q, C + 1) and mask logits (B, Q, H4, W4)."""
        head, levels = self.model.panoptic_head, levels_of(image, sources)
        values = [
            tokens_of([head.decoder_input_projs[index](source)]) + head.level_embed.weight[index]
            for index, source in enumerate(sources)
        ]
        keys = [tokens + self.encoding(levels[index]) for index, tokens in enumerate(values)]
        places = head.query_embed.weight[None]
        query = head.query_feat.weight[None].expand(features.shape[0], -1, -1)
        for layer_index, layer in enumerate(head.transformer_decoder.layers):
            index = layer_index % len(values)
            outside = self._outside(query, features, sources[index])

            def look(
                attention: nn.Module,
                query: torch.Tensor,
                index: int = index,
                outside: torch.Tensor = outside,
            ) -> torch.Tensor:
                return attend_to(attention, query + places, keys[index], values[index], outside)

            query = run_layer(layer, query, dict(self_attn=among_themselves(places), cross_attn=look))
        normed = head.transformer_decoder.post_norm(query)
        outputs = head.cls_embed(normed), masks_of(head.mask_embed(normed), features)
        return tuple(tap(name, tensor) for name, tensor in zip(NAMES, outputs, strict=True))

    def _outside(self, query: torch.Tensor, features: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        head = self.model.panoptic_head
        masks = masks_of(head.mask_embed(head.transformer_decoder.post_norm(query)), features)
        masks = F.interpolate(masks, source.shape[-2:], mode='bilinear', align_corners=False)
        inside = (masks.sigmoid() >= 0.5).to(masks.dtype).flatten(2)
        return ((inside < 0.5) & (inside.amax(2, True) > 0.5))[:, None]


def pixel_names(head: nn.Module) -> tuple[str, ...]:
    return 'mask_features', *(f'pixels_{index}' for index in range(head.pixel_decoder.num_outs))


def levels_of(image: torch.Tensor, maps: Sequence[torch.Tensor]) -> list[PaddedMap]:
    content = hw(image).to(image)[None]
    return [PaddedMap(content, image, tensor) for tensor in maps]


def masks_of(embedded: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Return mask logits (B, Q, H4, W4) of queries (B, Q, D) in features (B, D, H4, W4)."""
    masks = embedded @ features.flatten(2)
    return masks.reshape(masks.shape[0], masks.shape[1], features.shape[2], features.shape[3])


class MasksFullForm(nn.Module):
    """The form `full`: best pairs of query and class, and their masks."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.max_per_image, self.things = max_per_image(fusion), int(fusion.num_things_classes)

    def forward(
        self, img_shape: torch.Tensor, ori_shape: torch.Tensor, logits: torch.Tensor, masks: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return masks (B, n, h, w) bool, scores (B, n) descending and labels (B, n) int64.

        `ori_shape` (2,) int64 is h, w of the results, `img_shape` (B, 2) float32 h, w before padding; 0 means
        the input size. `logits` are (B, Q, C + 1), `masks` (B, Q, H4, W4).
        """
        scores, labels, query = best_pairs(logits.softmax(2)[..., :-1], self.max_per_image)
        rows, columns = resizing_of(masks, img_shape, ori_shape, RATIO)
        values = rows[:, None] @ (pick_rows(masks, query) @ columns.transpose(1, 2)[:, None])
        inside = values > 0
        weights = inside.to(values.dtype)
        scores = scores * (values.sigmoid() * weights).sum((2, 3)) / (weights.sum((2, 3)) + EPS)
        scores = scores * (labels < self.things).to(scores.dtype)
        scores, order = scores.topk(self.max_per_image, 1)
        labels = torch.where(scores > 0, labels.gather(1, order), torch.full_like(order, -1))
        results = pick_rows(inside, order), scores, labels
        return tuple(tap(name, tensor) for name, tensor in zip(MASKS_FULL, results, strict=True))


def best_pairs(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scores, classes and queries (B, n) of the `count` best of scores (B, Q, C), best first."""
    num_classes = scores.shape[2]
    scores, index = scores.flatten(1).topk(count, 1)
    return scores, index % num_classes, torch.div(index, num_classes, rounding_mode='floor')


def max_per_image(fusion: nn.Module) -> int:
    return number('max_per_image', fusion.test_cfg.get('max_per_image', 100), int)


class QueryMapFullForm(nn.Module):
    """The form `full`: masks at the size of the original, fused into a map."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.fusion = QueryFusion(facts_of(fusion))

    def forward(
        self, img_shape: torch.Tensor, ori_shape: torch.Tensor, logits: torch.Tensor, masks: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """Return the map (B, h, w) int32, see `exporting/postprocess/panoptic.py`."""
        rows, columns = resizing_of(masks, img_shape, ori_shape, RATIO)
        values = rows[:, None] @ (masks @ columns.transpose(1, 2)[:, None])
        return (tap('panoptic', self.fusion(logits, values)),)


def facts_of(fusion: nn.Module) -> QueryFacts:
    test_cfg = fusion.test_cfg
    return QueryFacts(
        num_classes=int(fusion.num_classes),
        num_things=int(fusion.num_things_classes),
        object_mask_thr=number('object_mask_thr', test_cfg.get('object_mask_thr', 0.8), float),
        iou_thr=number('iou_thr', test_cfg.get('iou_thr', 0.8), float),
        filter_low_score=bool(test_cfg.get('filter_low_score', False)),
    )
