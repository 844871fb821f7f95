"""A detector for mmdet's test loop whose network is a backend: PyTorch or an ONNX engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from mmdeploy_ext.core.dump import save_dump
from mmdeploy_ext.core.errors import ConfigError, ShapeError
from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.core.taps import collect_taps
from mmdeploy_ext.inputs.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.draw import draw_detections, draw_instances, encode_jpeg, encode_png

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.families.base import ImageFamily


@dataclasses.dataclass
class DumpOptions:
    """What the `_pth` configs write.

    Attributes:
        folder: one sub-folder per sample is made in it.
        facts: kept in every manifest.
        samples: how many samples of the data set are written.
        tensors: names to write; None means all.
        rank: of this process.
        world_size: number of processes; sample i of rank r is i * world_size + r.
    """

    folder: Path
    facts: dict[str, Any]
    samples: int = 4
    tensors: Sequence[str] | None = None
    rank: int = 0
    world_size: int = 1


class BackendDetector(nn.Module):
    """What mmdet's test loop calls: images and img_metas in, mmdet results out."""

    def __init__(
        self, backend: Backend, family: ImageFamily, metadata: Metadata, dump: DumpOptions | None = None
    ) -> None:
        """Keep the parts.

        Args:
            backend: an active backend.
            family: makes feeds, turns outputs into detections.
            metadata: of the graph: form, spec, post-processing facts, classes.
            dump: what to write while it runs.
        """
        super().__init__()
        self.backend = backend
        self.family = family
        self.metadata = metadata
        self.dump = dump
        self.CLASSES = metadata.classes
        self._seen = 0

    def forward(
        self,
        img: Sequence[torch.Tensor],
        img_metas: Sequence[Sequence[dict[str, Any]]],
        return_loss: bool = False,
        rescale: bool = True,
        **_: object,
    ) -> list[Any]:
        """Run one batch.

        Args:
            img: one (B, 3, H, W) tensor per test-time augmentation; only one is taken.
            img_metas: the same nesting.
            return_loss: has to be False.
            rescale: give boxes in pixels of the original image.

        Returns:
            Per image mmdet's result, see `to_mmdet_result`.

        Raises:
            ShapeError: test-time augmentation, or a training call.
        """
        if return_loss or len(img) != 1:
            raise ShapeError(
                f'got return_loss={return_loss} and {len(img)} augmentations; an exported model takes one '
                f'view per image (flip=False, one img_scale)'
            )
        images = [
            _prepared(tensor.cpu().numpy(), meta) for tensor, meta in zip(img[0], img_metas[0], strict=True)
        ]
        num_classes = len(self.metadata.classes)
        results: list[Any] = [None] * len(images)
        for group in self.family.batches(images):
            found = self._detect([images[index] for index in group], rescale)
            for index, one in zip(group, found, strict=True):
                results[index] = to_mmdet_result(one, num_classes)
        return results

    def show_result(
        self,
        img: np.ndarray,
        result: Sequence[np.ndarray] | tuple[Sequence[np.ndarray], Sequence[Sequence[np.ndarray]]],
        out_file: str | None = None,
        score_thr: float = 0.3,
        **_: object,
    ) -> np.ndarray:
        """Draw one result, as mmdet's test loop asks for with `--show-dir`.

        Args:
            img: (h, w, 3) BGR picture of the original size.
            result: of mmdet, see `to_mmdet_result`.
            out_file: PNG or JPEG to write.
            score_thr: drawn from this score on.
        """
        found = from_mmdet_result(result, img.shape[:2])
        draw = draw_instances if isinstance(found, Instances) else draw_detections
        picture = draw(img, found, self.metadata.classes, score_thr)
        if out_file:
            with atomic_path(out_file) as temporary:
                encode = encode_png if out_file.lower().endswith('.png') else encode_jpeg
                temporary.write_bytes(encode(picture))
        return picture

    def _detect(self, images: list[PreparedImage], rescale: bool) -> list[Detections] | list[Instances]:
        images = [self._fit(image) for image in images]
        feeds = self.family.feeds(images, rescale)
        network_feeds = {name: feeds[name] for name in self.backend.spec.input_names if name in feeds}
        with collect_taps() as taps:
            outputs = self.backend.infer(network_feeds)
        self._write(feeds, outputs, taps)
        return self.family.detections(self.metadata, outputs, feeds)

    def _fit(self, image: PreparedImage) -> PreparedImage:
        """Pad an image to the size of a fixed graph; one that is larger is refused by the spec."""
        axes = self.backend.spec.inputs[0].axes
        if not all(isinstance(axis, int) for axis in axes[2:]):
            return image
        padding = [
            (0, max(axis - size, 0)) for axis, size in zip(axes[2:], image.tensor.shape[1:], strict=True)
        ]
        return dataclasses.replace(image, tensor=np.pad(image.tensor, [(0, 0), *padding]))

    def _write(
        self,
        feeds: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        taps: Mapping[str, torch.Tensor],
    ) -> None:
        if self.dump is None:
            return
        batch = len(feeds[self.backend.spec.input_names[0]])
        tensors = {**feeds, **{name: tensor.cpu().numpy() for name, tensor in taps.items()}, **outputs}
        if self.dump.tensors is not None:
            unknown = sorted(set(self.dump.tensors) - tensors.keys())
            if unknown:
                raise ConfigError(
                    f'backend_config.dump.tensors names {unknown}, which this graph does not have; there are '
                    f'{sorted(tensors)}'
                )
            tensors = {name: array for name, array in tensors.items() if name in self.dump.tensors}
        meanings = {
            tensor.name: tensor.meaning
            for tensor in (*self.metadata.spec.inputs, *self.metadata.spec.outputs)
        }
        # inputs of one axis are of the whole batch (`ori_shape`)
        whole = {tensor.name for tensor in self.metadata.spec.inputs if len(tensor.axes) == 1}
        for index in range(batch):
            sample = self._seen * self.dump.world_size + self.dump.rank
            self._seen += 1
            if sample < self.dump.samples:
                save_dump(
                    self.dump.folder / f'{sample:06d}',
                    {
                        name: array if name in whole else array[index : index + 1]
                        for name, array in tensors.items()
                    },
                    self.dump.facts,
                    meanings,
                )


