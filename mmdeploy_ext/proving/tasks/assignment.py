"""Who goes with whom, one to one, by a matrix of nearness.

Glossary: R reference detections (rows), C candidate detections (columns).
"""

import numpy as np


def maximum_matching(allowed: np.ndarray, preference: np.ndarray, scores: np.ndarray) -> dict[int, int]:
    """Return row -> column of a largest one-to-one matching of the allowed pairs (augmenting paths).

    Args:
        allowed: (R, C) bool.
        preference: (R, C); each row tries its larger values first.
        scores: (R,); rows of higher score come first, and a row once matched stays matched.
    """
    choices = [
        sorted(np.flatnonzero(row).tolist(), key=lambda column, values=values: -values[column])
        for row, values in zip(allowed, preference, strict=True)
    ]
    owner: dict[int, int] = {}

    def augment(row: int, seen: set[int]) -> bool:
        for column in choices[row]:
            if column not in seen:
                seen.add(column)
                if column not in owner or augment(owner[column], seen):
                    owner[column] = row
                    return True
        return False

    for row in np.argsort(-scores, kind='stable').tolist():
        augment(row, set())
    return {row: column for column, row in owner.items()}


def nearest_pairs(nearness: np.ndarray, matched: dict[int, int], floor: float) -> dict[int, int]:
    """Return row -> column of what is left, paired by descending nearness.

    Args:
        nearness: (R, C).
        matched: row -> column of those that have a partner.
        floor: the least nearness of a pair.
    """
    free = nearness >= floor
    free[list(matched.keys())] = False
    free[:, list(matched.values())] = False
    rows, columns = np.nonzero(free)
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for place in np.argsort(-nearness[rows, columns], kind='stable'):
        row, column = int(rows[place]), int(columns[place])
        if row not in pairs and column not in taken:
            pairs[row] = column
            taken.add(column)
    return pairs
