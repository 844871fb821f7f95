"""A rule: LeakyRelu of 0.9 as the larger of a value and its share."""

import numpy as np


def pattern(op, a):
    return op.LeakyRelu(a, alpha=float(np.float32(0.9)))


def replacement(op, a):
    return op.Max(a, op.Mul(a, op.Constant(value_float=0.9)))
