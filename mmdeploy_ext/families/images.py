"""The base class of families of single-image models.

Terms of its methods:

- form: how much of the post-processing a graph has, an option of the export (`--postprocess`);
- stage: one of the modules whose chain is the graph: the first is the network, those behind it are the
  post-processing;
- feeds: the inputs of a graph by name, and what the runtime needs of the pictures besides.

Glossary: B batch, H, W network input in pixels.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.contract.metadata import Metadata
from mmdeploy_ext.contract.options import FORM, IMAGE, Option, Options
from mmdeploy_ext.contract.registry import options_of
from mmdeploy_ext.contract.spec import Graph, GraphSpec, Stage, TensorSpec, with_half_features
from mmdeploy_ext.core.config import keyed_test_pipeline, refused_by_name
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import Family
from mmdeploy_ext.models.building import build_without_weights
from mmdeploy_ext.preprocess.pictures import PreparedImage, PreprocessRule
from mmdeploy_ext.preprocess.pipeline_rule import rule_from_pipeline
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.runtime.detections import Detections, Instances

if TYPE_CHECKING:
    import torch


LAYERS = (
    'ShiftWindowMSA.forward', 'SpatialReductionAttention.forward', 'AdaptivePadding.forward',
    'Conv2dAdaptivePadding.forward', 'CornerPool.forward', 'BFP.forward',
)  # fmt: skip
"""Methods of layers that exports compute by themselves, some of them at any size alone."""


class ImageFamily(Family):
    """Export, references and post-processing of one family of single-image models.

    Attributes:
        forms: how much of the post-processing its graphs may contain.
        max_alone_share: largest share of the results of a proof that may lack a partner end to end, if the
            file's own tensors give the file's results one to one, see `tasks/matching.py`.
    """

    samples = 'images'
    forms: ClassVar[tuple[str, ...]] = ()
    max_alone_share: ClassVar[float] = 0.005
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
        """The options of all families of images, and those that the family was registered with.

        ConfigError: it has no `forms`.
        """
        if not self.forms:
            raise ConfigError(f"family {self.name!r} has no forms; expected one at least, such as ('raw',)")
        default = FORM.default if FORM.default in self.forms else self.forms[0]
        form = dataclasses.replace(FORM, choices=self.forms, default=default)
        image_options = tuple(form if option is FORM else option for option in IMAGE)
        return (*image_options, *options_of(self.name))

    def build(self, cfg: Any) -> torch.nn.Module:
        from mmdet.models import build_detector

        return build_without_weights(cfg, build_detector, 'backbone')

    def preprocess_rule(self, cfg: Any) -> PreprocessRule:
        key, pipeline = keyed_test_pipeline(cfg)
        with refused_by_name(cfg):
            return rule_from_pipeline(pipeline, key)

    @abc.abstractmethod
    def spec(self, model: torch.nn.Module, options: Options) -> GraphSpec:
        """Return the contract of the graph."""

    def graphs(self, model: torch.nn.Module, options: Options) -> list[Graph]:
        """Return a list of the one graph, whose stages are made when they are needed."""
        spec = self.spec(model, options)
        spec = with_half_features(spec) if options.fp16_io else spec
        make = functools.partial(self.stages, model, options)
        return [Graph(options.form, module=None, spec=spec, make=make)]

    def example(self, images: Sequence[PreparedImage], options: Options) -> dict[str, np.ndarray]:
        return self.feeds([images[index % len(images)] for index in range(options.batch)], rescale=True)

    def takes(self, model: torch.nn.Module, options: Options, height: int, width: int) -> bool:
        """Return whether inputs of this size, pixels, are large enough for a dynamic graph of these options.

        That their sides are multiples of what `picture` states is not checked here.
        """
        return min(height, width) >= self.picture(model, options).smallest

    def picture(self, model: torch.nn.Module, options: Options) -> TensorSpec:
        """Return the contract of the input of pictures.

        For a graph that takes features in place of pictures it is the contract of the graph that makes them.
        """
        return self.spec(model, options).inputs[0]

    @abc.abstractmethod
    def stages(self, model: torch.nn.Module, options: Options) -> list[Stage]:
        """Return the chain of modules whose composition is the graph. They run parts of the model itself."""

    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        """Batch prepared images of one size into graph inputs, and what the runtime needs of them besides.

        Here: `images` (B, 3, H, W) float32, and with `rescale` the `scale_factor` (B, 4) float32,
        `w h w h`, input / original.
        """
        feeds = dict(images=np.stack([image.tensor for image in images]))
        if rescale:
            feeds['scale_factor'] = np.stack([image.scale_factor for image in images]).astype(np.float32)
        return feeds

    def batches(self, images: Sequence[PreparedImage]) -> list[list[int]]:
        """Return lists of indices of the images that one run may take together; by default all."""
        return [list(range(len(images)))]

    def full_size(self, image: PreparedImage) -> tuple[int, int]:
        """Return the height and width, pixels, that a graph assumes if it is not fed those of an image.

        Here they are those of the network input, padding included.
        """
        return tuple(image.tensor.shape[1:])

    def reference_tensors(
        self, model: torch.nn.Module, feeds: Mapping[str, np.ndarray], form: str, **options: Any
    ) -> dict[str, np.ndarray]:
        """Run the unpatched upstream model; return name -> right output of a graph of this form.

        Outputs that are not compared by value may be missing. `options` are those of the file's export but
        the form. NotImplementedError: the family has no form that ends before the results, and so no such
        outputs.
        """
        raise NotImplementedError(f'{self.name}: has no tensors to compare in the form {form}')

    def inner_inputs(
        self, model: torch.nn.Module, feeds: Mapping[str, np.ndarray], form: str
    ) -> dict[str, np.ndarray]:
        """Return the inputs of a graph of this form that another graph computes, by the unpatched model.

        The result is name -> array, e.g. the features and proposals of a graph of regions; {} if there are
        none. `feeds` are those of the pictures, see `feeds`.
        """
        return {}

    def borders(self, model: torch.nn.Module) -> dict[str, Callable[[list[Any]], Mapping[str, Any]]]:
        """Return path of a method of the user's model -> function that names what its calls returned.

        The function takes what each call returned, and gives name of a file's tensor -> the tensor. A proof
        compares those that the file has. Rows that a top-k chose are left out: engines may have them in
        another order.
        """
        return {}

    def unjudged(self, model: torch.nn.Module) -> str:
        """Return which tensors of `substitutes` are not among `borders`, and why; '' if there are none."""
        return ''

    def substitutes(self, model: torch.nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return path of a method of the user's model -> what it returns by the tensors of a file.

        The paths and values are those of `proving.substitution.substituted`. `tensors` are the outputs of the
        file and the tensors at the borders of its stages, by name. {}: they cannot be put in.
        """
        return {}

    def ranking(self, model: torch.nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return what ranks the queries of the user's model as the file ranked them, as `substitutes` does.

        Rounding exchanges the ranks of nearly equal scores, which moves all results. The scores are among
        `borders`. {}: no scores rank queries.
        """
        return {}

    def expected_tensors(
        self,
        model: torch.nn.Module,
        feeds: Mapping[str, np.ndarray],
        tensors: Mapping[str, np.ndarray],
        form: str,
        **options: Any,
    ) -> dict[str, np.ndarray] | None:
        """Return the right outputs of a graph whose stages begin with the tensors of the file, by name.

        Of stages whose results jump where tensors round, such as the choice of a direction, each is judged by
        itself so. `tensors` are as of `substitutes`, the others as of `reference_tensors`, whose outputs are
        right if this is None.
        """
        return None

    def counts(self, model: torch.nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Return the most of what inner limits of a graph limit, of any image, by name of the limit.

        The names are those of the facts, of proposals with 'rpn.' before them; `tensors` are as of
        `substitutes`.
        """
        return {}

    def inner_tensors(
        self, model: torch.nn.Module, tensors: Mapping[str, np.ndarray]
    ) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """Return outputs of the user's modules for a file's own inputs of them, and the file's outputs.

        They are by the names of the file's tensors, which may be some rows of them. Nothing by default.
        """
        return {}, {}

    def inner_results(
        self, model: torch.nn.Module, tensors: Mapping[str, np.ndarray], images: Sequence[PreparedImage]
    ) -> list[tuple[Detections, Detections]]:
        """Return for each image boxes between stages, by the user's code and those of a file; or [].

        The user's code makes them of the tensors of the file before, such as proposals of its maps.
        """
        return []

    def in_order(self, outputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return the outputs of a graph with rows that a top-k chose in an order that scores do not decide.

        Here they stay as they are.
        """
        return outputs

    def candidate_bounds(
        self, model: torch.nn.Module, feeds: Mapping[str, np.ndarray], slack: float, **caps: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return output name -> smallest and largest right value (B,) of each output that counts candidates.

        A score that differs from the threshold by no more than `slack` may pass or not (proposals have no
        such threshold: there the limits of overlap and of sides may go either way). `caps` are the file's
        limits of candidates by name of their option, `max_candidates` and `max_proposals`.

        NotImplementedError: the family has no such options.
        """
        raise NotImplementedError(f'{self.name}: has no files with a limit of candidates')

    def results_left_out(self, options: Mapping[str, Any]) -> str:
        """Return why a proof does not compare the results of a file with these options; '' if it does."""
        return ''

    @abc.abstractmethod
    def reference_detections(
        self, model: torch.nn.Module, images: Sequence[PreparedImage], rescale: bool
    ) -> list[Detections] | list[Instances]:
        """Run upstream's own test path and return its detections per image.

        They are of the class that `detections` returns. With `rescale` boxes in a picture are in pixels of
        the original, otherwise of the network input, without the padding above and left of the image if the
        graph takes it as `border`. Boxes in 3D are in metres in either case; of them `rescale` decides the
        camera to draw them with. For the size of masks see the family's `feeds`.
        """

    def results(
        self,
        model: torch.nn.Module,
        metadata: Metadata,
        outputs: Mapping[str, np.ndarray],
        feeds: Mapping[str, np.ndarray],
        images: Sequence[PreparedImage],
        rescale: bool,
    ) -> list[Detections] | list[Instances]:
        """Return the results that a proof compares; here those of the family's runtime, see `detections`.

        For a graph that no runtime continues, such as one of proposals, a family lets upstream's code do it.
        `outputs` are those of the engine under test, `images` those that the feeds were made of; for
        `rescale`, with which the feeds were made, see `reference_detections`.
        """
        return self.detections(metadata, outputs, feeds)

    def result(self, detections: Any, num_classes: int) -> Any:
        """Return what the detector's own test path returns for an image, as its data set evaluates it.

        `detections` are the results of the image, of the class that `detections` of the family returns. For
        `Detections` it is a list of (n, 5) per class, for `Instances` a pair of that and the masks per class.
        """
        return detections.to_mmdet_result(num_classes)

    def detections(
        self, metadata: Metadata, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
    ) -> list[Detections] | list[Instances]:
        """Turn outputs of a graph of any form into detections as the family's runtime does, without torch.

        `outputs` and `feeds`, its inputs, are by name and of one batch; `metadata` are the file's. What the
        runtime raises is raised as it is.
        """
        return results_of(self.name, metadata, outputs, feeds)
