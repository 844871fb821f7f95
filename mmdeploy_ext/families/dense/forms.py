"""The modules of dense heads: what a form of the graph adds to the network, behind flat tensors.

The network is mmdet's own detector; what its head is, `kinds.py` says. Source of the algorithm: mmdet 2.28.2
`models/dense_heads/base_dense_head.py`, and the heads' own files.

Glossary: B batch, A priors of a level or of all, C classes, H, W network input in pixels, n detections.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from mmdeploy_ext.contract.dense_head import Head
from mmdeploy_ext.contract.option import Options
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.postprocess.bbox2d import DenseBoxPostprocess
from mmdeploy_ext.exporting.postprocess.sizes import hw, length
from mmdeploy_ext.families.dense import kinds
from mmdeploy_ext.families.dense.kinds import facts_of, generator_of, kind_of, thresholds
from mmdeploy_ext.families.parts import detector_parts
from mmdeploy_ext.families.parts.priors import rows_of, same_priors
from mmdeploy_ext.families.parts.runtime.box_coders import boxes_of, factors_of, peaks_of, scores_of

FULL_NAMES = ('dets', 'labels', 'candidates')
"""Outputs of the `full` form; the last with a cap alone."""


def described(model: nn.Module) -> Head:
    """Return what the head of a detector is, on its neck."""
    head = kinds.described(model.bbox_head)
    return dataclasses.replace(
        head, maps_by_stride=head.maps_by_stride and not detector_parts.round_down(model)
    )


def num_levels(model: nn.Module) -> int:
    """Return how many feature maps the head looks at."""
    return len(generator_of(model.bbox_head).strides)


def raw_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the raw outputs: by kind, then by level."""
    return tuple(f'{kind}_{level}' for kind in described(model).names for level in range(num_levels(model)))


