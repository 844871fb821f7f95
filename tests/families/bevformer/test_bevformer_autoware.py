"""BEVFormer for tensorrt_bevformer: proven through the node's record; the checker reads folders."""

import onnx
import pytest

from mmdeploy_ext.cli.check_app import check_autoware as main
from mmdeploy_ext.consumers.autoware.nodes import BEVFORMER
from mmdeploy_ext.synthetic.drive import synthetic_drive
from proofs import prove_samples
from toy_frames import BEVFORMER as toy

(GRAPH,), MANIFEST = BEVFORMER.graphs, BEVFORMER.manifest

deployment, paths = toy.fixtures(contract='autoware')


@pytest.fixture
def folder(paths, tmp_path):
    source = onnx.load(paths[0])
    onnx.save(source, tmp_path / f'{GRAPH}.onnx')
    text = (tmp_path.__class__(paths[0]).parent / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text)
    return tmp_path


@pytest.mark.matrix
def test_the_file_is_proven_through_the_nodes_record(deployment, paths):
    verdict, _ = prove_samples(deployment, paths, synthetic_drive(4, deployment.rule))
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] == verdict.summary()['reference'] >= 200


def test_the_node_would_take_the_folder(folder, capsys):
    assert main([str(folder)]) == 0, capsys.readouterr().out
