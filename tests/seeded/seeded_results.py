"""What a seeded one-stage detector finds in seeded pictures, by mmdet's own test path, and how calm it is."""

import contextlib
import dataclasses

import numpy as np
import torch

from dev.seeded.weights import normalised_photograph, seeded_picture

ROUNDING = 2e-7
"""Relative change of each output of a layer: up to three units in the last place of float32."""
HEIGHT, WIDTH = 320, 448
SEEDS = (7, 8)
CHANGES = (0, ROUNDING), (0, -ROUNDING), (1, ROUNDING)
"""Seeds and sizes of the changes of layers' outputs."""
CALM = 1.2e-5
"""Bar of `amplified`.

Of the 51 combinations of parts in mmdet's one-stage configs the largest is 1.09e-5 (Libra RetinaNet), then
7.7e-6 (ATSS R101). Before, float32 on the CPU at hand was held to 2e-5 of float64 (ATSSHead: 5e-5), which is
1.8 times this figure (median; 0.8 to 3.1), and was 2.2e-5 for Libra RetinaNet on one make of CPU.
"""


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
    deviation, offset = normalised_photograph(cfg)
    with torch.no_grad():
        pictures = [seeded_picture(seed, height, width) * deviation + offset for seed in SEEDS]
        results = [model.simple_test(picture, [metas(height, width)])[0] for picture in pictures]
    return [Found(np.concatenate(result), sum(len(rows) > 0 for rows in result)) for result in results]


@contextlib.contextmanager
def other_layer_rounding(model, seed, size):
    """Change outputs of convolutions and linear layers by up to `size` of themselves, seeded by `seed`."""
    generator = torch.Generator().manual_seed(seed)

    def change(module, inputs, output):
        noise = torch.rand(output.shape, generator=generator).mul_(2 * size).sub_(size)
        return output + output * noise.to(output)

    with contextlib.ExitStack() as hooks:
        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                hooks.enter_context(layer.register_forward_hook(change))
        yield


def amplified(model, cfg, height=HEIGHT, width=WIDTH):
    """Return how far the head's outputs move, of their largest value, where layers round otherwise.

    In float64, with changes of up to `ROUNDING` of each layer's output: the same on every CPU. The
    model is float64 afterwards. Sigmoids keep their rounding: what theirs does to a score follows from the
    formula of a head, not from weights. TOOD's scores are roots of a product of two of them, so that 1.5e-7
    on a score of 2e-6 is 7.7e-5 of the largest root.
    """
    deviation, offset = normalised_photograph(cfg)
    picture = (seeded_picture(SEEDS[0], height, width) * deviation + offset).double()
    model.double()

    def run():
        return tensors(model.bbox_head(model.extract_feat(picture)))

    with torch.no_grad():
        still = run()
        pairs = []
        for seed, size in CHANGES:
            with other_layer_rounding(model, seed, size):
                pairs += zip(run(), still, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def tensors(values):
    return (
        [values] if isinstance(values, torch.Tensor) else [one for value in values for one in tensors(value)]
    )
