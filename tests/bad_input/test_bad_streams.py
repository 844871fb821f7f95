"""Streaming models: options, configs, checkpoints, calibrations and dumps that cannot be; one line each."""

import contextlib
import resource

import cv2
import numpy as np
import pytest
import torch

import toy_stream_files as files
from mmdeploy_ext.cli import dump_app, export_app, test_app, verify_app
from mmdeploy_ext.core.dump import save_dump


def register():
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401


def snapshot(folder):
    """Return every name below a folder and the bytes of the files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob('*')}


@contextlib.contextmanager
def full_disk(limit):
    """Let writes beyond `limit` bytes of a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return files.write_checkpoint(tmp_path_factory.mktemp('weights') / 'toy.pth')


@pytest.fixture(scope='module')
def exported(tmp_path_factory, checkpoint):
    """The toy's deploy files, made by the tool."""
    folder = tmp_path_factory.mktemp('deploy')
    config = files.write_config(folder)
    assert export_app.main([config, checkpoint, '--output-file', str(folder / 'onnx')]) == 0
    return folder / 'onnx'


@pytest.fixture
def config(tmp_path):
    return files.write_config(tmp_path)


def refused(capfd, app, *argv, status=2):
    """Run a tool and return its one `error:` line."""
    capfd.readouterr()
    try:
        found = app.main(list(map(str, argv))) if app is not dump_app else app.main([*map(str, argv)])
    except SystemExit as left:
        found = left.code
    lines = capfd.readouterr().err.strip().splitlines()
    assert found == status, lines
    assert len(lines) == 1 and lines[0].startswith('error: '), lines
    return lines[0]


# ---- pytorch2onnx.py and verify.py

NO_SUCH = "family 'streampetr' has no such option; size and cameras are the config's"
OPTIONS = {
    '--contract tensorrt': ["argument --contract: invalid choice: 'tensorrt'", 'deploy', 'fork'],
    '--fork-version 1.1': ['--fork-version 1.1 goes with --contract fork, got deploy'],
    '--fork-img2lidar depth': ['--fork-img2lidar depth goes with --contract fork, got deploy'],
    '--contract fork --fork-version 2.0': ["argument --fork-version: invalid choice: '2.0'"],
    '--fp16-io': ['--fp16-io goes with --precision fp16, got fp32'],
    '--precision int8': ["argument --precision: invalid choice: 'int8'"],
    '--layers 3': ["argument --layers: invalid choice: '3'"],
    '--opset-version 0': ['--opset-version 0: ', '11 to 20'],
    '--opset-version 10': ['--opset-version 10: ', '11 to 20'],
    '--opset-version 11 --exporter dynamo': ['--opset-version 11: ', 'dynamo', '18 to 20'],
    '--frames 1 --verify': ['--frames 1: expected 2 or more'],
    '--frames 8': ['--frames 8: goes with --verify'],
    '--report {out}/report': ['out/report: goes with --verify'],
    '--contract fork --output-file {out}/folder': ['the fork contract is one file, expected a name in .onnx'],
    '--output-file {out}/one.onnx': ['the deploy contract is several graphs, expected a folder'],
    '--output-file tmp.onnx': ['--output-file tmp.onnx: the deploy contract is several graphs'],
    '--output-file {out}/notes.txt': ['notes.txt: is a file, expected a folder'],
    '--shape 256 704': [f'--shape 256 704: {NO_SUCH}'],
    '--batch-size 2': [f'--batch-size 2: {NO_SUCH}'],
    '--dynamic-export': [f'--dynamic-export: {NO_SUCH}'],
    '--skip-postprocess': [f'--postprocess raw: {NO_SUCH}'],
    '--mean 1 2 3': ["--mean: family 'streampetr' has no such option; size and cameras are the config's"],
    '--cfg-options num_cams=0': ['toy_stream.py: num_cams=0, expected a number of cameras'],
    '--cfg-options num_cams=six': ["toy_stream.py: num_cams='six', expected a number of cameras"],
    '--cfg-options model.aux_2d_only=False': ['toy_stream.py: model.aux_2d_only=False'],
    '--cfg-options model.type=RepDetr3D': ["toy_stream.py: model.type='RepDetr3D'"],
    '--cfg-options model.pts_bbox_head.transformer.decoder.post_norm_cfg=None': ['post_norm_cfg is None'],
    '--cfg-options model.pts_bbox_head.num_propagated=99': ['num_propagated=99 exceeds memory_len=24'],
    '--cfg-options data.test.pipeline.3.size_divisor=8 data.test.pipeline.1.data_aug_conf.final_dim=40,96': [
        'images of 40x96, expected multiples of the stride 16'
    ],
    '--cfg-options data.test.pipeline.1.training=True': ['toy_stream.py: ', 'training=True; expected False'],
}


