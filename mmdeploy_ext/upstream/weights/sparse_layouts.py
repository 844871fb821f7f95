"""Kernel layouts of sparse convolutions, recognised by shape and converted. Uses torch.

    spconv1        (k0, k1, k2, I, O)   spconv 1.x and mmcv.ops
    spconv2        (O, k0, k1, k2, I)   spconv 2.x
    spconv2-rskc   (k0, k1, k2, O, I)   spconv 2.0 and 2.1 with the algorithm Native

Kernels are not mirrored. A 1x1x1 kernel's memory is an (I, O) matrix in all libraries, so it is never
permuted (spconv issues 556 and 605).
"""

import dataclasses
from collections.abc import Iterable, Mapping

import torch

from mmdeploy_ext.base.errors import CheckpointError, UsageError

LAYOUTS = ('spconv1', 'spconv2', 'spconv2-rskc')
CHOICES = ('auto', *LAYOUTS)
LIBRARIES = {'spconv': 'spconv2', 'mmcv': 'spconv1'}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The weight of a sparse convolution.

    Attributes:
        key: in the module's state dict.
        size: per axis.
        inputs, outputs: channels.
        layout: in the module.
        pointwise: a 1x1x1 convolution, computed as one matrix product.
    """

    key: str
    size: tuple[int, ...]
    inputs: int
    outputs: int
    layout: str
    pointwise: bool

    def shape(self, layout: str) -> tuple[int, ...]:
        if layout == 'spconv1':
            return (*self.size, self.inputs, self.outputs)
        if layout == 'spconv2':
            return (self.outputs, *self.size, self.inputs)
        return (*self.size, self.outputs, self.inputs)

    def candidates(self, shape: Iterable[int]) -> list[str]:
        """Layouts in which the kernel has this shape."""
        return [layout for layout in LAYOUTS if self.shape(layout) == tuple(shape)]

    def convert(self, weight: torch.Tensor, layout: str) -> torch.Tensor:
        """Convert a weight from `layout` to the module's, contiguous; pointwise memory is not permuted."""
        if self.pointwise:
            return weight.contiguous().reshape(self.shape(self.layout))
        ndim = len(self.size)
        if layout == 'spconv2':
            outputs, *space, inputs = range(ndim + 2)
        elif layout == 'spconv1':
            *space, inputs, outputs = range(ndim + 2)
        else:
            *space, outputs, inputs = range(ndim + 2)
        orders = {
            'spconv1': [*space, inputs, outputs],
            'spconv2': [outputs, *space, inputs],
            'spconv2-rskc': [*space, outputs, inputs],
        }
        return weight.permute(*orders[self.layout]).contiguous()


def find_kernels(module: torch.nn.Module) -> dict[str, Kernel]:
    """Kernels of all sparse convolutions of spconv 2 or mmcv.ops, by key of the weight."""
    kernels = {}
    for path, part in module.named_modules():
        bases = [base for base in type(part).__mro__ if base.__name__ == 'SparseConvolution']
        layout = LIBRARIES.get(bases[0].__module__.split('.')[0]) if bases else None
        if layout is not None:
            key = f'{path}.weight'.lstrip('.')
            size = tuple(int(length) for length in part.kernel_size)
            pointwise = bool(getattr(part, 'conv1x1', False))
            kernels[key] = Kernel(key, size, part.in_channels, part.out_channels, layout, pointwise)
    return kernels


def decide_layouts(
    path: str, shapes: Mapping[str, tuple[int, ...]], kernels: Mapping[str, Kernel], choice: str
) -> dict[str, str]:
    """Layout of every kernel of a file by its shape; ambiguous shapes follow the others.

    CheckpointError: a shape fits no layout, or the layouts stay open.
    """
    if choice not in CHOICES:
        raise UsageError(f'weight layout {choice!r} is unknown; expected one of {", ".join(CHOICES)}')
    candidates = {key: kernels[key].candidates(shape) for key, shape in shapes.items()}
    if choice != 'auto':
        candidates = {key: [choice] if choice in layouts else [] for key, layouts in candidates.items()}
    mismatches = [
        _mismatch(shapes[key], kernels[key], choice) for key, layouts in candidates.items() if not layouts
    ]
    if mismatches:
        rest = f'; and {len(mismatches) - 3} more' if len(mismatches) > 3 else ''
        raise CheckpointError(f'{path}: {"; ".join(mismatches[:3])}{rest}')
    unambiguous = {layouts[0] for layouts in candidates.values() if len(layouts) == 1}
    common = unambiguous.pop() if len(unambiguous) == 1 else None
    layout_of, undecided = {}, []
    for key, layouts in candidates.items():
        if len(layouts) == 1 or kernels[key].pointwise:
            layout_of[key] = layouts[0]
        elif common in layouts:
            layout_of[key] = common
        else:
            undecided.append(f'{key} {tuple(shapes[key])}: {" or ".join(layouts)}')
    if undecided:
        raise CheckpointError(
            f'{path}: the layout of {len(undecided)} kernels cannot be told from their shapes '
            f'({"; ".join(undecided[:3])}), and the others do not decide it; a wrong layout would load '
            'and give wrong results. Pass --weight-layout spconv1 or spconv2, the library of the training'
        )
    return layout_of


def _mismatch(shape: tuple[int, ...], kernel: Kernel, choice: str) -> str:
    layouts = LAYOUTS[:2] if choice == 'auto' else (choice,)
    expected = ' or '.join(f'{kernel.shape(layout)} ({layout})' for layout in layouts)
    text = f'{kernel.key} is {tuple(shape)}, expected {expected}'
    if choice != 'auto' and kernel.candidates(shape):
        return f'{text}; its shape is that of {" or ".join(kernel.candidates(shape))}'
    return text