def _prepared(tensor: np.ndarray, meta: Mapping[str, Any]) -> PreparedImage:
    """Return what mmdet's pipeline made, in our terms."""
    scale = np.asarray(meta.get('scale_factor', 1.0), np.float32)
    scale = np.broadcast_to(scale, (4,)).copy()
    return PreparedImage(
        tensor=np.ascontiguousarray(tensor),
        img_shape=tuple(meta['img_shape'][:2]),
        scale_factor=scale,
        ori_shape=tuple(meta['ori_shape'][:2]),
    )


def to_mmdet_result(found: Detections | Instances, num_classes: int) -> Any:
    """Return mmdet's result of one image.

    Returns:
        Per class (n, 5) float32 x1 y1 x2 y2 score; for instances a pair: these, with boxes of zeros as mmdet
        has them where a model gives none, and per class a list of masks (h, w) bool.
    """
    boxless = isinstance(found, Instances)
    boxes = np.zeros((len(found), 4), np.float32) if boxless else found.bboxes_xyxy
    rows = np.concatenate([boxes, found.scores[:, None]], axis=1).astype(np.float32)
    per_class = [rows[found.labels == label] for label in range(num_classes)]
    if not boxless:
        return per_class
    return per_class, [list(found.masks[found.labels == label]) for label in range(num_classes)]


def from_mmdet_result(result: Any, shape: Sequence[int]) -> Detections | Instances:
    """Turn mmdet's result of one image back; `shape` is h, w of the image."""
    per_class = result[0] if isinstance(result, tuple) else result
    rows = np.concatenate(per_class)
    labels = np.repeat(np.arange(len(per_class)), [len(boxes) for boxes in per_class])
    if not isinstance(result, tuple):
        return Detections(rows[:, :4], rows[:, 4], labels)
    masks = [mask for masks in result[1] for mask in masks]
    stack = np.asarray(masks, bool) if masks else np.zeros((0, *shape), bool)
    return Instances(stack, rows[:, 4], labels)
