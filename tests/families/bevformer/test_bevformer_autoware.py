"""BEVFormer for tensorrt_bevformer: the node takes the folder, and it is proven through the node's record."""

from pathlib import Path

import pytest

from mmdeploy_ext.cli.check_app import check_autoware as main
from mmdeploy_ext.synthetic.drive import synthetic_drive
from proofs import prove_samples
from toy_frames import BEVFORMER as toy

pytestmark = pytest.mark.matrix
deployment, paths = toy.fixtures(contract='autoware')


def test_the_file_is_proven_through_the_nodes_record(deployment, paths, capsys):
    verdict, _ = prove_samples(deployment, paths, synthetic_drive(4, deployment.rule))
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] == verdict.summary()['reference'] >= 200
    assert main([str(Path(paths[0]).parent)]) == 0, capsys.readouterr().out
