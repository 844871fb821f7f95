"""The base class of families of single-image models, and the terms of its interface (`__all__`).

- form: how much of the post-processing a graph has (`--postprocess`);
- stage: a module of the graph: first the network, then the post-processing;
- feeds: the inputs of a graph by name, and further arrays for the runtime.

Glossary: B batch, H, W network input in pixels.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.base.config import keyed_test_pipeline, refused_by_name
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.families.base import Claim, Family
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.preprocess.pipeline_rule import rule_from_pipeline
from mmdeploy_ext.spec.options import FORM, IMAGE, Option, Options
from mmdeploy_ext.spec.preparation import PreprocessRule
from mmdeploy_ext.spec.registry import registration_of
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, Stage, TensorSpec, with_half_features
from mmdeploy_ext.upstream.models.building import build_without_weights, is_users_step

if TYPE_CHECKING:
    import torch

__all__ = [
    'Claim', 'ColumnGroup', 'ConfigError', 'Graph', 'GraphSpec', 'ImageFamily', 'ImageReference', 'Options',
    'PreparedImage', 'PreprocessRule', 'Stage', 'TensorSpec', 'UsageError',
]  # fmt: skip
"""Names for families of other packages."""

LAYERS = (
    'ShiftWindowMSA.forward', 'SpatialReductionAttention.forward', 'AdaptivePadding.forward',
    'Conv2dAdaptivePadding.forward', 'CornerPool.forward', 'BFP.forward',
)  # fmt: skip
"""Layer methods that exports compute by themselves, some only in graphs of any size."""


class ImageFamily(Family):
    """A family of models of single pictures.

    Attributes:
        forms: forms of its graphs.
    """

    forms: ClassVar[tuple[str, ...]] = ()
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'simple_test_bboxes', 'simple_test_rpn',
        'simple_test_mask', 'get_bboxes', '_get_bboxes', '_get_bboxes_single', 'get_bboxes_single',
        '_bbox_post_process',
        '_bboxes_nms', '_bbox_decode', 'anchor_center', 'decode_heatmap', 'score_voting', 'get_anchors',
        '_get_guided_anchors_single', 'get_sampled_approxs', 'get_points', '_get_points_single', 'decode',
        'grid_priors', 'grid_anchors', '_resize', 'deform_sampling',
        *LAYERS,
    )  # fmt: skip

    @property
    def options(self) -> tuple[Option, ...]:
        if not self.forms:
            raise ConfigError(f"family {self.name!r} has no forms; expected at least one, such as ('raw',)")
        default = FORM.default if FORM.default in self.forms else self.forms[0]
        form = dataclasses.replace(FORM, choices=self.forms, default=default)
        image_options = tuple(form if option is FORM else option for option in IMAGE)
        return (*image_options, *registration_of(self.name).options)

    def build(self, cfg: Any) -> torch.nn.Module:
        from mmdet.models import build_detector

        return build_without_weights(cfg, build_detector, 'backbone')

    def preprocess_rule(self, cfg: Any) -> PreprocessRule:
        key, pipeline = keyed_test_pipeline(cfg)
        with refused_by_name(cfg):
            return rule_from_pipeline(pipeline, key, is_users_step(pipeline[0]))

    @abc.abstractmethod
    def spec(self, model: torch.nn.Module, options: Options) -> GraphSpec:
        """Return the contract of the graph; UsageError: an option that does not go with the model."""

    def graphs(self, model: torch.nn.Module, options: Options) -> list[Graph]:
        """Return the one graph; its stages are made when they are needed."""
        spec = self.spec(model, options)
        spec = with_half_features(spec) if options.fp16_io else spec
        make = functools.partial(self.stages, model, options)
        return [Graph(options.form, module=None, spec=spec, make=make)]

    @abc.abstractmethod
    def stages(self, model: torch.nn.Module, options: Options) -> list[Stage]:
        """Return the modules that compute the graph one after the other, with parts of `model` itself."""

    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        """Return the feeds of prepared images of one size; the graph may take fewer.

        Default: `images` (B, 3, H, W) float32, and with `rescale` `scale_factor` (B, 4) float32, `w h w h`,
        input / original. Raises ShapeError for images that do not go together.
        """
        feeds = dict(images=np.stack([image.tensor for image in images]))
        if rescale:
            feeds['scale_factor'] = np.stack([image.scale_factor for image in images]).astype(np.float32)
        return feeds

    @abc.abstractmethod
    def reference(self, model: torch.nn.Module) -> ImageReference:
        """Return the user's own test path of the model."""


def picture_of(family: ImageFamily, model: torch.nn.Module, options: Options) -> TensorSpec:
    """Return the spec of the picture input."""
    first = family.spec(model, options).inputs[0]
    if first.axes[1] == 3:
        return first
    return family.spec(model, options.replace(form=family.forms[0])).inputs[0]


def traced_feeds(family: ImageFamily, images: Sequence[PreparedImage], batch: int) -> dict[str, np.ndarray]:
    """Return the feeds of a trace of `batch` pictures; {} without `images`: graphs have examples."""
    if not images:
        return {}
    return family.feeds([images[index % len(images)] for index in range(batch)], rescale=True)


def check_fed(family: ImageFamily, spec: GraphSpec, feeds: Mapping[str, np.ndarray], padded: bool) -> None:
    """Raise ConfigError for an input that `feeds` leaves out, so that every run would take its default.

    `padded`: the images have rows or columns of padding above or left of them, which `border` gives.
    """
    unfed = [one.name for one in spec.inputs if one.name not in feeds and (padded or one.name != 'border')]
    if unfed:
        name = type(family).__name__
        raise ConfigError(
            f'{name}.spec has the input {unfed[0]!r}, and {name}.feeds returns {", ".join(feeds)}; expected '
            'an array for each input of the spec'
        )


def batches(family: ImageFamily, images: Sequence[PreparedImage]) -> list[list[int]]:
    """Return lists of indices of images that one run may take: inputs without a batch axis are equal."""
    groups: dict[tuple[bytes, ...], list[int]] = {}
    for index, image in enumerate(images):
        arrays = family.feeds([image], rescale=True).values()
        shared = tuple(array.tobytes() for array in arrays if array.ndim == 1)
        groups.setdefault(shared, []).append(index)
    return list(groups.values())
