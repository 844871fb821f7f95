"""The modules of dense heads: what a form of the graph adds to the network, behind flat tensors.

The network is mmdet's own detector; `heads.py` describes its head. Source of the algorithm: mmdet 2.28.2
`models/dense_heads/base_dense_head.py`, and the heads' own files.

Glossary: B batch, a priors of a cell, A priors of a level or of all, C classes, L levels, H, W network input
in pixels, h, w size of a level's maps, n detections of the image that has most, before the
voting of `Head.votes`, which may lose some (with `max_candidates` constant).
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from mmdeploy_ext.contract.dense_head import Head
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.postprocess.bbox2d import DenseBoxPostprocess
from mmdeploy_ext.exporting.postprocess.suppression import hw, length
from mmdeploy_ext.families.dense import heads
from mmdeploy_ext.families.dense.heads import facts_of, generator_of, kind_of, thresholds
from mmdeploy_ext.families.parts import detector_parts
from mmdeploy_ext.families.parts.dense_graphs import FULL_NAMES
from mmdeploy_ext.families.parts.dense_heads import rows_of
from mmdeploy_ext.families.parts.runtime.box_coders import boxes_of, factors_of, peaks_of, scores_of


def described(model: nn.Module) -> Head:
    """Return the description of a detector's head; if the neck rounds sizes down, maps follow no strides.

    ConfigError: the head is none that exports, here and in all that reads its description.
    """
    head = heads.described(model.bbox_head)
    return dataclasses.replace(
        head, maps_by_stride=head.maps_by_stride and not detector_parts.round_down(model)
    )


def num_levels(model: nn.Module) -> int:
    """Return the number of feature maps that the head takes."""
    return len(generator_of(model.bbox_head).strides)


def raw_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the raw outputs: output by output, then level by level."""
    return tuple(f'{name}_{level}' for name in described(model).names for level in range(num_levels(model)))


def flat_outputs(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Return the head's outputs of normalised images (B, 3, H, W), in the order of `raw_names`.

    ConfigError: there are more or fewer than these names.
    """
    head, kind = model.bbox_head, kind_of(model.bbox_head)
    outputs = kind.flatten(kind.tested(head, head(model.extract_feat(image))))
    if len(outputs) != len(raw_names(model)):
        raise ConfigError(
            f'{type(model.bbox_head).__name__}: gives {len(outputs)} tensors, expected '
            f'{", ".join(described(model).names)} of each of {num_levels(model)} levels'
        )
    return outputs


class LevelRows(dict):
    """The outputs of one level by name, each turned into rows (B, A, columns) when it is first read.

    Attributes:
        maps: name -> its map (B, a*columns, h, w), and columns per prior.
        boxes: the second map if there are several, whose size, type and device priors get.
    """

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
        """Copy the generator of the priors and keep the settings; none of the head's layers is used."""
        super().__init__()
        self.priors = generator_of(head)
        self.facts = facts_of(head)
        self.outputs = heads.described(head).outputs

    def forward(
        self, *raw: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor | None]]:
        """Return per level boxes (B, A, 4), class scores (B, A, C) and score factors (B, A) or None.

        Boxes are xyxy in pixels, not clipped. Scores and factors are in 0..1; scores are -1 in cells in which
        guided anchors place no prior. `raw` are the outputs of the head (B, a*columns, h, w), in the
        order of `raw_names`.
        """
        count, head = len(raw) // len(self.outputs), self.facts['head']
        levels, boxes = [], []
        for level in range(count):
            maps = raw[level::count]
            if head['peaks']:  # scores outside of peaks become zero
                maps = [
                    peaks_of(torch, tensor, head['peaks']) if name == head['scores'] else tensor
                    for (name, _), tensor in zip(self.outputs, maps, strict=True)
                ]
            levels.append(LevelRows(self.outputs, maps))
        for level, rows in enumerate(levels):
            like = rows.boxes
            priors = self.priors.single_level_grid_priors(
                like.shape[-2:], level, dtype=like.dtype, device=like.device
            )
            boxes.append(boxes_of(torch, self.facts, rows, priors, level))
        scores = [scores_of(torch, self.facts, rows) for rows in levels]
        return boxes, scores, [factors_of(torch, self.facts, rows) for rows in levels]