@pytest.mark.parametrize('options', OPTIONS)
def test_a_wrong_export_option_is_refused_before_the_weights_load(options, config, tmp_path, capfd):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'notes.txt').write_text('keep me')
    weights = tmp_path / 'weights.pth'
    weights.write_bytes(b'never read')
    before = snapshot(tmp_path)
    argv = options.format(out=out).split()
    if '--output-file' not in argv:
        argv = ['--output-file', str(out / ('x.onnx' if 'fork' in argv else 'x')), *argv]
    line = refused(capfd, export_app, config, weights, *argv)
    assert all(word in line for word in OPTIONS[options]), line
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize('key', ['H', 'final_dim'])
def test_a_config_without_an_image_size_is_refused(key, tmp_path, checkpoint, capfd):
    tail = f'data["test"]["pipeline"][1]["data_aug_conf"].pop("{key}")'
    line = refused(capfd, export_app, files.write_config(tmp_path, tail=tail), checkpoint)
    assert f'ResizeCropFlipRotImage: data_aug_conf: has no {key}' in line


def test_without_a_data_set_a_proof_takes_a_synthetic_drive(tmp_path, checkpoint, capfd):
    from mmdeploy_ext.families import model as deploy
    from mmdeploy_ext.proving.inputs.samples import proof_samples

    deployment = deploy.load(files.write_config(tmp_path, tail='del data["test"]'), checkpoint)
    frames, title = proof_samples(deployment, 3)
    assert len(frames) == 3 and title == 'synthetic drive'
    assert 'data.test is NoneType' in capfd.readouterr().out


def test_bfloat16_of_an_engine_is_refused_before_the_export(config, tmp_path, checkpoint, capfd):
    pytest.importorskip('openvino', reason='optional: pip install openvino')
    options = ['--engine', 'openvino', '--verify', '--output-file', tmp_path / 'x']
    line = refused(capfd, export_app, config, checkpoint, *options, '--inference-precision', 'bf16')
    assert '--inference-precision bf16: goes with models of single images' in line
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (dict(drop='pts_bbox_head.memory_embed.'), ['missing keys 4 (pts_bbox_head.memory_embed.0.weight']),
        (dict(drop='pts_bbox_head.coords_d'), ['missing keys 1 (pts_bbox_head.coords_d)']),
        (dict(stranger=torch.ones(1)), ['unexpected keys 1 (stranger)']),
    ],
    ids=['missing', 'missing constant', 'unexpected'],
)
def test_a_checkpoint_of_another_model_is_refused(spoil, words, config, tmp_path, capfd):
    weights = files.write_checkpoint(tmp_path / 'bad.pth', **spoil)
    line = refused(capfd, export_app, config, weights, '--output-file', tmp_path / 'x')
    assert 'bad.pth: does not fit the model' in line and all(word in line for word in words), line
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
    'prefix', ['img_roi_head.', 'pts_bbox_head.code_weights', 'pts_bbox_head.match_costs']
)
def test_keys_of_the_training_alone_may_be_missing(prefix, config, tmp_path):
    from mmdeploy_ext.families import model as deploy

    weights = files.write_checkpoint(tmp_path / 'stripped.pth', drop=prefix)
    assert deploy.load(config, weights).family.name == 'streampetr'


def test_a_failed_export_leaves_the_folder_as_it_was(config, tmp_path, exported, checkpoint, capfd):
    """The disk is full after the first of the three files."""
    out = tmp_path / 'onnx'
    out.mkdir()
    (out / 'pts_head_memory.onnx').write_bytes(b'an earlier export')
    before = snapshot(tmp_path)
    sizes = sorted(path.stat().st_size for path in exported.glob('*.onnx'))
    with full_disk(sizes[-1] - 1):
        line = refused(capfd, export_app, config, checkpoint, '--output-file', out, status=1)
    assert 'could not be written' in line and snapshot(tmp_path) == before


