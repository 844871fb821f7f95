"""Compiled loops behind the rulebook: a hash of active sites and the neighbours found in it. Needs numba.

Each loop releases the interpreter lock and writes to places of its own, so that any number of Python threads
gives the same arrays. numba's own threads are not used: they die in forked workers and in concurrent callers.

Glossary: N sites; a key is the row-major index of a site in (sample, axis 0, axis 1, axis 2).
"""

from __future__ import annotations

import numpy as np
from numba import njit

EMPTY = np.int64(-1)
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: neighbouring keys spread over the whole table


@njit(cache=True, nogil=True, inline='always')
def _slot(key, slots, shift):
    mask = np.int64(slots.shape[0] - 1)
    place = np.int64((np.uint64(key) * _MIX) >> shift)
    while slots[place] != key and slots[place] != EMPTY:
        place = (place + np.int64(1)) & mask
    return place


@njit(cache=True, nogil=True)
def fill(keys, slots, rows, shift):
    """Put every key into the table with its row; return the first row whose key is there already, or -1."""
    for row in range(keys.shape[0]):
        place = _slot(keys[row], slots, shift)
        if slots[place] == keys[row]:
            return row
        slots[place] = keys[row]
        rows[place] = row
    return -1


@njit(cache=True, nogil=True)
def neighbours(sites, shape, steps, slots, rows, shift, found, counts):
    """Write the row of the site at each step from every site, or -1, and how many there are per step."""
    for k in range(steps.shape[0]):
        count = 0
        for i in range(sites.shape[0]):
            a, b, c = sites[i, 1] + steps[k, 0], sites[i, 2] + steps[k, 1], sites[i, 3] + steps[k, 2]
            row = np.int32(-1)
            if 0 <= a < shape[0] and 0 <= b < shape[1] and 0 <= c < shape[2]:
                key = ((sites[i, 0] * shape[0] + a) * shape[1] + b) * shape[2] + c
                place = _slot(key, slots, shift)
                if slots[place] == key:
                    row = rows[place]
                    count += 1
            found[k, i] = row
        counts[k] = count


@njit(cache=True, nogil=True)
def compress(found, counts, starts, inputs, outputs):
    """Write (found row, own row) of every site that found one, in order of own row, from `starts` on."""
    for k in range(found.shape[0]):
        n, end = starts[k], starts[k] + counts[k]
        i = 0
        while n < end:  # without a branch on what was found: half of the guesses would be wrong
            inputs[n] = found[k, i]
            outputs[n] = i
            n += found[k, i] >= 0
            i += 1


@njit(cache=True, nogil=True)
def reached_keys(sites, shape, axes, slots, shift, keys):
    """Collect each output site that some input site reaches once; return their number, or -1: no more room.

    axes: per axis (k, size) int32, the output position that an input position reaches by each kernel offset, or -1.
    """
    n = 0
    for i in range(sites.shape[0]):
        for ka in range(axes[0].shape[0]):
            a = axes[0][ka, sites[i, 1]]
            if a < 0:
                continue
            for kb in range(axes[1].shape[0]):
                b = axes[1][kb, sites[i, 2]]
                if b < 0:
                    continue
                for kc in range(axes[2].shape[0]):
                    c = axes[2][kc, sites[i, 3]]
                    if c < 0:
                        continue
                    key = ((sites[i, 0] * shape[0] + a) * shape[1] + b) * shape[2] + c
                    place = _slot(key, slots, shift)
                    if slots[place] != key:
                        if n == keys.shape[0]:
                            return -1
                        slots[place] = key
                        keys[n] = key
                        n += 1
    return n


@njit(cache=True, nogil=True)
def reach(sites, shape, axes, offsets, slots, rows, shift, found, counts):
    """Write the output row that every input site reaches by each kernel offset, or -1, and how many do."""
    for k in range(offsets.shape[0]):
        first, second, third = axes[0][offsets[k, 0]], axes[1][offsets[k, 1]], axes[2][offsets[k, 2]]
        count = 0
        for i in range(sites.shape[0]):
            row = np.int32(-1)
            a, b, c = first[sites[i, 1]], second[sites[i, 2]], third[sites[i, 3]]
            if (a | b | c) >= 0:
                key = ((sites[i, 0] * shape[0] + a) * shape[1] + b) * shape[2] + c
                row = rows[_slot(key, slots, shift)]
                count += 1
            found[k, i] = row
        counts[k] = count
