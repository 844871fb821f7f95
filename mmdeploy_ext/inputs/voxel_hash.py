"""Compiled loops behind the rulebook: a hash of active sites and the neighbours found in it. Needs numba.

Each loop releases the interpreter lock and writes to places of its own, so that any number of Python threads
gives the same arrays. numba's own threads are not used: they die in forked workers and in concurrent callers.

Glossary: N sites, K kernel offsets; a key is the row-major index of a site in (sample, three axes).
"""
# ruff: noqa: ANN001, ANN201 - numba infers the types; the docstrings give them

from __future__ import annotations

import numpy as np
from numba import njit

EMPTY = np.int64(-1)
LEAST_SLOTS = 64
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: neighbouring keys spread over the whole table


@njit(cache=True, nogil=True, inline='always')
def slot(key, slots, shift):
    """Return the place of a key: its own, or the free one where it belongs. There has to be a free one."""
    mask = np.int64(slots.shape[0] - 1)
    place = np.int64((np.uint64(key) * _MIX) >> shift)
    while slots[place] != key and slots[place] != EMPTY:
        place = (place + np.int64(1)) & mask
    return place


@njit(cache=True, nogil=True)
def fill(keys, slots, rows, shift):
    """Put every key into the hash with its row; return the first row whose key is there already, or -1."""
    for row in range(keys.shape[0]):
        place = slot(keys[row], slots, shift)
        if slots[place] == keys[row]:
            return row
        slots[place] = keys[row]
        rows[place] = row
    return -1


@njit(cache=True, nogil=True)
def neighbours(sites, shape, steps, slots, rows, shift, table):
    """Write the row of the site at each step from every site into table (K, N), N where there is none."""
    none = np.int32(sites.shape[0])
    for k in range(steps.shape[0]):
        for i in range(sites.shape[0]):
            a, b, c = sites[i, 1] + steps[k, 0], sites[i, 2] + steps[k, 1], sites[i, 3] + steps[k, 2]
            row = none
            if 0 <= a < shape[0] and 0 <= b < shape[1] and 0 <= c < shape[2]:
                key = ((sites[i, 0] * shape[0] + a) * shape[1] + b) * shape[2] + c
                place = slot(key, slots, shift)
                if slots[place] == key:
                    row = rows[place]
            table[k, i] = row


@njit(cache=True, nogil=True)
def mirror(table, mirrored):
    """Write the same pairs of rows from the other side: mirrored[k, j] = i where table[k, i] = j."""
    none = np.int32(table.shape[1])
    for k in range(table.shape[0]):
        mirrored[k] = none
        for i in range(table.shape[1]):
            if table[k, i] != none:
                mirrored[k, table[k, i]] = i


@njit(cache=True, nogil=True)
def reached_keys(sites, shape, axes, slots, shift, keys):
    """Collect each output site that some input site reaches once; return their number, or -1: no more room.

    axes: per axis (k, size) int32, the output position that an input position reaches by an offset, or -1.
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
                    place = slot(key, slots, shift)
                    if slots[place] != key:
                        if n == keys.shape[0]:
                            return -1
                        slots[place] = key
                        keys[n] = key
                        n += 1
    return n


@njit(cache=True, nogil=True)
def reach(sites, shape, axes, offsets, slots, rows, shift, table):
    """Write every input row into table (K, M) at the output row that it reaches by each offset, else N."""
    for k in range(offsets.shape[0]):
        table[k] = sites.shape[0]
        first, second, third = axes[0][offsets[k, 0]], axes[1][offsets[k, 1]], axes[2][offsets[k, 2]]
        for i in range(sites.shape[0]):
            a, b, c = first[sites[i, 1]], second[sites[i, 2]], third[sites[i, 3]]
            if (a | b | c) >= 0:
                key = ((sites[i, 0] * shape[0] + a) * shape[1] + b) * shape[2] + c
                table[k, rows[slot(key, slots, shift)]] = i


def empty_slots(sites: int) -> tuple[np.ndarray, np.uint64]:
    """Return at least two slots per site, a power of two of them, and the shift that hashes into them."""
    bits = max(2 * sites, LEAST_SLOTS).bit_length()
    return np.full(1 << bits, EMPTY, np.int64), np.uint64(64 - bits)