def flat_outputs(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Return the head's outputs of images, kind by kind; ConfigError: others than its kind has."""
    outputs = kind_of(model.bbox_head).flat(model.bbox_head(model.extract_feat(image)))
    if len(outputs) != len(raw_names(model)):
        raise ConfigError(
            f'{type(model.bbox_head).__name__}: gives {len(outputs)} tensors, expected '
            f'{", ".join(described(model).names)} of each of {num_levels(model)} levels'
        )
    return outputs


class RawNetwork(nn.Module):
    """Backbone, neck and head of the upstream detector; parameters keep their names below `model.`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the head's outputs (B, a*columns, h, w), kind by kind, of images (B, 3, H, W) float32."""
        flat = flat_outputs(self.model, image)
        return tuple(tap(name, tensor) for name, tensor in zip(raw_names(self.model), flat, strict=True))


class Rows(dict):
    """The outputs of one level by name, each turned into rows (B, A, columns) when it is asked for."""

    def __init__(self, outputs: Sequence[tuple[str, int]], maps: Sequence[torch.Tensor]) -> None:
        """Keep the maps (B, a*columns, h, w); `outputs` are their names and columns per prior."""
        super().__init__()
        self.maps = {name: (tensor, columns) for (name, columns), tensor in zip(outputs, maps, strict=True)}
        self.boxes = maps[1] if len(maps) > 1 else maps[0]

    def __missing__(self, name: str) -> torch.Tensor:
        self[name] = rows_of(*self.maps[name])
        return self[name]


class Decode(nn.Module):
    """Priors, box decoding and scores for all levels."""

    def __init__(self, head: nn.Module) -> None:
        """Keep what makes the priors, and the settings; none of the head's layers is used."""
        super().__init__()
        self.priors = same_priors(generator_of(head))
        self.facts = facts_of(head)
        self.outputs = kinds.described(head).outputs

    def forward(
        self, *raw: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor | None]]:
        """Return per level boxes (B, A, 4), class scores (B, A, C) and score factors (B, A) or None.

        Boxes are xyxy in pixels, not clipped.
        """
        count = len(raw) // len(self.outputs)
        levels = [Rows(self.outputs, self._maps(raw[level::count])) for level in range(count)]
        boxes = [self._boxes(level, rows) for level, rows in enumerate(levels)]
        scores = [scores_of(torch, self.facts, rows) for rows in levels]
        return boxes, scores, [factors_of(torch, self.facts, rows) for rows in levels]

    def _maps(self, maps: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the outputs of one level, scores of peaks alone where the head is one of peaks."""
        head = self.facts['head']
        if not head['peaks']:
            return maps
        return [
            peaks_of(torch, one, head['peaks']) if name == head['scores'] else one
            for (name, _), one in zip(self.outputs, maps, strict=True)
        ]

    def _boxes(self, level: int, rows: Rows) -> torch.Tensor:
        like = rows.boxes
        priors = self.priors.single_level_grid_priors(
            like.shape[-2:], level, dtype=like.dtype, device=like.device
        )
        return boxes_of(torch, self.facts, rows, priors, level)


class DecodeForm(nn.Module):
    """What the `decode` form adds to the network: raw outputs to boxes, scores, score factors."""

    def __init__(self, model: nn.Module, product: bool) -> None:
        """Choose whether the score factor is an output of its own or a factor of the scores."""
        super().__init__()
        self.decode = Decode(model.bbox_head)
        self.head = described(model)
        self.product = product

    def forward(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return boxes (B, A, 4), scores (B, A, C), factors (B, A) and sizes (L,); see `decode_names`."""
        boxes, scores, factors = self.decode(*raw)
        sizes = [one.shape[1] for one in boxes]
        boxes, scores = (torch.cat(levels, dim=1) for levels in (boxes, scores))
        factor = torch.cat(factors, dim=1) if self.head.factor else None
        if self.product and factor is not None:
            found = [tap('boxes', boxes), tap('scores', scores * factor[..., None])]
        else:
            found = [tap('boxes', boxes), tap('scores', scores)]
            found += [] if factor is None else [tap(self.head.factor, factor)]
        if not self.head.maps_by_stride:
            found.append(torch.stack([length(size) for size in sizes]))
        return tuple(found)


def decode_names(model: nn.Module, options: Options) -> tuple[str, ...]:
    """Return the outputs of the `decode` form."""
    head = described(model)
    factor = [head.factor] if head.factor and options.score_form == 'separate' else []
    return ('boxes', 'scores', *factor, *([] if head.maps_by_stride else ['level_sizes']))


class FullForm(nn.Module):
    """What the `full` form adds to the network: raw outputs to detections."""

    def __init__(self, model: nn.Module, cap: int = 0) -> None:
        """Read the thresholds from the head's test_cfg; `cap` as in `DenseBoxPostprocess`."""
        super().__init__()
        head = model.bbox_head
        self.decode = Decode(head)
        clips = self.decode.facts['clip_border']
        self.postprocess = DenseBoxPostprocess(thresholds(head), described(model), clips, cap)

    def forward(
        self, image: torch.Tensor, img_shape: torch.Tensor, scale_factor: torch.Tensor, *others: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return dets (B, n, 5), labels (B, n), and with a cap candidates (B,).

        Args:
            image: (B, 3, H, W); only its size is used.
            img_shape: (B, 2) float32 h, w before padding; 0 means the input size.
            scale_factor: (B, 4) float32.
            others: the raw outputs; before them, where boxes lose it, border (B, 2) float32, the padding
                above and left of the image.
        """
        input_hw = hw(image).to(img_shape)[None]
        clip_hw = torch.where(img_shape > 0, img_shape, input_hw)
        border, raw = (others[0], others[1:]) if self.postprocess.head.bordered else (None, others)
        found = self.postprocess(*self.decode(*raw), clip_hw, scale_factor, border)
        return tuple(tap(name, tensor) for name, tensor in zip(FULL_NAMES, found, strict=False))
