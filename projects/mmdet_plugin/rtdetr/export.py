"""RT-DETR: the contract of its graphs and the chain of modules that they are made of.

Source of the contract: lyuwenyu/RT-DETR 068dfde, rtdetr_pytorch/tools/export_onnx.py.

Glossary: B batch, C classes, Q queries, n detections, H, W network input in pixels.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.contract import options as choices
from mmdeploy_ext.contract.spec import DEFAULT_RTOL, ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.config import test_pipeline
from mmdeploy_ext.core.errors import ConfigError, ShapeError, UsageError
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.families.base import Claim, ImageFamily, register_family
from mmdeploy_ext.graph.passes.grid_sample import replace_grid_sample
from mmdeploy_ext.inputs.pipeline_rule import rule_from_pipeline
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.rtdetr import model as runtime
from projects.mmdet_plugin.rtdetr.detector import MAX_PER_IMG, STRIDE
from projects.mmdet_plugin.rtdetr.layers import RepVggBlock
from projects.mmdet_plugin.rtdetr.wrapper import Network, with_fixed_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.inputs.pictures import PreparedImage, PreprocessRule

GRID_SAMPLE_OPSETS = (16, 20)
"""GridSample exists from 16 on; the default stays below 20, whose GridSample TensorRT 10 gets wrong."""
RAW_NAMES = ('logits', 'boxes', 'tokens')
FULL_NAMES = ('labels', 'boxes', 'scores')
HEADS = ('pred_logits', 'pred_boxes')
SIZES = runtime.SIZES


class RtDetrFamily(ImageFamily):
    """The `RTDETR` detector of this plugin."""

    name = 'rtdetr'
    exports = 'RTDETR, queries without suppression (projects/mmdet_plugin/rtdetr/README.md)'
    near = ('DETR', 'DINO', 'Transformer', 'Query', 'SparseRCNN')
    task = 'bbox2d'
    forms = ('full', 'raw')
    own_options = (choices.FUSE, choices.GRID_SAMPLE, choices.DYNAMIC_BATCH)
    keep_fp32 = ('*.backbone.conv1*', '*.decoder*')  # measured in docs/half-precision.md

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`."""
        return Claim.DETECTOR if cfg.model.get('type') == 'RTDETR' else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: opset, sizes."""
        low, high = GRID_SAMPLE_OPSETS
        if not low <= options.opset <= high:
            raise UsageError(
                f'--opset-version {options.opset}: RT-DETR needs GridSample, which ONNX has since opset '
                f'{low}; expected {low} to {high}'
            )
        if options.height % STRIDE or options.width % STRIDE:
            raise UsageError(
                f'--shape {options.height} {options.width}: expected multiples of {STRIDE} pixels'
            )
        _check_queries(cfg, options)

    def spec(self, model: nn.Module, options: Options) -> GraphSpec:
        """See `ImageFamily.spec`."""
        batch = 'B' if options.dynamic or options.dynamic_batch else options.batch
        height, width = ('H', 'W') if options.dynamic else (options.height, options.width)
        images = TensorSpec(
            'images',
            'float32',
            (batch, 3, height, width),
            'RGB / 255, resized without keeping the ratio',
            smallest=STRIDE,
            multiple=STRIDE,
        )
        if options.form == 'raw':
            return GraphSpec('rtdetr/raw', (images,), _raw_outputs(model.decoder, batch))
        sizes = TensorSpec(
            SIZES,
            'int64',
            (batch, 2),
            'width and height of the original image',
            'pixel',
            positive=True,
        )
        return GraphSpec('rtdetr/full', (images, sizes), _full_outputs(model, batch))

    def takes(self, model: nn.Module, options: Options, height: int, width: int) -> bool:
        """See `ImageFamily.takes`: as many tokens as queries, or more."""
        enough = runtime.count_tokens(height, width) >= int(model.decoder.num_queries)
        return enough and super().takes(model, options, height, width)

    def stages(self, model: nn.Module, options: Options, fold: bool = True) -> list[Stage]:
        """See `ImageFamily.stages`: the network, and for `full` the post-processing after it."""
        network = fuse(model) if fold else model
        if fold and not options.fuse:
            separate_branches(network)
        if fold and options.simplify and not options.dynamic:
            with_fixed_size(network, options.height, options.width)
        passes = (replace_grid_sample,) if options.grid_sample == 'gather' else ()
        if options.form == 'raw':
            return [Stage('network', Network(network, True), ('images',), RAW_NAMES, passes=passes)]
        return [
            Stage('network', Network(network, False), ('images',), HEADS, passes=passes),
            Stage('postprocess', model.postprocess, (*HEADS, SIZES), FULL_NAMES, 'torchscript'),
        ]

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """See `Family.postprocess_facts`: what `runtime/rtdetr/model.py` reads."""
        return dict(
            max_per_img=model.max_per_img,
            num_queries=int(model.decoder.num_queries),
            num_classes=int(model.decoder.num_classes),
            orig_target_sizes='width, height',
            position_layout=model.encoder.position.layout,
        )

    def preprocess_rule(self, cfg: Any) -> PreprocessRule:
        """See `Family.preprocess_rule`.

        Raises:
            ConfigError: the pipeline keeps the ratio or pads, so that boxes would be relative to padding.
        """
        rule = rule_from_pipeline(test_pipeline(cfg))
        if rule.keep_ratio or rule.pad_size or rule.size_divisor > 1:
            raise ConfigError(
                f'{cfg.filename}: the test pipeline keeps the ratio or pads; RT-DETR takes whole images: '
                f'Resize(keep_ratio=False) and no Pad'
            )
        return rule

    def num_classes(self, model: nn.Module) -> int:
        """See `Family.num_classes`."""
        return int(model.decoder.num_classes)

    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        """See `ImageFamily.feeds`.

        Raises:
            ShapeError: boxes in pixels of the original are asked for, of an image that was padded.
        """
        return {'images': np.stack([image.tensor for image in images]), SIZES: _sizes(images, rescale)}

    def reference_tensors(
        self,
        model: nn.Module,
        feeds: Mapping[str, np.ndarray],
        form: str,
        tokens: torch.Tensor | None = None,
        **_: Any,
    ) -> dict[str, np.ndarray]:
        """See `ImageFamily.reference_tensors`; `tokens` (B, Q) are taken instead of the best when given."""
        with torch.no_grad():
            images = _to_model(model, feeds['images'])
            outputs = model.decoder(model.extract_feat(images), tokens)
        return {name: tensor.cpu().numpy() for name, tensor in zip(RAW_NAMES, outputs, strict=True)}

    def choose_as(
        self,
        model: nn.Module,
        feeds: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        reference: Mapping[str, np.ndarray],
        ties_rtol: float = DEFAULT_RTOL,
    ) -> dict[str, np.ndarray]:
        """See `ImageFamily.choose_as`: tokens that differ from the best ones by ties only are taken over.

        The same tokens in another order are the same rows in another order; where a tie at the cut makes
        another set of tokens, PyTorch runs with that set. Images without ties keep their reference.
        """
        chosen, best = outputs.get('tokens'), reference['tokens']
        result = {name: array.copy() for name, array in reference.items()}
        if chosen is None or chosen.shape != best.shape or chosen.dtype != np.int64:
            return result
        differs = (chosen != best).any(1)
        if differs.any():
            differs &= tied_selection(_token_scores(model, feeds['images']), best, chosen, ties_rtol)
        other_sets = differs & (np.sort(chosen) != np.sort(best)).any(1)
        if other_sets.any():
            tokens = _to_model(model, np.where(other_sets[:, None], chosen, best))
            rerun = self.reference_tensors(model, feeds, 'raw', tokens)
        for image in np.flatnonzero(differs):
            rows = np.argsort(best[image])[np.argsort(np.argsort(chosen[image]))]
            for name, array in result.items():
                array[image] = rerun[name][image] if other_sets[image] else array[image][rows]
        return result

    def reference_detections(
        self, model: nn.Module, images: Sequence[PreparedImage], rescale: bool
    ) -> list[Detections]:
        """See `ImageFamily.reference_detections`: the detector's own test path."""
        feeds = self.feeds(images, rescale)
        runtime.check_tokens(feeds['images'].shape, int(model.decoder.num_queries))
        with torch.no_grad():
            found = model.detect(_to_model(model, feeds['images']), _to_model(model, feeds[SIZES]))
        labels, boxes, scores = (tensor.cpu().numpy() for tensor in found)
        return [Detections(*image) for image in zip(boxes, scores, labels, strict=True)]

    @contextlib.contextmanager
    def longer_lists(self, model: nn.Module) -> Iterator[None]:
        """See `ImageFamily.longer_lists`: as long as there are pairs of query and class."""
        most, pairs = model.max_per_img, int(model.decoder.num_queries) * int(model.decoder.num_classes)
        model.postprocess.max_per_img = min(2 * most, pairs)
        try:
            yield
        finally:
            model.postprocess.max_per_img = most

    def detections(
        self, metadata: Metadata, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
    ) -> list[Detections]:
        """See `ImageFamily.detections`."""
        return runtime.detections(metadata, outputs, feeds)


