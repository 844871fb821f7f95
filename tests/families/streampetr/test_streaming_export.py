"""pytorch2onnx.py, verify.py and dump mode on a tiny streaming model, from files to files."""

import pytest

import toy_stream_files as files
from mmdeploy_ext.cli import export_app, test_app
from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.dump import list_samples, load_dump

GRAPHS = ('extract_img_feat', 'position_embedding', 'pts_head_memory')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the toy's config, checkpoint and data set."""
    path = tmp_path_factory.mktemp('toy')
    files.write_config(path)
    files.write_checkpoint(path / 'toy.pth')
    files.write_set(path)
    return path


def export(folder, output, *options):
    argv = [str(folder / 'toy_stream.py'), str(folder / 'toy.pth'), '--output-file', str(output), *options]
    return export_app.main(argv)


@pytest.mark.matrix  # in the suite: the fork's files below, and the drive of proof/test_sequence_proof.py
def test_the_deploy_contract_is_exported_and_proven_on_the_data_set(folder, tmp_path, capfd):
    assert export(folder, tmp_path / 'deploy', '--verify', '--frames', '6') == 0
    out = capfd.readouterr().out
    assert 'deploy contract, 3 graph(s), opset 17' in out and '6 of 6 frames of data.test' in out
    found = {path.stem: read_metadata(str(path)) for path in (tmp_path / 'deploy').glob('*.onnx')}
    assert sorted(found) == sorted(GRAPHS)
    head = found['pts_head_memory']
    assert head.postprocess.memory_len == 24 and head.postprocess.topk_proposals == 8
    assert head.spec.tensor('pre_memory_embedding').axes == (1, 32, 32)
    assert head.classes[0] == 'car' and head.preprocess.cameras[0] == 'CAM_FRONT'
    assert len({(entry.checkpoint_sha256, entry.config_sha256) for entry in found.values()}) == 1


# ---- the test loop


def evaluate(folder, work_dir, tail, *options):
    config = files.write_config(folder, 'toy_run', tail)
    argv = [config, str(folder / 'toy.pth'), '--work-dir', str(work_dir), '--out', str(work_dir / 'r.pkl')]
    return test_app.main([*argv, *options])


@pytest.mark.matrix
def test_a_dump_without_memory_is_compared_without_memory(folder, tmp_path, capfd):
    """The frames of memory='reset' say prev_exists 0, within a scene too."""
    settings = 'type="TorchBackend", dump=dict(frames=6), memory="reset"'
    assert evaluate(folder, tmp_path, f'backend_config = dict({settings})') == 0
    dumped = [load_dump(sample)[0] for sample in list_samples(tmp_path / 'dump')]
    assert [float(tensors['prev_exists'][0]) for tensors in dumped] == [0.0] * 6
    target = tmp_path / 'files'
    for _ in range(2):  # the second time, the folder is there
        tail = f'backend_config = dict(type="OnnxRuntimeBackend", onnx_file="{target}", memory="reset")'
        assert evaluate(folder, tmp_path, tail) == 0
        assert capfd.readouterr().out.count(': agrees') == 6
