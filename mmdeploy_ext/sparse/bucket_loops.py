"""Compiled loops that sort output rows by which neighbours they have. Needs numba.

Glossary: a group is up to nine consecutive kernel offsets, g of them; M output rows; a pattern is the set of
a group's offsets that a row has, as bits; a bucket holds rows whose patterns lie within its own.
"""
# ruff: noqa: ANN001, ANN201, ANN202, C901 - numba infers the types; a call costs more than a branch here

import numpy as np
from numba import njit

CANDIDATES = 48  # patterns that may become a bucket: the most frequent ones; more gained nothing measurable


@njit(cache=True, nogil=True, inline='always')
def _size(pattern):
    size = 0
    while pattern:
        pattern &= pattern - 1
        size += 1
    return size


@njit(cache=True, nogil=True)
def _candidates(counts):
    """Return the most frequent patterns, the smaller one first where two are equally frequent."""
    left = counts.copy()
    left[0] = 0
    found = np.empty(min(CANDIDATES, counts.shape[0]), np.int64)
    n = 0
    while n < found.shape[0]:
        pattern = np.argmax(left)
        if left[pattern] == 0:
            break
        found[n] = pattern
        left[pattern] = 0
        n += 1
    return found[:n]


@njit(cache=True, nogil=True)
def choose(counts, buckets):
    """Return patterns of the buckets, each one that which saves most; the first holds everything.

    counts: rows per pattern, (2^g,). A bucket that nothing needs has pattern 1 and gets no rows.
    """
    chosen = np.ones(buckets, np.int64)
    whole = np.int64(0)
    for pattern in range(1, counts.shape[0]):
        if counts[pattern]:
            whole |= pattern
    if whole == 0:
        return chosen
    chosen[0] = whole
    cost = np.full(counts.shape[0], _size(whole))
    candidates = _candidates(counts)
    for n in range(1, buckets):
        best, most = -1, 0
        for candidate in candidates:
            size, saved = _size(candidate), 0
            for pattern in range(1, counts.shape[0]):
                if pattern & ~candidate == 0 and cost[pattern] > size:
                    saved += counts[pattern] * (cost[pattern] - size)
            if saved > most:
                best, most = candidate, saved
        if best < 0:
            break
        chosen[n] = best
        for pattern in range(counts.shape[0]):
            if pattern & ~best == 0:
                cost[pattern] = min(cost[pattern], _size(best))
    return chosen


@njit(cache=True, nogil=True)
def _homes(chosen, patterns):
    """Return the bucket of every pattern: the smallest that holds it, -1 for the empty pattern."""
    homes = np.full(patterns, -1, np.int64)
    for pattern in range(1, patterns):
        least = 64
        for bucket in range(chosen.shape[0]):
            if pattern & ~chosen[bucket] == 0 and _size(chosen[bucket]) < least:
                homes[pattern] = bucket
                least = _size(chosen[bucket])
    return homes


@njit(cache=True, nogil=True)
def arrange(table, none, buckets, last, rows, lengths, sizes, offsets, position):
    """Sort the output rows of one group into buckets.

    table: (g, M) int32 input rows, `none` where there is none. Written: rows, room for g*M int32, the input
    rows bucket after bucket, row by row; lengths and sizes (buckets,), how many of them and how many offsets
    per row; offsets, room for g*buckets, the offsets bucket after bucket; position (M+1,) int32, where in the
    buckets' results an output row is: T, one behind them, where it has no neighbours, and T + last for the
    row of zeros.
    Returns how much of rows and of offsets is used.
    """
    g, m = table.shape
    codes = np.zeros(m, np.int16)
    for k in range(g):
        for i in range(m):
            codes[i] |= np.int16(table[k, i] != none) << k
    counts = np.zeros(1 << g, np.int64)
    for i in range(m):
        counts[codes[i]] += 1
    chosen = choose(counts, buckets)
    homes = _homes(chosen, 1 << g)
    members = np.zeros(buckets, np.int64)
    for pattern in range(1, 1 << g):
        members[homes[pattern]] += counts[pattern]
    places, entries, used, n, total = np.zeros(buckets, np.int64), np.zeros(buckets, np.int64), 0, 0, 0
    lists = np.zeros((buckets, g), np.int64)
    for bucket in range(buckets):
        size = 0
        for k in range(g):
            if chosen[bucket] >> k & 1:
                offsets[n] = k
                lists[bucket, size] = k
                n += 1
                size += 1
        sizes[bucket], lengths[bucket] = size, size * members[bucket]
        places[bucket], entries[bucket] = total, used
        total += members[bucket]
        used += size * members[bucket]
    for i in range(m):
        bucket = homes[codes[i]]
        if bucket < 0:
            position[i] = total
            continue
        position[i] = places[bucket]
        places[bucket] += 1
        entry = entries[bucket]
        for j in range(sizes[bucket]):
            rows[entry + j] = table[lists[bucket, j], i]
        entries[bucket] = entry + sizes[bucket]
    position[m] = total + last
    return used, n