def test_an_export_into_the_working_folder_is_refused_with_a_name_that_would_do(
    config, tmp_path, checkpoint, monkeypatch, capfd
):
    """A folder is replaced as a whole, and the shell would go on in the one that is gone."""
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    assert export_app.main([config, checkpoint, '--output-file', '.']) == 2
    assert 'is the working folder' in capfd.readouterr().err and not list((tmp_path / 'here').iterdir())


def test_verify_refuses_what_it_cannot_prove(config, tmp_path, exported, checkpoint, capfd):
    (tmp_path / 'empty').mkdir()
    assert 'no .onnx file' in refused(capfd, verify_app, config, checkpoint, tmp_path / 'empty')
    assert 'no such ONNX file' in refused(capfd, verify_app, config, checkpoint, tmp_path / 'none.onnx')
    line = refused(capfd, verify_app, config, checkpoint, exported, '--max-candidates', '9')
    assert '--max-candidates: ' in line and 'have no such option' in line
    line = refused(capfd, verify_app, config, checkpoint, exported, '--images', 'a.jpg')
    assert '--images a.jpg: no such file or folder' in line
    (tmp_path / 'a.jpg').write_bytes(b'')
    line = refused(capfd, verify_app, config, checkpoint, exported, '--images', tmp_path / 'a.jpg')
    assert 'take frames with poses and calibrations: an info file (.pkl)' in line


# ---- test.py: the data set


def evaluate(capfd, config, checkpoint, tmp_path, *options, status):
    argv = ['--out', tmp_path / 'results.pkl', '--work-dir', tmp_path / 'work', *options]
    line = refused(capfd, test_app, config, checkpoint, *argv, status=status)
    assert not (tmp_path / 'results.pkl').exists()
    return line


def camera(info, name='CAM_BACK'):
    return info[2]['cams'][name]


def five_cameras(infos):
    for info in infos:
        del info['cams']['CAM_BACK_RIGHT']


def other_size(infos):
    path = infos[0]['cams']['CAM_BACK']['data_path'].replace('CAM_BACK', 'small')
    cv2.imwrite(path, np.zeros((72, 128, 3), np.uint8))
    for name in infos[3]['cams']:
        camera_ = infos[3]['cams'][name]
        camera_['data_path'] = path


DATA = {
    'no calibration': (
        lambda i: camera(i).pop('cam_intrinsic'),
        1,
        'sample a2, CAM_BACK: has no cam_intrinsic',
    ),
    'no cameras': (lambda i: i[1].pop('cams'), 1, 'sample a1: got no camera'),
    'singular intrinsics': (
        lambda i: camera(i).update(cam_intrinsic=np.zeros((3, 3))),
        1,
        'sample a2, CAM_BACK: cam_intrinsic is',
    ),
    'singular extrinsics': (
        lambda i: camera(i).update(sensor2lidar_rotation=np.zeros((3, 3))),
        1,
        'CAM_BACK: sensor2lidar_rotation is singular',
    ),
    'a rotation that is none': (
        lambda i: camera(i).update(sensor2lidar_rotation=np.eye(3) * 1.2),
        1,
        'camera 3 is not its intrinsics',
    ),
    'NaN pose': (
        lambda i: i[1].update(ego2global_translation=[np.nan, 0, 0]),
        1,
        'sample a1: ego2global_translation',
    ),
    'no scene': (lambda i: i[0].pop('scene_token'), 2, 'its infos have no scene_token'),
    'image of another size': (other_size, 1, 'got 72x128 (height x width), data_aug_conf has H=90, W=160'),
    'no image': (lambda i: camera(i).update(data_path='gone.png'), 1, 'gone.png'),
}


@pytest.mark.suite('a rotation that is none', 'no cameras', 'image of another size', 'no scene')
@pytest.mark.parametrize('case', DATA)
def test_a_data_set_that_cannot_be_is_one_line(case, config, tmp_path, checkpoint, capfd):
    spoil, status, words = DATA[case]
    files.write_set(tmp_path, spoil)
    assert words in evaluate(capfd, config, checkpoint, tmp_path, status=status)


@pytest.mark.parametrize('app', [test_app, verify_app], ids=['test', 'verify'])
def test_a_set_without_tables_is_not_run_for_metrics(app, config, tmp_path, exported, capfd):
    files.write_set(tmp_path)
    weights = tmp_path / 'weights.pth'
    weights.write_bytes(b'never read')
    more = [exported] if app is verify_app else ['--work-dir', tmp_path / 'work']
    line = refused(capfd, app, config, weights, *more, '--eval', 'bbox')
    assert 'set/toy: no such folder' in line and 'tables' in line


