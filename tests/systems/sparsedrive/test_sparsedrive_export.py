"""SparseDrive's files: proven as a stream of boxes, lines, trajectories and plans; wrong ones are not."""

import pytest

from mmdeploy_ext.synthetic.drive import synthetic_drive
from proofs import prove
from toy_frames import SPARSEDRIVE_SHORT as toy

FRAMES = 4


detector, paths = toy.fixtures()


def drive(detector, frames=FRAMES, **settings):
    """Two scenes with a pause of ten seconds between them, which nothing resets."""
    return synthetic_drive(frames, detector.rule, scenes=2, **settings)


def test_three_files_are_proven_as_a_stream(detector, paths):
    verdict = prove(detector, paths, drive(detector), timed=False)
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] >= 200
