"""Broken folders for Autoware's nodes: none ends the checker in a traceback, a hang or much memory."""

import pytest

import broken_autoware
from table_rows import ROW

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(3600)]
COUNT, SEED = 1000, 4_000


def test_no_broken_folder_ends_the_checker_otherwise_than_with_a_verdict(record_property):
    counts, faults = broken_autoware.table(COUNT, SEED)
    for row in broken_autoware.rows(counts):
        record_property(ROW, f'broken folders for Autoware {row}')
    assert sum(counts.values()) == COUNT and faults == []
    assert sum(number for (_, ending), number in counts.items() if ending == 'broken') > COUNT // 2
