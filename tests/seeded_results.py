"""What a seeded one-stage detector finds in seeded pictures, by mmdet's own test path, and how calm it is."""

import dataclasses

import numpy as np
import torch

from projects.toydata.seeded import normalisation, seeded_picture

HEIGHT, WIDTH = 320, 448
SEEDS = (7, 8)


@dataclasses.dataclass(frozen=True)
class Found:
    """Detections of one picture: (n, 5) boxes with scores, and the number of classes among them."""

    rows: np.ndarray
    classes: int

    @property
    def scores(self):
        return self.rows[:, 4]


def metas(height, width):
    """Return what mmdet's test path is told about a picture that fills its input."""
    shape = (height, width, 3)
    return dict(
        img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape[:2], flip=False,
        scale_factor=np.ones(4, np.float32), border=np.array([0, height, 0, width]),
    )  # fmt: skip


def find(model, cfg, height=HEIGHT, width=WIDTH):
    """Return what a detector finds in two seeded pictures over its own threshold."""
    deviation, offset = normalisation(cfg)
    with torch.no_grad():
        pictures = [seeded_picture(seed, height, width) * deviation + offset for seed in SEEDS]
        results = [model.simple_test(picture, [metas(height, width)])[0] for picture in pictures]
    return [Found(np.concatenate(result), sum(len(rows) > 0 for rows in result)) for result in results]


def rounding(model, cfg, height=HEIGHT, width=WIDTH):
    """Return how far float32 is off float64 in the outputs of the head, of their largest value.

    The model is float64 afterwards.
    """
    deviation, offset = normalisation(cfg)
    picture = seeded_picture(SEEDS[0], height, width) * deviation + offset
    with torch.no_grad():
        single = tensors(model.bbox_head(model.extract_feat(picture)))
        double = tensors(model.double().bbox_head(model.extract_feat(picture.double())))
    pairs = zip(single, double, strict=True)
    return max(float((a.double() - b.double()).abs().max() / b.abs().max()) for a, b in pairs)


def tensors(values):
    return (
        [values] if isinstance(values, torch.Tensor) else [one for value in values for one in tensors(value)]
    )
