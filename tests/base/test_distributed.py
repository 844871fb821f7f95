"""Processes of a run leave together, whichever of them fails: real ones, started by hand without torchrun."""

from pathlib import Path

import pytest

from mmdeploy_ext.base import distributed
from rank_processes import FORKED, run_ranks

WORKER = Path(__file__).with_name('ranks_worker.py')


@pytest.fixture
def start(tmp_path):
    """Return a function from a scenario to (exit status, stdout, last line of stderr) of each process."""

    def run(scenario, ranks=2):
        ended = run_ranks(tmp_path, [[WORKER, scenario]] * ranks, size=2, start=FORKED)
        return [(code, out, (error.strip().splitlines() or [''])[-1]) for code, out, error in ended]

    return run


def test_values_come_to_all_and_to_the_first(start):
    (first, out, _), (second, other, _) = start('all is well')
    assert (first, second) == (0, 0)
    assert out.strip() == "['from 0', 'from 1'] [0, 1]"
    assert other.strip() == "['from 0', 'from 1'] None"


@pytest.mark.parametrize(
    ('scenario', 'failing', 'status', 'message'),
    [
        ('rank 0 is refused', 0, 2, '--out x: no such folder'),
        ('rank 1 fails at the end', 1, 1, 'the last sample'),
    ],
)
def test_all_leave_with_the_status_and_the_message_of_the_one_that_failed(
    start, scenario, failing, status, message
):
    ended = start(scenario)
    assert [code for code, _, _ in ended] == [status, status]
    assert ended[failing][2] == f'error: {message}'
    assert ended[1 - failing][2] == f'error: process {failing} of 2 failed: {message}'


def test_a_process_that_is_killed_is_noticed(start):
    (first, _, _), (second, _, told) = start('rank 0 is killed')
    assert (first, second) == (7, 1)
    assert told.startswith('error: another of the 2 processes ended without a message')


def test_one_process_needs_nobody():
    with distributed.join('none') as ranks:
        assert (ranks.rank, ranks.size, ranks.gather(3), ranks.to_first(4)) == (0, 1, [3], [4])
    with pytest.raises(KeyError), distributed.join('none'):
        raise KeyError('x')
