"""What the proof is worth: mutants of the files of every family, and faults in our own code."""

import pytest

from fault_run import run_faults, untouched
from mutation_run import COUNT, failures, run_family
from planted_toys import FAULT_TOYS
from planting import TOYS_OF

SEED = 44
pytestmark = [pytest.mark.matrix, pytest.mark.timeout(5400)]


@pytest.mark.parametrize('name', FAULT_TOYS)
def test_a_toy_without_a_fault_is_proven(name):
    outcome = untouched(name)
    assert outcome.proven, outcome


@pytest.mark.parametrize('name', FAULT_TOYS)
def test_no_fault_in_our_own_code_is_proven(name):
    outcomes = list(run_faults(name))
    assert [outcome for outcome in outcomes if not outcome.passed] == []


@pytest.mark.parametrize('family', TOYS_OF)
def test_no_mutant_of_the_files_is_proven(family, tmp_path):
    (result,) = run_family(family, [SEED], COUNT, tmp_path)
    assert failures(result, COUNT) == []
