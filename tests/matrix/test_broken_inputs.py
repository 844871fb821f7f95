"""Broken metadata, infos, sweeps and pictures: a right answer or one line, never a traceback or a hang."""

import pytest

import broken_inputs
from table_rows import ROW

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(7200)]
COUNTS = dict(metadata=1000, infos=500, sweeps=300, pictures=500)
SEED = 6_000
CASES = [(kind, toy) for kind, (_, toys) in broken_inputs.TABLES.items() for toy in toys]


@pytest.mark.parametrize(('kind', 'toy'), CASES)
def test_no_broken_file_ends_a_command_otherwise_than_by_an_answer_or_a_line(kind, toy, record_property):
    counts, faults = broken_inputs.table(kind, COUNTS[kind], SEED, (toy,))
    for row in broken_inputs.rows(counts):
        record_property(ROW, f'broken {kind} {row}')
    assert faults == [] and sum(counts.values()) >= COUNTS[kind]
    assert any(ended == 'refused' for _, _, ended in counts)
