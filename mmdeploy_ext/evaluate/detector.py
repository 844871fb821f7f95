"""The networks of the data-set loop: mmdet's own detectors, images on a backend, frames on a stepper.

A backend is a model on an engine that runs batches of images; a stepper one that runs frame by frame and
keeps its memory, if it has one.

Glossary: B images of a batch, H, W network input, h, w original image, n detections of a class.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.core.taps import collect_taps
from mmdeploy_ext.evaluate.loop import Network, scene_tokens
from mmdeploy_ext.families.images import batches
from mmdeploy_ext.preprocess.cam2img import camera_key, square_matrix
from mmdeploy_ext.preprocess.pictures import PreparedImage, warp_about_middle
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.runtime.draw import draw_results, write_picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn
    from torch.utils.data import Dataset

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.core.dump import DumpWriter
    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.families.images import ImageFamily
    from mmdeploy_ext.families.reference import ImageReference
    from mmdeploy_ext.families.sequence import SequenceFamily
    from mmdeploy_ext.runtime.detections import Scored
    from mmdeploy_ext.runtime.frames import Stepper


class PublishedDetector(Network):
    """mmdet's detector, which the caller put into evaluation mode, called as mmdet's test loop calls it."""

    def __init__(self, model: nn.Module) -> None:
        from mmcv.parallel import MMDataParallel

        device = next(model.parameters()).device
        ids = [device.index or 0] if device.type == 'cuda' else [-1]
        self.model = MMDataParallel(model, device_ids=ids)
        if device.type == 'cpu':
            self.model.device_ids = []

    def run(self, data: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
        """Return the results of a batch of the data loader; `indices` are not used."""
        with torch.no_grad():
            return self.model(return_loss=False, rescale=True, **data)


@dataclasses.dataclass(eq=False)
class BackendDetector(Network):
    """A detector of images whose network is a backend: the stages in PyTorch, or a file on an engine.

    Attributes:
        backend: an active backend.
        family: makes feeds, turns outputs into detections.
        metadata: metadata of the graph: form, spec, post-processing facts, classes.
        dump: writes tensors while it runs; None writes none.
        show: draws detections while it runs; None draws none.
    """

    backend: Backend
    family: ImageFamily
    metadata: Metadata
    dump: DumpWriter | None = None
    show: Show | None = None

    def run(self, data: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
        """Run one batch; return the result of each image as mmdet's detectors give it.

        That is in pixels of the original image. `data` has `img`, a (B, 3, H, W) tensor per test-time
        augmentation, and `img_metas`, or the tensor and metas themselves, and perhaps `proposals`; `indices`
        are those of the samples, for dumps.

        Raises:
            ShapeError: test-time augmentation, or the backend does not take the images.
        """
        views, metas, images = self.prepared(data)
        detections: dict[int, Scored] = {}
        for group in batches(self.family, images):
            group_indices = [indices[position] for position in group]
            feeds = self.family.feeds([self.fit(images[position]) for position in group], rescale=True)
            inputs = {name: feeds[name] for name in self.backend.spec.input_names if name in feeds}
            with collect_taps() as taps:
                outputs = self.backend.infer(inputs)
            if self.dump is not None:
                inner = {name: tensor.cpu().numpy() for name, tensor in taps.items()}
                self._write(group_indices, {**feeds, **inner, **outputs})
            results = results_of(self.metadata.family, self.metadata, outputs, feeds)
            detections |= zip(group, results, strict=True)
        if self.show:
            for position, meta in enumerate(metas):
                self.show.write(views[0][position], meta, detections[position])
        classes = len(self.metadata.classes)
        return [detections[position].to_mmdet_result(classes) for position in range(len(images))]

    def prepared(
        self, data: Mapping[str, Any]
    ) -> tuple[Sequence[torch.Tensor], Sequence[Mapping[str, Any]], list[PreparedImage]]:
        """Return the views of a batch, the metas of its images, and these as the family takes them.

        The views are a list of one tensor (B, 3, H, W). `data` is that of `run`. ShapeError: test-time
        augmentation.
        """
        from mmcv.parallel import scatter_kwargs

        _, (data,) = scatter_kwargs((), dict(data), [-1])
        if isinstance(data['img'], torch.Tensor):  # of a test pipeline without augmentation
            data = {name: [value] for name, value in data.items()}
        views, metas = data['img'], data['img_metas'][0]
        if len(views) != 1:
            raise ShapeError(
                f'got {len(views)} augmentations; an exported model takes one view per image (flip=False, '
                f'one img_scale)'
            )
        proposals = data.get('proposals', [[None] * len(metas)])[0]
        camera = camera_key(self.backend.spec.input_names)
        images = [
            _prepared(tensor.cpu().numpy(), meta, boxes, camera)
            for tensor, meta, boxes in zip(views[0], metas, proposals, strict=True)
        ]
        return views, metas, images

    def fit(self, image: PreparedImage) -> PreparedImage:
        """Return an image padded with zeros, to the right and below, to the size of a fixed graph.

        It is the image itself for a graph whose height or width is open. A side that is larger stays: the
        engine refuses it.
        """
        axes = self.backend.spec.inputs[0].axes
        if not all(isinstance(axis, int) for axis in axes[2:]):
            return image
        padding = [(0, 0)]
        for axis, size in zip(axes[2:], image.tensor.shape[1:], strict=True):
            padding.append((0, max(axis - size, 0)))
        return dataclasses.replace(image, tensor=np.pad(image.tensor, padding))

    def _write(self, indices: Sequence[int], tensors: Mapping[str, np.ndarray]) -> None:
        spec = self.metadata.spec
        meanings = {tensor.name: tensor.meaning for tensor in (*spec.inputs, *spec.outputs)}
        # inputs of one axis belong to all images of the batch (`ori_shape`)
        shared = {tensor.name for tensor in spec.inputs if len(tensor.axes) == 1}
        for position, index in enumerate(indices):
            if self.dump.wants(index):
                rows = slice(position, position + 1)
                arrays = {name: array if name in shared else array[rows] for name, array in tensors.items()}
                self.dump.write(index, arrays, meanings=meanings)


@dataclasses.dataclass(eq=False)
class TorchDetector(Network):
    """The PyTorch model of images, by the test path with which proofs compare, whatever an export replaces.

    Attributes:
        reference: the model in evaluation mode, as its family runs it.
        stages: the stages of an export in PyTorch, which run only for batches with a sample that is dumped.
        show: draws detections while it runs; None draws none.
    """

    reference: ImageReference
    stages: BackendDetector
    show: Show | None = None

    def run(self, data: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
        """Return the model's results of a batch, see `BackendDetector.run`.

        Images are padded to the size of a fixed graph, as they are for its file.
        """
        stages = self.stages
        views, metas, images = stages.prepared(data)
        if stages.dump is not None and any(map(stages.dump.wants, indices)):
            stages.run(data, indices)
        fitted = [
            dataclasses.replace(stages.fit(image), collected=meta)
            for image, meta in zip(images, metas, strict=True)
        ]
        detections = self.reference.results(fitted, rescale=True)
        if self.show:
            for view, meta, of_image in zip(views[0], metas, detections, strict=True):
                self.show.write(view, meta, of_image)
        return [of_image.to_mmdet_result(len(stages.metadata.classes)) for of_image in detections]


@dataclasses.dataclass(eq=False)
class FrameDetector(Network):
    """A model of frames on any engine.

    Attributes:
        stepper: the model on an engine.
        family: makes frames of samples, and results of detections.
        dump: writes tensors while it runs; needs `model`. None writes none.
        model: the PyTorch model whose taps (named intermediate tensors, see `core/taps.py`) are written; None
            without `dump`.
        keep_memory: False empties the memory before every frame.
    """

    one_by_one = True
    stepper: Stepper
    family: SequenceFamily
    dump: DumpWriter | None = None
    model: nn.Module | None = None
    keep_memory: bool = True

    def start(self, dataset: Dataset) -> list[str] | None:
        """Reset the memory; return the scene of every sample, or None for a model without a memory.

        DataError: see `scene_tokens`.
        """
        self.stepper.reset()
        return scene_tokens(dataset) if self.family.memory else None

    def run(self, data: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
        """Run one frame, `data` of the data loader at the index of `indices`; return a list of its result."""
        (index,) = indices
        frame = self.family.data.frame(data)
        if not self.keep_memory:
            self.stepper.reset()
        if self.dump is None or not self.dump.wants(index):
            return [self.family.result(self.stepper.step(frame).detections)]
        with collect_taps() as taps:
            step = self.stepper.step(frame)
        facts = dict(frame=frame.name, scene_token=frame.scene_token, timestamp_s=frame.timestamp_s)
        tensors = self.family.data.dump_tensors(self.model, taps)
        self.dump.write(index, tensors, facts, suffixes=self.family.data.dump_suffixes)
        return [self.family.result(step.detections)]


@dataclasses.dataclass(frozen=True)
class Show:
    """Pictures of the detections of images.

    Attributes:
        folder: folder of the pictures, one per image with the path of its file in the data set, below it.
        family: name of the family, which may draw its results by itself.
        classes: names by label.
        score_thr: smallest score of a detection that is drawn.
    """

    folder: Path
    family: str
    classes: Sequence[str]
    score_thr: float = 0.3

    def write(self, image: torch.Tensor, meta: Mapping[str, Any], detections: Scored) -> None:
        """Draw detections, in pixels of the original image, on the network's input in that size.

        Args:
            image: (3, H, W), normalised.
            meta: mmdet's `img_metas` of the image.
            detections: results of that image with scores, boxes or masks.

        Raises:
            ImageError: the picture cannot be encoded.
            Mm2OnnxError: its file cannot be written.
        """
        from mmcv.image import imresize, tensor2imgs

        (picture,) = tensor2imgs(image[None], **meta['img_norm_cfg'])
        height, width = meta['img_shape'][:2]
        top, left = _border(meta)
        picture = imresize(picture[top : top + height, left : left + width], meta['ori_shape'][1::-1])
        picture = draw_results(self.family, picture, detections, self.classes, self.score_thr)
        name = Path(meta['ori_filename'])  # an absolute one would be the path of the original itself
        parts = [part for part in name.parts if part not in (name.anchor, '..')]
        write_picture(self.folder.joinpath(*parts), picture)


def _prepared(
    tensor: np.ndarray,
    meta: Mapping[str, Any],
    proposals: torch.Tensor | None = None,
    camera: str = '',
) -> PreparedImage:
    """Return the image of mmdet's pipeline, with the facts of its meta.

    `camera` is the entry of the meta that the graph takes, since a data set may have two kinds of cameras;
    '' takes the one that is there.
    """
    scale = np.asarray(meta.get('scale_factor', 1.0), np.float32)
    prepared = PreparedImage(
        tensor=np.ascontiguousarray(tensor),
        img_shape=tuple(meta['img_shape'][:2]),
        scale_factor=np.broadcast_to(scale, (4,)).copy(),
        ori_shape=tuple(meta['ori_shape'][:2]),
        border=_border(meta),
        proposals=None if proposals is None else proposals.cpu().numpy(),
    )
    camera = camera or camera_key(meta)
    if camera not in meta:
        return prepared
    if 'trans_mat' in meta:  # of AffineResize, which goes on to the maps of the network
        shape, new_shape = prepared.ori_shape, prepared.img_shape
        prepared = dataclasses.replace(prepared, warp=warp_about_middle(shape, new_shape))
    cam2img = square_matrix(prepared.to_input) @ square_matrix(meta[camera])
    return dataclasses.replace(prepared, cam2img=cam2img)


def _border(meta: Mapping[str, Any]) -> tuple[int, int]:
    """Return rows above and columns left of the content; mmdet has top, bottom, left, right."""
    top, _, left, _ = meta.get('border', (0, 0, 0, 0))
    return int(top), int(left)
