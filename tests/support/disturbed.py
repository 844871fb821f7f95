"""Toys as another CPU would round them: drawn and trained values are off by less than a unit of float32.

`--disturb SEED` of the suite. A test that turns red has a value that two right computations round to two
sides: its toy gets other values. What a file or function with `golden` in its name draws stays; it has stored
results.
"""

import sys
from pathlib import Path

import numpy as np
import torch

PART = 1.2e-7
"""Deviation of the disturbance, relative: float32's last place is 0.6e-7 to 1.2e-7 of a number."""
CHECKPOINTS = Path(__file__).resolve().parents[2] / 'demo/checkpoints'
DRAWN = {torch: ('rand', 'randn'), torch.Tensor: ('normal_', 'uniform_')}


def disturb_toys(seed, replace=setattr):
    """Disturb from now on what numpy and PyTorch draw and the trained weights of demo/, always equally."""
    for owner, names in DRAWN.items():
        for name in names:
            replace(owner, name, disturbing(getattr(owner, name), seed))
    generator = generator_of(seed)
    replace(np.random, 'default_rng', lambda *args: generator(default_rng(*args).bit_generator))
    replace(torch, 'load', disturbing_demos(torch.load, seed))


default_rng = np.random.default_rng


def generator_of(seed):
    """Return a class of numpy's generators whose float numbers are disturbed."""

    def method(name):
        draw = getattr(np.random.Generator, name)

        def call(self, *args, **kwargs):
            values = draw(self, *args, **kwargs)
            return values if is_golden() else disturbed_array(values, seed)

        return call

    names = ('normal', 'random', 'standard_normal', 'uniform')
    return type('Generator', (np.random.Generator,), {name: method(name) for name in names})


def disturbed_array(values, seed):
    """Return an array or a number of the same type; equal shapes are disturbed equally."""
    noise = default_rng(seed).standard_normal(np.shape(values))
    found = values * (1 + PART * noise)
    return found.astype(values.dtype) if isinstance(values, np.ndarray) else found


def disturb(tensor, seed):
    """Disturb a float tensor in place; equal shapes are disturbed equally."""
    if tensor.is_floating_point() and tensor.device.type == 'cpu':
        noise = torch.from_numpy(np.asarray(default_rng(seed).standard_normal(tuple(tensor.shape))))
        with torch.no_grad():
            tensor.copy_(tensor * (1 + PART * noise))
    return tensor


def disturbing(draw, seed):
    def call(*args, **kwargs):
        tensor = draw(*args, **kwargs)
        is_graph = torch.jit.is_tracing() or type(tensor) not in (torch.Tensor, torch.nn.Parameter)
        return tensor if is_graph or is_golden() else disturb(tensor, seed)

    return call


def disturbing_demos(load, seed):
    def call(file, *args, **kwargs):
        content = load(file, *args, **kwargs)
        is_demo = isinstance(file, str | Path) and CHECKPOINTS in Path(file).resolve().parents
        if is_demo and not is_golden():
            for tensor in content['state_dict'].values():
                disturb(tensor, seed)
        return content

    return call


def is_golden():
    """Tell whether a file or function of goldens asks, itself or by functions that it calls."""
    frame = sys._getframe(1)
    while frame:
        code = frame.f_code
        if 'golden' in code.co_name or 'golden' in Path(code.co_filename).name:
            return True
        frame = frame.f_back
    return False
