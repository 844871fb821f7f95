"""What is wrong for StreamPETR alone: options, checkpoints, data sets, `backend_config`."""

import pytest

import toy_stream_files as files
from mmdeploy_ext.bench.kinds.sequence import proof_samples
from mmdeploy_ext.cli import export_app, test_app
from mmdeploy_ext.families import detector as detectors
from refusals import refused, snapshot


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return files.write_checkpoint(tmp_path_factory.mktemp('weights') / 'toy.pth')


@pytest.fixture
def config(tmp_path):
    return files.write_config(tmp_path)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ('--contract tensorrt', ['--contract', 'deploy', 'fork']),
        ('--fp16-io', ['--fp16-io', '--precision fp16']),
        ('--shape 256 704', ['--shape 256 704', 'streampetr']),
        ('--cfg-options model.type=RepDetr3D', ['model.type']),
    ],
)
def test_a_wrong_option_is_refused_before_the_weights_load(options, words, config, tmp_path, capfd):
    out, weights = tmp_path / 'out', tmp_path / 'weights.pth'
    out.mkdir()
    (out / 'notes.txt').write_text('keep me')
    weights.write_bytes(b'never read')
    before = snapshot(tmp_path)
    argv = options.format(out=out).split()
    if '--output-file' not in argv:
        argv = ['--output-file', out / 'x', *argv]
    line = refused(capfd, export_app.main, config, weights, *argv)
    assert all(word in line for word in words), line
    assert snapshot(tmp_path) == before


def test_without_a_data_set_a_proof_takes_a_synthetic_drive(tmp_path, checkpoint):
    detector = detectors.load(files.write_config(tmp_path, tail='del data["test"]'), checkpoint)
    frames, title = proof_samples(detector, 3)
    assert len(frames) == 3 and title == 'synthetic drive'


@pytest.mark.parametrize(
    ('spoil', 'status', 'words'),
    [
        (lambda infos: infos[2]['cams']['CAM_BACK'].pop('cam_intrinsic'), 1, 'a2, CAM_BACK: has no cam_intr'),
        (lambda infos: infos[0].pop('scene_token'), 2, 'scene_token'),
        (lambda infos: infos[2]['cams']['CAM_BACK'].update(data_path='gone.png'), 1, 'gone.png'),
    ],
)
def test_a_data_set_that_does_not_fit(spoil, status, words, config, tmp_path, checkpoint, capfd):
    files.write_set(tmp_path, spoil)
    argv = ['--out', tmp_path / 'results.pkl', '--work-dir', tmp_path / 'work']
    assert words in refused(capfd, test_app.main, config, checkpoint, *argv, status=status)
    assert not (tmp_path / 'results.pkl').exists()


@pytest.mark.parametrize(
    ('setting', 'words'),
    [
        ('dump.samples=4', ['samples', 'frames']),
        ('onnx_file=x.onnx', ['onnx_file=x.onnx', 'folder']),
    ],
)
def test_a_wrong_key_of_backend_config(setting, words, tmp_path, capfd):
    engine = 'TorchBackend' if setting.startswith('dump') else 'OnnxRuntimeBackend'
    dump = ', dump=dict()' if setting.startswith('dump') else ''
    config = files.write_config(tmp_path, tail=f'backend_config = dict(type="{engine}"{dump})')
    files.write_set(tmp_path)
    (tmp_path / 'weights.pth').write_bytes(b'never read')
    argv = ['--out', tmp_path / 'results.pkl', '--work-dir', tmp_path / 'work', '--cfg-options']
    line = refused(capfd, test_app.main, config, tmp_path / 'weights.pth', *argv, f'backend_config.{setting}')
    assert all(word in line for word in words), line
