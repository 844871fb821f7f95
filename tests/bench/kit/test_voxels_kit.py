"""Kits of sparse backbones for libspconv: voxels, spconv's dense maps, and what an engine makes of them."""

import dataclasses
import json

import numpy as np
import pytest

import toy_scn_family
from mmdeploy_ext.bench.kit.frames import open_interpreted
from mmdeploy_ext.bench.kit.judge import judge, title_of
from mmdeploy_ext.bench.kit.runners import run_onnxruntime
from mmdeploy_ext.cli import kit_app
from mmdeploy_ext.cli.export_app import main as export
from mmdeploy_ext.exporting.sparse import libspconv
from mmdeploy_ext.runtime.sparse import engine


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return toy_scn_family.write_model(tmp_path_factory.mktemp('model'), 'bevfusion')


@pytest.fixture(scope='module')
def voxels(tmp_path_factory):
    """Return the path of 400 voxels in the order of the model."""
    path, rng = tmp_path_factory.mktemp('voxels') / 'real.npz', np.random.default_rng(0)
    flat = rng.choice(np.prod(toy_scn_family.GRID), 400, replace=False)
    axes = np.stack(np.unravel_index(flat, toy_scn_family.GRID), 1)
    features = rng.standard_normal((400, 5)).astype(np.float16)
    np.savez(path, features=features, coordinates=np.pad(axes, ((0, 0), (1, 0))).astype(np.int16))
    return path


def exported(model, path, *options):
    assert export(['--backbone', *map(str, (*model, '--output-file', path)), *options]) == 0
    return path


@pytest.fixture(scope='module')
def kit(model, voxels, tmp_path_factory):
    """Return a kit of the order that is not the model's, and the outputs of the interpreted file."""
    folder = tmp_path_factory.mktemp('kit')
    file = exported(model, folder / 'lidar.zyx.onnx', '--order', 'zyx')
    words = [file, *model, '--samples', voxels, '--out', folder / 'kit']
    assert kit_app.main([*map(str, words)]) == 0
    run_onnxruntime.main(str(folder / 'outputs'), kit=folder / 'kit', opens=open_interpreted)
    return folder / 'kit', folder / 'outputs'


def test_all_voxels_are_within_the_bars_of_the_file(kit):
    judgement = judge(*kit)
    assert title_of(judgement) == 'WITHIN FP16 BARS ON 6 INPUTS', judgement.failures
    assert json.loads((kit[0] / 'manifest.json').read_text())['graphs'][0]['source_sha256']


def faulty_opens(change):
    """Return an opener of a file that interprets a changed graph, or gets changed inputs."""

    def opens(path):
        network, run = libspconv.read(path), open_interpreted(path)
        return lambda inputs: dict(dense=change(network, run, dict(inputs)))

    return opens


def with_mirrored_kernels(network, _, inputs):
    """Return the map of an engine that goes through its kernels the other way along the first axis."""
    nodes = tuple(
        dataclasses.replace(node, weight=node.weight[:, ::-1]) if hasattr(node, 'weight') else node
        for node in network.nodes
    )
    mirrored = dataclasses.replace(network, nodes=nodes)
    return engine.run(mirrored, inputs['coordinates'], inputs['features'])


FAULTS = {
    'kernels mirrored': with_mirrored_kernels,
    'without the last voxel': lambda _, run, inputs: run(
        {name: value if name == 'grid' else value[:-1] for name, value in inputs.items()}
    )['dense'],
    'transposed': lambda _, run, inputs: np.swapaxes(run(inputs)['dense'], 2, 3),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_what_an_engine_computes_otherwise_is_refused(kit, tmp_path, fault):
    opens = faulty_opens(FAULTS[fault])
    run_onnxruntime.main(str(tmp_path / 'outputs'), kit=kit[0], opens=opens)
    assert title_of(judge(kit[0], tmp_path / 'outputs')) == 'NOT WITHIN FP16 BARS'
