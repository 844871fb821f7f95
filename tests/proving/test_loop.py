"""The contract of the loop of all proofs, on a subject of twenty lines without PyTorch."""

import dataclasses

import numpy as np
import pytest

from mmdeploy_ext.base.errors import ShapeError
from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.subject import Sample, Step, Subject


class Sums(Subject):
    """y = x + memory, on both sides; `faults` change it: side -> function of y and the number of calls.

    Attributes:
        states: side -> the memories that it started from.
    """

    def __init__(self, modes=(('',),), **faults):
        self.modes, self.faults, self.states = modes, faults, dict(want=[], got=[])
        self.given = [np.float32([i, 2 * i + 1]) for i in range(3)]

    def sample(self, entry, index, mode):
        return Sample(f'frame {index} {mode}', entry)

    def run(self, side, sample, state):
        self.states[side].append(state)
        y = sample.data + (0 if state is None else state)
        y = self.faults.get(side, lambda y, calls: y)(y, len(self.states[side]))
        return Step({'y': y}, state=y, probe={'y': y})

    def want(self, sample, state):
        return self.run('want', sample, state)

    def got(self, sample, state):
        return self.run('got', sample, state)


def failures(subject):
    cases, reasons, _ = compare(subject)
    return [line for case in cases for line in case.failures] + reasons


def test_equal_sides_pass_in_every_mode():
    cases, reasons, clock = compare(Sums((('forced',), ('free',))))
    assert [case.name for case in cases] == [
        f'frame {i} {mode}' for mode in ('forced', 'free') for i in range(3)
    ]
    assert all(case.passed for case in cases) and not reasons and len(clock.seconds['free']) == 3


@pytest.mark.parametrize('call', [1, 2, 3])
def test_one_changed_value_fails_its_case_and_is_named(call):

    def fault(y, calls):
        return y + (np.float32([0, 0.01]) if calls == call else 0)

    (line,) = failures(Sums(got=fault))
    assert line.startswith(f'frame {call - 1} : y: ') and '1 of 2' in line


def test_a_forced_file_gets_the_memory_of_pytorch_and_a_free_one_its_own():
    subject = Sums((('forced',), ('free',)), got=lambda y, calls: y + np.float32(1e-3))
    errors = [row.max_abs for case in compare(subject)[0] for row in case.tensors]
    forced, free = subject.states['got'][:3], subject.states['got'][3:]
    assert np.array_equal(forced[1], [0, 1]) and np.allclose(free[1], [1e-3, 1.001])
    assert np.allclose(errors, [1e-3, 1e-3, 1e-3, 1e-3, 2e-3, 3e-3], rtol=0.01)  # drift adds up


@pytest.mark.parametrize('side', ['got', 'want'])
def test_hidden_state_of_either_side_shows_when_a_sample_runs_again(side):

    def hidden(y, calls):
        return y + (np.float32(0.5) if calls > 3 else 0)

    (line, *_) = failures(Sums(**{side: hidden}))
    assert 'runs again' in line


def test_a_side_that_raises_fails_its_case_alone():
    def fault(y, calls):
        if calls == 2:
            raise ShapeError('too wide')
        return y

    (line,) = failures(Sums(got=fault))
    assert 'too wide' in line and line.startswith('frame 1')


def test_a_missing_tensor_fails():
    subject = Sums()
    subject.got = lambda sample, state: dataclasses.replace(Sums.got(subject, sample, state), tensors={})
    assert len(failures(subject)) == 3


def test_a_sample_alone_starts_from_an_empty_memory():
    subject = Sums()
    subject.sample = lambda *given: dataclasses.replace(Sums.sample(subject, *given), alone=True)
    assert not failures(subject)
    assert all(state is None for state in (*subject.states['got'], *subject.states['want']))
