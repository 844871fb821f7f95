"""Kernel layouts of sparse-convolution checkpoints: recognised from shapes and converted. Uses torch.

k0, k1, k2 kernel size, I input and O output channels. Layouts, by what wrote them:

    spconv1        (k0, k1, k2, I, O)   spconv 1.x and mmcv.ops
    spconv2        (O, k0, k1, k2, I)   spconv 2.x
    spconv2-rskc   (k0, k1, k2, O, I)   spconv 2.0 and 2.1 with the algorithm Native

No conversion mirrors a kernel. A 1x1x1 convolution is special: spconv 2 multiplies by the kernel's memory as
an (I, O) matrix, whatever the shape says, and so do spconv 1 and mmcv.ops. Its memory is therefore kept as it
is; permuted with the others it would load, run, and be wrong (spconv issues 556 and 605).
"""

import dataclasses
from collections.abc import Iterable, Mapping

import torch

from mmdeploy_ext.core.errors import CheckpointError, UsageError

LAYOUTS = ('spconv1', 'spconv2', 'spconv2-rskc')
CHOICES = ('auto', *LAYOUTS)
LIBRARIES = {'spconv': 'spconv2', 'mmcv': 'spconv1'}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The weight of one sparse convolution of a module, by its key there; `layout` is the module's own.

    `pointwise` is a 1x1x1 convolution that is computed as one matrix product.
    """

    key: str
    size: tuple[int, ...]
    inputs: int
    outputs: int
    layout: str
    pointwise: bool

    def shape(self, layout: str) -> tuple[int, ...]:
        """Return the shape of this kernel in a layout."""
        if layout == 'spconv1':
            return (*self.size, self.inputs, self.outputs)
        if layout == 'spconv2':
            return (self.outputs, *self.size, self.inputs)
        return (*self.size, self.outputs, self.inputs)

    def candidates(self, shape: Iterable[int]) -> list[str]:
        """Return the layouts in which the kernel has this shape."""
        return [layout for layout in LAYOUTS if self.shape(layout) == tuple(shape)]

    def convert(self, weight: torch.Tensor, layout: str) -> torch.Tensor:
        """Return a weight of this layout in the module's own."""
        if self.pointwise:
            return weight.contiguous().reshape(self.shape(self.layout))
        last = len(self.size)
        outputs, inputs = dict(spconv1=(last + 1, last), spconv2=(0, last + 1)).get(layout, (last, last + 1))
        space = [axis + (layout == 'spconv2') for axis in range(last)]
        order = [outputs, *space, inputs] if self.layout == 'spconv2' else [*space, inputs, outputs]
        return weight.permute(*order).contiguous()


def kernels(module: torch.nn.Module) -> dict[str, Kernel]:
    """Return the kernels of all sparse convolutions of a module by state-dict key."""
    found = {}
    for path, part in module.named_modules():
        if layout := _layout(part):
            key = f'{path}.weight'.lstrip('.')
            size = tuple(int(length) for length in part.kernel_size)
            pointwise = bool(getattr(part, 'conv1x1', False))
            found[key] = Kernel(key, size, part.in_channels, part.out_channels, layout, pointwise)
    return found


def _layout(part: torch.nn.Module) -> str | None:
    """Return the layout of a convolution of spconv 2 or mmcv.ops; None for other modules."""
    for base in type(part).__mro__:
        if base.__name__ == 'SparseConvolution':
            return LIBRARIES.get(base.__module__.split('.')[0])
    return None


def decide(
    path: str, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, Kernel], choice: str
) -> dict[str, str]:
    """Return the layout of every kernel of a file, by the shapes there and what is expected.

    A shape that fits one layout decides itself. One that fits several has the layout that all the decided
    ones share; a pointwise one needs no decision. `choice` is 'auto', or the layout that the user states,
    which every shape has to fit.

    Raises:
        UsageError: unknown choice.
        CheckpointError: a shape fits no layout, not the stated one, or several and nothing decides.
    """
    if choice not in CHOICES:
        raise UsageError(f'weight layout {choice!r} is unknown; expected one of {", ".join(CHOICES)}')
    found = {key: expected[key].candidates(shape) for key, shape in shapes.items()}
    if choice != 'auto':
        found = {key: [choice] if choice in layouts else [] for key, layouts in found.items()}
    wrong = [_mismatch(shapes[key], expected[key], choice) for key, layouts in found.items() if not layouts]
    if wrong:
        more = f'; and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise CheckpointError(f'{path}: {"; ".join(wrong[:3])}{more}')
    decided = {layouts[0] for layouts in found.values() if len(layouts) == 1}
    common = decided.pop() if len(decided) == 1 else None
    chosen, open_ones = {}, []
    for key, layouts in found.items():
        if len(layouts) == 1 or expected[key].pointwise:
            chosen[key] = layouts[0]
        elif common in layouts:
            chosen[key] = common
        else:
            open_ones.append(f'{key} {tuple(shapes[key])}: {" or ".join(layouts)}')
    if open_ones:
        raise CheckpointError(
            f'{path}: the layout of {len(open_ones)} kernels cannot be told from their shapes '
            f'({"; ".join(open_ones[:3])}), and the others do not decide it; a wrong guess would load and be '
            f'wrong. Say --weight-layout spconv1 or spconv2, by the library that trained it'
        )
    return chosen


def _mismatch(shape: tuple[int, ...], kernel: Kernel, choice: str) -> str:
    layouts = LAYOUTS[:2] if choice == 'auto' else (choice,)
    expected = ' or '.join(f'{kernel.shape(layout)} ({layout})' for layout in layouts)
    text = f'{kernel.key} is {tuple(shape)}, expected {expected}'
    if choice != 'auto' and kernel.candidates(shape):
        return f'{text}; its shape is that of {" or ".join(kernel.candidates(shape))}'
    reverse = dataclasses.replace(kernel, size=kernel.size[::-1])
    if reverse.candidates(shape):
        text += '; its axes are in the opposite order: the file is of a network in x, y, z where the config '
        text += 'has z, y, x, or the reverse'
    return text
