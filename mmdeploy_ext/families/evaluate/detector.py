"""Networks of the data-set loop: mmdet's detectors, images on a backend, frames on a stepper.

B images of a batch, H, W network input, h, w original image.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.base.errors import ShapeError
from mmdeploy_ext.base.taps import collect_taps
from mmdeploy_ext.families.evaluate.loop import Network
from mmdeploy_ext.families.images import batches
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.runtime.draw import draw_results, write_picture
from mmdeploy_ext.runtime.preprocess.cam2img import camera_key, square_matrix
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage, warp_about_middle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn
    from torch.utils.data import Dataset

    from mmdeploy_ext.base.dump import DumpWriter
    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.families.images import ImageFamily
    from mmdeploy_ext.families.reference import ImageReference
    from mmdeploy_ext.families.sequence import SequenceFamily
    from mmdeploy_ext.runtime.detections import Scored
    from mmdeploy_ext.runtime.frames import Stepper
    from mmdeploy_ext.spec.metadata import Metadata


@dataclasses.dataclass(eq=False)
class BackendDetector(Network):
    """An image detector on a backend: stages in PyTorch, or a file on an engine."""

    backend: Backend
    family: ImageFamily
    metadata: Metadata
    dump: DumpWriter | None = None
    show: Show | None = None

    def run(self, data: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
        """Return mmdet's result of each image, in pixels of the original.

        `data` has `img` (one (B, 3, H, W) tensor) and `img_metas`, perhaps `proposals`.
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
        """Views (one (B, 3, H, W) tensor), metas and prepared images of a batch."""
        from mmcv.parallel import scatter_kwargs

        _, (data,) = scatter_kwargs((), dict(data), [-1])
        if isinstance(data['img'], torch.Tensor):  # of a test pipeline without augmentation
            data = {name: [value] for name, value in data.items()}
        views, metas = data['img'], data['img_metas'][0]
        if len(views) != 1:
            raise ShapeError(
                f'got {len(views)} augmentations; an exported model supports one view per image (flip=False, '
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
        """Zero-pad right and below to the size of a fixed graph; larger sides stay."""
        spec = self.backend.spec.inputs[0]
        sides = [spec.axes[place] for place in spec.sides]
        if not all(isinstance(side, int) for side in sides):
            return image
        padding = [(0, 0)]
        for axis, size in zip(sides, image.tensor.shape[1:], strict=True):
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
    """The PyTorch image model by the test path of proofs; `stages` run for dumped batches only."""

    reference: ImageReference
    stages: BackendDetector
    show: Show | None = None

    def run(self, data: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
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
        dump: writes tensors, with `model`; or None.
        model: PyTorch model with taps, see `base/taps.py`.
        keep_memory: False empties the memory before each frame.
    """

    one_by_one = True
    stepper: Stepper
    family: SequenceFamily
    dump: DumpWriter | None = None
    model: nn.Module | None = None
    keep_memory: bool = True

    def start(self, dataset: Dataset) -> list[str] | None:
        self.stepper.reset()
        return self.family.scenes(dataset)

    def run(self, data: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
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
    """Writes pictures of detections; `folder` keeps the paths of the data set below it."""

    folder: Path
    family: str
    classes: Sequence[str]
    score_thr: float = 0.3

    def write(self, image: torch.Tensor, meta: Mapping[str, Any], detections: Scored) -> None:
        """Draw detections, in pixels of the original, on the normalised input (3, H, W)."""
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
    top, _, left, _ = meta.get('border', (0, 0, 0, 0))
    return int(top), int(left)