def test_another_number_of_cameras_is_refused_by_onnx(config, tmp_path, exported, checkpoint, capfd):
    files.write_set(tmp_path, five_cameras)
    backend = ['backend_config.type=OnnxRuntimeBackend', f'backend_config.onnx_file={exported}']
    line = evaluate(capfd, config, checkpoint, tmp_path, '--cfg-options', *backend, status=1)
    assert 'images: got shape (5, 3, 32, 96), expected (6, 3, 32, 96)' in line


# ---- test.py: backend_config

BACKENDS = {
    'dump=4': ['backend_config.dump=4, expected a dict of frames'],
    'dump.frames=-1': ['dump.frames=-1, expected 0 or more'],
    'dump.frames=2.5': ['dump.frames=2.5, expected 0 or more'],
    'dump.frames=True': ['dump.frames=True, expected 0 or more'],
    'dump.frames=[0,9]': ['dump.frames names [9]; data.test has 6 frames'],
    'dump.samples=4': ["dump has unknown keys ['samples']", 'frames, tensors, dir'],
    'dump.tensors=img,imq': ["dump.tensors names ['imq'], which this model does not have", 'post_mem_velo'],
    'dump.tensors=7': ['dump.tensors=7, expected names'],
    'dump.dir=5': ['dump.dir=5, expected a folder'],
    'memory=never': ["backend_config.memory='never', expected keep or reset"],
    'contract=trt': ["backend_config.contract='trt', expected one of deploy, autoware, fork"],
    'opset_version=0': ['--opset-version 0: '],
    'opset_version=new': ["opset_version='new', expected a number"],
    'fork_version=1.1': ["fork_version='1.1' goes with ", "contract='fork', got deploy"],
    'onnx_file=x.onnx': ['onnx_file=x.onnx: the deploy contract is several graphs, expected a folder'],
}


@pytest.mark.parametrize('setting', BACKENDS)
def test_a_setting_that_cannot_be_is_refused_before_the_weights_load(setting, tmp_path, capfd):
    engine = 'TorchBackend' if setting.startswith('dump') else 'OnnxRuntimeBackend'
    key, value = setting.split('=', 1)
    tail = f'backend_config = dict(type="{engine}"' + (', dump=dict())' if 'dump.' in key else ')')
    config = files.write_config(tmp_path, tail=tail)
    files.write_set(tmp_path)
    weights = tmp_path / 'weights.pth'
    weights.write_bytes(b'never read')
    line = evaluate(
        capfd, config, weights, tmp_path, '--cfg-options', f'backend_config.{key}={value}', status=2
    )
    assert all(word in line for word in BACKENDS[setting]), line
    assert not (tmp_path / 'work').exists()


# ---- dumps


def dump(folder, **tensors):
    save_dump(folder, {'timestamp': np.array([1.5e9]), **tensors}, {})
    return folder


def test_damaged_dumps_are_one_line(tmp_path, capfd):
    whole = dump(tmp_path / 'a', velo=np.ones((2, 3), np.float32))
    assert 'no dump here' in refused(capfd, dump_app, 'list', tmp_path / 'none')
    for command in ('list', 'show'):
        for content in ('{}', '[]', '{"tensors": {"x": {}}}'):
            (tmp_path / 'b').mkdir(exist_ok=True)
            (tmp_path / 'b' / 'manifest.json').write_text(content)
            assert 'is not a manifest of a dump' in refused(capfd, dump_app, command, tmp_path / 'b')
    (whole / 'velo_2x3.bin').write_bytes(b'short')
    assert 'sha256 differs' in refused(capfd, dump_app, 'show', whole)


@pytest.mark.parametrize('option', ['--rtol=nan', '--rtol=-1', '--atol=inf'])
def test_a_tolerance_that_is_none_is_refused(option, tmp_path, capfd):
    folder = dump(tmp_path / 'a')
    assert 'expected 0 or more' in refused(capfd, dump_app, 'compare', folder, folder, option)


def test_times_are_not_compared_by_a_share_of_1e9_seconds(tmp_path):
    one, two = dump(tmp_path / 'a'), dump(tmp_path / 'b', timestamp=np.array([1.5e9 + 0.5]))
    assert dump_app.main(['compare', str(one), str(one)]) == 0
    assert dump_app.main(['compare', str(one), str(two)]) == 1
    assert dump_app.main(['compare', str(one), str(two), '--atol', '1']) == 0
