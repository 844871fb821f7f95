"""Compiled loops that sort output rows by their neighbours; without numba they run in Python.

A group has g (up to nine) consecutive kernel offsets; M output rows; B buckets. A pattern is the set of a
group's offsets at which a row has a neighbour, bit k for offset k; a bucket holds rows with subsets of its
pattern.
"""
# ruff: noqa: ANN001, ANN201, ANN202, C901 - numba infers the types; a call costs more than a branch here

import numpy as np

from mmdeploy_ext.base.compiled import njit

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
    """Most frequent patterns first, then smaller ones."""
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
    """Patterns of the buckets, (B,) int64, from counts (2^g,) of rows per pattern.

    The first is the union of all (1 without neighbours); each further one saves most products among the
    `CANDIDATES` most frequent, or is 1.
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
def arrange(table, no_neighbour, buckets, bias, rows, lengths, sizes, offsets, position):
    """Sort the output rows of one group into buckets; return the used entries of `rows` and `offsets`.

    A bucket's product has one result per output row; T is the number of results.

    Args:
        table: (g, M) int32 input row per offset and output row.
        no_neighbour: entry of the table for none: the row of zeros behind the input rows.
        buckets: B, at least 1.
        bias: 1 if the group adds the bias (result T; zeros are T + 1), else 0 (zeros are T).
        rows: written, room for g*M int32: input rows, bucket after bucket.
        lengths: written, (B,) int64 entries of `rows` per bucket.
        sizes: written, (B,) int64 offsets per output row.
        offsets: written, room for g*B int32, bucket after bucket.
        position: written, (M+1,) int32 result of each output row, T without neighbours; the last is T + bias.
    """
    g, m = table.shape
    codes = np.zeros(m, np.int16)
    for k in range(g):
        for i in range(m):
            codes[i] |= np.int16(table[k, i] != no_neighbour) << k
    counts = np.zeros(1 << g, np.int64)
    for i in range(m):
        counts[codes[i]] += 1
    patterns = choose(counts, buckets)
    bucket_of = _bucket_of(patterns, 1 << g)
    members = np.zeros(buckets, np.int64)
    for pattern in range(1, 1 << g):
        members[bucket_of[pattern]] += counts[pattern]
    # of each bucket: index of its next result, and of its next entry in `rows`
    results, entries, used, n, total = np.zeros(buckets, np.int64), np.zeros(buckets, np.int64), 0, 0, 0
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
        results[bucket], entries[bucket] = total, used
        total += members[bucket]
        used += size * members[bucket]
    for i in range(m):
        bucket = bucket_of[codes[i]]
        if bucket < 0:
            position[i] = total
            continue
        position[i] = results[bucket]
        results[bucket] += 1
        entry = entries[bucket]
        for j in range(sizes[bucket]):
            rows[entry + j] = table[lists[bucket, j], i]
        entries[bucket] = entry + sizes[bucket]
    position[m] = total + bias
    return used, n