class DecodeForm(nn.Module):
    """What the `decode` form adds to the network: raw outputs to boxes, scores, score factors."""

    def __init__(self, model: nn.Module, product: bool) -> None:
        """Choose with `product` whether scores are multiplied by the factor, or the factor is an output."""
        super().__init__()
        self.decode = Decode(model.bbox_head)
        self.head = described(model)
        self.product = product

    def forward(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return boxes (B, A, 4), scores (B, A, C), factors (B, A) and `level_sizes` (L,) int64.

        The last is the number of priors of each level. The others are those of `Decode`, of all levels, with
        `product` scores times factors. The last two are left out of some models, and factors with `product`,
        see `decode_names`. `raw` are the outputs of the head (B, a*columns, h, w), in the order of
        `raw_names`.
        """
        mlvl_boxes, mlvl_scores, mlvl_factors = self.decode(*raw)
        sizes = [boxes.shape[1] for boxes in mlvl_boxes]
        boxes, scores = torch.cat(mlvl_boxes, dim=1), torch.cat(mlvl_scores, dim=1)
        factor = torch.cat(mlvl_factors, dim=1) if self.head.factor else None
        if self.product and factor is not None:
            outputs = [tap('boxes', boxes), tap('scores', scores * factor[..., None])]
        else:
            outputs = [tap('boxes', boxes), tap('scores', scores)]
            if factor is not None:
                outputs.append(tap(self.head.factor, factor))
        if not self.head.maps_by_stride:
            outputs.append(torch.stack([length(size) for size in sizes]))
        return tuple(outputs)


def decode_names(model: nn.Module, options: Options) -> tuple[str, ...]:
    """Return the names of the outputs of the `decode` form.

    The score factor is one of them if the option `score_form` is 'separate' and the head has one, and
    `level_sizes` if the sizes of maps do not follow from the strides.
    """
    head, names = described(model), ['boxes', 'scores']
    if head.factor and options.score_form == 'separate':
        names.append(head.factor)
    if not head.maps_by_stride:
        names.append('level_sizes')
    return tuple(names)


class DenseFullForm(nn.Module):
    """What the `full` form adds to the network: raw outputs to detections."""

    def __init__(self, model: nn.Module, cap: int = 0) -> None:
        """Read the thresholds from the head's test_cfg.

        `cap`, the option `max_candidates`, is the largest number of candidates that enter the suppression,
        the best by score, with which no shape depends on how many there are; 0 lets all in.
        """
        super().__init__()
        head = model.bbox_head
        self.decode = Decode(head)
        clips = self.decode.facts['clip_border']
        self.postprocess = DenseBoxPostprocess(thresholds(head), described(model), clips, cap)

    def forward(
        self,
        image: torch.Tensor,
        img_shape: torch.Tensor,
        scale_factor: torch.Tensor,
        *border_and_raw: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return dets (B, n, 5), labels (B, n), and with a cap candidates (B,), their number before the cap.

        Dets are x1 y1 x2 y2, in pixels of the network input over `scale_factor`, and score, the best first;
        rows behind the results of an image are zero, with label -1.

        Args:
            image: (B, 3, H, W); only its size is used.
            img_shape: (B, 2) float32 h, w before padding; 0 means the input size.
            scale_factor: (B, 4) float32 `w h w h`, input / original.
            border_and_raw: the raw outputs; before them, of heads whose pictures are padded all around
                (`Head.bordered`), border (B, 2) float32, the rows of padding above the image and the columns
                left of it, which are subtracted from boxes.
        """
        input_hw = hw(image).to(img_shape)[None]
        clip_hw = torch.where(img_shape > 0, img_shape, input_hw)
        border, raw = None, border_and_raw
        if self.postprocess.head.bordered:
            border, *raw = border_and_raw
        outputs = self.postprocess(*self.decode(*raw), clip_hw, scale_factor, border)
        return tuple(tap(name, tensor) for name, tensor in zip(FULL_NAMES, outputs, strict=False))
