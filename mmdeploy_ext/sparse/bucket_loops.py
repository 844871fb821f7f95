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
    """Return the most frequent patterns, of two equally frequent ones the smaller first."""
    remaining = counts.copy()
    remaining[0] = 0
    patterns = np.empty(min(CANDIDATES, counts.shape[0]), np.int64)
    n = 0
    while n < patterns.shape[0]:
        pattern = np.argmax(remaining)
        if remaining[pattern] == 0:
            break
        patterns[n] = pattern
        remaining[pattern] = 0
        n += 1
    return patterns[:n]


@njit(cache=True, nogil=True)
def choose(counts, buckets):
    """Return the patterns of the buckets, each the one that saves most; the first holds everything.

    counts: rows per pattern, (2^g,). A bucket that nothing needs has pattern 1 and gets no rows.
    """
    patterns = np.ones(buckets, np.int64)
    union = np.int64(0)
    for pattern in range(1, counts.shape[0]):
        if counts[pattern]:
            union |= pattern
    if union == 0:
        return patterns
    patterns[0] = union
    cost = np.full(counts.shape[0], _size(union))
    candidates = _candidates(counts)
    for n in range(1, buckets):
        best, best_saving = -1, 0
        for candidate in candidates:
            size, saving = _size(candidate), 0
            for pattern in range(1, counts.shape[0]):
                if pattern & ~candidate == 0 and cost[pattern] > size:
                    saving += counts[pattern] * (cost[pattern] - size)
            if saving > best_saving:
                best, best_saving = candidate, saving
        if best < 0:
            break
        patterns[n] = best
        for pattern in range(counts.shape[0]):
            if pattern & ~best == 0:
                cost[pattern] = min(cost[pattern], _size(best))
    return patterns


@njit(cache=True, nogil=True)
def _bucket_of(bucket_patterns, count):
    """Return the bucket of each of `count` patterns: the smallest that holds it, -1 for the empty pattern."""
    buckets = np.full(count, -1, np.int64)
    for pattern in range(1, count):
        smallest = 64
        for bucket in range(bucket_patterns.shape[0]):
            size = _size(bucket_patterns[bucket])
            if pattern & ~bucket_patterns[bucket] == 0 and size < smallest:
                buckets[pattern] = bucket
                smallest = size
    return buckets


@njit(cache=True, nogil=True)
def arrange(table, none, buckets, last, rows, lengths, sizes, offsets, position):
    """Sort the output rows of one group into buckets.

    table: (g, M) int32 input rows, `none` for no neighbour. Written: rows, room for g*M int32, the input
    rows bucket after bucket, row by row; lengths and sizes (buckets,), how many of them and how many offsets
    per row; offsets, room for g*buckets, the offsets bucket after bucket; position (M+1,) int32, where in the
    buckets' results an output row is: T, one behind them, if it has no neighbours, and T + last for the
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
    patterns = choose(counts, buckets)
    bucket_of = _bucket_of(patterns, 1 << g)
    members = np.zeros(buckets, np.int64)
    for pattern in range(1, 1 << g):
        members[bucket_of[pattern]] += counts[pattern]
    places, entries, used, n, total = np.zeros(buckets, np.int64), np.zeros(buckets, np.int64), 0, 0, 0
    lists = np.zeros((buckets, g), np.int64)
    for bucket in range(buckets):
        size = 0
        for k in range(g):
            if patterns[bucket] >> k & 1:
                offsets[n] = k
                lists[bucket, size] = k
                n += 1
                size += 1
        sizes[bucket], lengths[bucket] = size, size * members[bucket]
        places[bucket], entries[bucket] = total, used
        total += members[bucket]
        used += size * members[bucket]
    for i in range(m):
        bucket = bucket_of[codes[i]]
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
