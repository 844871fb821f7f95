"""What the proof is worth: faults in our own code, with a fresh export and its proof each."""

import pytest

from fault_run import run_faults, untouched
from planted_toys import FAULT_TOYS

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(5400)]


@pytest.mark.parametrize('name', FAULT_TOYS)
def test_a_toy_without_a_fault_is_proven(name):
    outcome = untouched(name)
    assert outcome.proven, outcome


@pytest.mark.parametrize('name', FAULT_TOYS)
def test_no_fault_in_our_own_code_is_proven(name):
    outcomes = list(run_faults(name))
    assert [outcome for outcome in outcomes if not outcome.passed] == []