def separate_branches(model: nn.Module) -> None:
    """Let the RepVGG blocks of a copy made by `fuse` run both branches again."""
    for module in model.modules():
        if isinstance(module, RepVggBlock):
            module.conv = None


def tied_selection(
    scores: np.ndarray, best: np.ndarray, chosen: np.ndarray, rtol: float = DEFAULT_RTOL
) -> np.ndarray:
    """Return (B,) bool: whether chosen tokens are the best ones, ties in any order.

    Args:
        scores: (B, N) of all tokens.
        best: (B, Q) the reference's tokens by descending score.
        chosen: (B, Q) of the engine on trial. At every rank its score has to be that of the reference, within
            the tolerance of tensors, and no token may be there twice.
        rtol: that tolerance, of the largest score.
    """
    tied = []
    for image, (wanted, got) in enumerate(zip(best, chosen, strict=True)):
        inside = bool(((got >= 0) & (got < scores.shape[1])).all())
        if not inside or len(set(got.tolist())) < len(got):
            tied.append(False)
            continue
        gaps = np.abs(scores[image][got] - scores[image][wanted])
        tied.append(bool((gaps <= rtol * np.abs(scores[image]).max()).all()))
    return np.asarray(tied)


def _token_scores(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Return (B, N): the largest class logit of every token."""
    decoder = model.decoder
    with torch.no_grad():
        maps = decoder.project(model.extract_feat(_to_model(model, images)))
        return decoder.tokens(maps)[1].amax(-1).cpu().numpy()


def _to_model(model: nn.Module, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements='W')).to(next(model.parameters()).device)


def _sizes(images: Sequence[PreparedImage], rescale: bool) -> np.ndarray:
    """Return (B, 2) int64 width, height that relative boxes are multiplied with."""
    if not rescale:
        return runtime.target_sizes([image.tensor.shape[1:] for image in images])
    for image in images:
        if tuple(image.img_shape) != image.tensor.shape[1:]:
            raise ShapeError(
                f'images: got an image of {image.img_shape[0]}x{image.img_shape[1]} padded to '
                f'{image.tensor.shape[1]}x{image.tensor.shape[2]}; RT-DETR takes whole images: resize to the '
                f'size of the graph (Resize img_scale)'
            )
    return runtime.target_sizes([image.ori_shape for image in images])


def _check_queries(cfg: Any, options: Options) -> None:
    """Refuse sizes whose maps have fewer tokens than there are queries."""
    decoder = cfg.model.decoder
    tokens = runtime.count_tokens(options.height, options.width)
    queries = decoder.get('num_queries', 300)
    if tokens < queries:
        raise UsageError(
            f'--shape {options.height} {options.width}: gives {tokens} tokens for num_queries={queries}; '
            f'choose a larger size'
        )
    pairs = queries * decoder.num_classes
    most = (cfg.model.get('test_cfg') or {}).get('max_per_img', MAX_PER_IMG)
    if most > pairs:
        raise ConfigError(
            f'{cfg.filename}: model.test_cfg.max_per_img={most}, more than {pairs} pairs of query and class'
        )


def _raw_outputs(decoder: nn.Module, batch: int | str) -> tuple[TensorSpec, ...]:
    queries, classes = int(decoder.num_queries), int(decoder.num_classes)
    return (
        TensorSpec('logits', 'float32', (batch, queries, classes), 'class logits per query', 'logit'),
        TensorSpec(
            'boxes',
            'float32',
            (batch, queries, 4),
            'cx cy w h relative to the input, 0..1',
            groups=(ColumnGroup('cxcy', (0, 1)), ColumnGroup('wh', (2, 3))),
        ),
        TensorSpec(
            'tokens',
            'int64',
            (batch, queries),
            'which token of the encoder a query was, by descending score; maps fine to coarse, row by row',
            groups=(ColumnGroup(rtol=0.0),),
        ),
    )


def _full_outputs(model: nn.Module, batch: int | str) -> tuple[TensorSpec, ...]:
    most = model.max_per_img
    return (
        TensorSpec('labels', 'int64', (batch, most), 'class indices', compare='detections'),
        TensorSpec(
            'boxes', 'float32', (batch, most, 4), 'x1 y1 x2 y2, not clipped', 'pixel', compare='detections'
        ),
        TensorSpec('scores', 'float32', (batch, most), '0..1, descending', compare='detections'),
    )


register_family(RtDetrFamily())
