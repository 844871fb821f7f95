"""The image backbone of a camera rig: pictures of infos and folders, a folder of graphs in and out."""

import dataclasses
import pickle
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from mmdeploy_ext.base.errors import DataError, ImageError, ModelFileError, UsageError
from mmdeploy_ext.base.files import read_json, sha256_file
from mmdeploy_ext.bench.precision.calibration_sets import READERS, calibration_frames, camera_frames
from mmdeploy_ext.bench.precision.dense_target import find_target
from mmdeploy_ext.cli.quantize_app import main
from mmdeploy_ext.exporting.int8.dense import is_quantised
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.detector_files import read_files
from mmdeploy_ext.spec.metadata import Metadata, read_metadata
from mmdeploy_ext.spec.preparation import CAMERAS, MultiViewRule
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec
from toy_streampetr_export import FACTS

RIG = CAMERAS[:2]
RULE = MultiViewRule(
    mean=(120.0, 110.0, 100.0),
    std=(60.0, 60.0, 60.0),
    to_rgb=True,
    source=(40, 80),
    scale=0.8,
    resized=(32, 64),
    crop=(0, 0),
    size=(32, 64),
    num_cameras=2,
    cameras=RIG,
)
SHAPE = (2, 3, 32, 64)
FRAMES = 5


def metadata(form, inputs):
    spec = GraphSpec(
        f'streampetr/{form}',
        tuple(TensorSpec(name, 'float32', SHAPE) for name in inputs),
        (TensorSpec('img_feats', 'float32', (2, 8, 32, 64)),),
    )
    options = FAMILIES['streampetr'].choose(opset=17).to_json()
    hashes = 'c' * 64, 'd' * 64
    return Metadata('streampetr', form, spec, RULE, ('car',), FACTS, options, 'toy.py', *hashes, {})


def graph(form, inputs):
    """Three convolutions of pictures; the same for every form, so that all files are valid."""
    rng = np.random.default_rng(1)
    widths = [(8, 3), (8, 8), (8, 8)]
    weights = [rng.normal(0, 0.2, (*width, 3, 3)).astype(np.float32) for width in widths]
    nodes, last = [], inputs[0]
    for at in range(len(weights)):
        after = 'img_feats' if at == len(weights) - 1 else f'x{at}'
        nodes.append(
            helper.make_node('Conv', [last, f'w{at}'], [f'{after}'], f'net/c{at}/Conv', pads=[1] * 4)
        )
        last = after
    model = helper.make_model(
        helper.make_graph(
            nodes,
            form,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in inputs],
            [helper.make_tensor_value_info('img_feats', TensorProto.FLOAT, [2, 8, 32, 64])],
            [numpy_helper.from_array(weight, f'w{at}') for at, weight in enumerate(weights)],
        ),
        opset_imports=[helper.make_opsetid('', 17)],
        ir_version=8,
    )
    helper.set_model_props(model, metadata(form, inputs).to_props())
    return model


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / 'stream'
    target.mkdir()
    onnx.save(graph('extract_img_feat', ['img']), target / 'extract_img_feat.onnx')
    onnx.save(graph('pts_head_memory', ['img_feats_in', 'pre_memory']), target / 'pts_head_memory.onnx')
    return target


@pytest.fixture
def drive(tmp_path):
    """Write pictures in nuScenes' layout, one more of the first camera, and infos; returns the root."""
    root = tmp_path / 'nuscenes'
    rng = np.random.default_rng(2)
    for camera in RIG:
        (root / 'samples' / camera).mkdir(parents=True)
        for frame in range(FRAMES + (camera == RIG[0])):
            picture = rng.integers(0, 256, (40, 80, 3), np.uint8)
            cv2.imwrite(str(root / f'samples/{camera}/{frame:02d}.png'), picture)
    infos = [
        {
            'cams': {
                camera: {'data_path': f'./somewhere/samples/{camera}/{frame:02d}.png'}
                for camera in reversed(RIG)
            }
        }
        for frame in range(FRAMES)
    ]
    (root / 'infos.pkl').write_bytes(pickle.dumps({'infos': infos}))
    return root


