"""Contracts and stages that the graphs of one-stage detectors share, whatever their boxes are.

Glossary: B batch, a priors of a cell, A priors of all levels, H, W network input in pixels, h, w size of a
level's maps.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import Stage, TensorSpec
from mmdeploy_ext.core.taps import tap

FULL_NAMES = ('dets', 'labels', 'candidates')
"""Outputs of the `full` form; the last with `--max-candidates` alone."""


class RawNetwork(nn.Module):
    """The layers of the upstream detector; parameters keep their names below `model.`."""

    def __init__(
        self,
        model: nn.Module,
        names: tuple[str, ...],
        outputs: Callable[[nn.Module, torch.Tensor], Sequence[torch.Tensor]],
    ) -> None:
        """Keep the detector, and `outputs`, which runs it on images and returns the tensors `names`."""
        super().__init__()
        self.model, self.names, self.outputs = model, names, outputs

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of the head (B, a*columns, h, w) of normalised images (B, 3, H, W) float32."""
        outputs = self.outputs(self.model, image)
        return tuple(tap(name, tensor) for name, tensor in zip(self.names, outputs, strict=True))


def form_stages(
    network: nn.Module,
    names: tuple[str, ...],
    options: Options,
    *,
    decode: Callable[[], tuple[nn.Module, tuple[str, ...]]],
    full: Callable[[], nn.Module],
    extra_inputs: tuple[str, ...] = (),
) -> list[Stage]:
    """Return the network, and what the form of the options adds to it.

    Args:
        network: takes images, and returns the tensors `names`.
        names: of the outputs of the network, which the form takes.
        options: of the export.
        decode: makes the module of the form `decode`, and the names of its outputs.
        full: makes the module of the form `full`, whose outputs are `FULL_NAMES`.
        extra_inputs: names of the inputs of `full` between `scale_factor` and the outputs of the network.
    """
    chain = [Stage('network', network, ('input',), names)]
    if options.form == 'decode':
        module, outputs = decode()
        chain.append(Stage('decode', module, names, outputs))
    elif options.form == 'full':
        inputs = ('input', 'img_shape', 'scale_factor', *extra_inputs, *names)
        outputs = FULL_NAMES if options.max_candidates else FULL_NAMES[:2]
        chain.append(Stage('postprocess', full(), inputs, outputs))
    return chain


def raw_outputs(
    outputs: Sequence[tuple[str, int]],
    meanings: Mapping[str, tuple[str, str]],
    priors_per_cell: Sequence[int],
    map_sizes: Sequence[tuple[int, int]],
    options: Options,
) -> tuple[TensorSpec, ...]:
    """Return the contracts of the form `raw`, output by output, then level by level.

    Args:
        outputs: name and columns per prior of each output of the head.
        meanings: name of an output -> its meaning and unit.
        priors_per_cell: number of priors of a cell, of each level.
        map_sizes: (h, w) of each level; not read for a file of any size.
        options: of the export.
    """
    batch, specs = 'B' if options.dynamic else options.batch, []
    for name, columns in outputs:
        meaning, unit = meanings[name]
        for level, count in enumerate(priors_per_cell):
            size = (f'h{level}', f'w{level}') if options.dynamic else map_sizes[level]
            axes = (batch, columns * count, *size)
            specs.append(TensorSpec(f'{name}_{level}', 'float32', axes, f'{meaning}, level {level}', unit))
    return tuple(specs)


def prior_axes(
    priors_per_cell: Sequence[int], map_sizes: Sequence[tuple[int, int]], options: Options
) -> tuple[int | str, int | str]:
    """Return the sizes of the axes of images and of priors of the form `decode`, B and A if they are dynamic.

    For the arguments see `raw_outputs`.
    """
    if options.dynamic:
        return 'B', 'A'
    levels = zip(map_sizes, priors_per_cell, strict=True)
    return options.batch, sum(height * width * count for (height, width), count in levels)
