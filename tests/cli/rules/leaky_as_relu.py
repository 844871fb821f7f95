"""A rule that gives other numbers."""

import numpy as np


def pattern(op, a):
    return op.LeakyRelu(a, alpha=float(np.float32(0.9)))


def replacement(op, a):
    return op.Relu(a)