def test_infos_and_folders_give_the_same_frames_in_the_models_order_of_cameras(drive):
    expected = [
        tuple(drive / f'samples/{camera}/{frame:02d}.png' for camera in RIG) for frame in range(FRAMES)
    ]
    assert camera_frames(drive / 'infos.pkl', RULE) == expected
    assert camera_frames(drive, RULE) == expected == camera_frames(drive / 'samples', RULE)
    moved = (drive / 'infos.pkl').rename(drive.parent / 'infos.pkl')
    assert camera_frames(moved, RULE, drive) == expected
    with pytest.raises(DataError, match=r'00\.png.*--data-root'):
        camera_frames(moved, RULE)


def test_a_folder_gives_a_folder_with_its_backbone_in_int8_and_the_rest_as_it_was(folder, drive, tmp_path):
    report = tmp_path / 'report.json'
    arguments = [str(folder), '--calibrate', str(drive / 'infos.pkl'), '--rounds', '0', '--json', str(report)]
    arguments += ['--reduce-range']  # right on every CPU
    before = {path.name: sha256_file(path) for path in folder.iterdir()}
    assert main(arguments) == 0
    target = tmp_path / 'stream.int8'
    assert sorted(path.name for path in target.iterdir()) == sorted(before)
    assert {path.name: sha256_file(path) for path in folder.iterdir()} == before
    assert sha256_file(target / 'pts_head_memory.onnx') == before['pts_head_memory.onnx']
    backbone = target / 'extract_img_feat.onnx'
    assert is_quantised(onnx.load(backbone))
    written = read_metadata(str(backbone))
    assert written.edits == ('quantize',) and written.precision == 'int8'
    before_it = read_metadata(str(folder / 'extract_img_feat.onnx'))
    assert dataclasses.replace(written, edits=()) == before_it
    assert len(read_files(str(target)).paths) == 2
    found = read_json(report)
    assert (found['images'], found['images_are']) == (FRAMES, 'frames')
    assert (found['layers'], found['float_layers']) == (3, []), 'the heads are in another graph'
    assert all(figures['cosine'] > 0.999 for figures in found['outputs'].values())
    assert not list(tmp_path.glob('.*'))


def test_sources_of_another_kind_are_refused(tmp_path):
    np.savez(tmp_path / 'a.npz', 1)
    lidar = SimpleNamespace(family='bevfusion', preprocess=SimpleNamespace(views=None))
    head = metadata('pts_head_memory', ['img', 'pre_memory'])
    for error, word, read in (
        (ModelFileError, 'pre_memory', lambda: calibration_frames(head, [])),
        (ImageError, 'no_such: no such folder', lambda: camera_frames(tmp_path / 'no_such', RULE)),
        (ImageError, RIG[0], lambda: camera_frames(tmp_path, RULE)),
        (DataError, 'a.npz', lambda: READERS['sweeps'](SimpleNamespace(width=5), None, tmp_path, None, 0)),
        (ModelFileError, "'bevfusion'", lambda: READERS['fused'](None, lidar, tmp_path, None, 0)),
    ):
        with pytest.raises(error, match=word):
            read()


def test_an_output_that_is_a_file_or_the_input_is_refused(folder, tmp_path):
    (tmp_path / 'file').touch()
    for output in ('new.onnx', tmp_path / 'file', folder):
        with pytest.raises(UsageError, match=f'--out {output}'):
            find_target(str(folder), str(output))


def test_a_folder_needs_one_backbone(folder):
    (folder / 'pts_head_memory.onnx').unlink()
    with pytest.raises(ModelFileError, match=r'has extract_img_feat\.onnx;'):
        find_target(str(folder), None)
    onnx.save(graph('other', ['img']), folder / 'other.onnx')
    onnx.save(graph('pts_head_memory', ['img_feats_in', 'pre_memory']), folder / 'pts_head_memory.onnx')
    with pytest.raises(
        ModelFileError, match=r'has extract_img_feat\.onnx, other\.onnx, pts_head_memory\.onnx;'
    ):
        find_target(str(folder), None)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(ModelFileError, match=r'no \.onnx file'):
        find_target(str(folder), None)
