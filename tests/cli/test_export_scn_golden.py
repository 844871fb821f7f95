"""export_scn.py at full size: the node lists of the reference exporter."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import toy_seeded as seeded
from marking import in_suite
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.cli.export_app import main
from mmdeploy_ext.exporting.sparse import libspconv
from mmdeploy_ext.exporting.sparse.fold import fold
from mmdeploy_ext.exporting.sparse.ranges import from_amax
from mmdeploy_ext.families import backbone_files as deploy
from mmdeploy_ext.families.base import BACKBONE, find_family
from scn_files import NODES

REPOSITORY = Path(__file__).resolve().parents[2]
INT8 = ['--precision', 'int8', '--int8-fp16-input-output']
FULL = {'bevfusion.int8.zyx': [*INT8, '--order', 'zyx'], 'centerpoint.int8.zyx': INT8}
PREFIXES = dict(bevfusion='encoders.lidar.backbone.', centerpoint='backbone.')


def full_model(net, folder):
    """Return config, checkpoint with the goldens' weights, and ranges by the goldens' rule."""
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401

    config = str(REPOSITORY / f'projects/configs/BEVFusion/{net}_lidar_0075voxel_nus.py')
    cfg, checkpoint = load_config(config), str(folder / f'{net}.pth')
    family = find_family(cfg, BACKBONE)
    encoder = family.encoder(family.build(cfg))
    seeded.fill_sparse_module(encoder, PREFIXES[net])
    torch.save(dict(state_dict=encoder.state_dict(prefix=PREFIXES[net])), checkpoint)
    ranges = seeded_ranges(deploy.trace(deploy.load(config, checkpoint)), net)
    ranges.save(folder / f'{net}.json')
    return config, checkpoint, folder / f'{net}.json'


def seeded_ranges(traced, net):
    """Return the goldens' ranges; CenterPoint's are not rounded, and its first is of the unfolded kernel."""
    graph, centerpoint = fold(traced, 'fp32'), net == 'centerpoint'
    names = seeded.centerpoint_ptq_path if centerpoint else str
    amax = seeded.amax(graph, PREFIXES[net], half=not centerpoint, drawn_as=names)
    if centerpoint:
        first = np.abs(traced.convolutions()[0].weight).max((1, 2, 3, 4))
        amax['conv_input.0._weight_quantizer._amax'] = first
    return from_amax(graph, amax)


@pytest.mark.parametrize('golden', in_suite(FULL, 'centerpoint.int8.zyx'))
def test_the_full_networks_equal_the_reference_within_ten_seconds(golden, tmp_path, capsys):
    config, checkpoint, ranges = full_model(golden.partition('.')[0], tmp_path)
    path, words = tmp_path / 'lidar.onnx', [config, checkpoint, *FULL[golden], '--ranges', ranges]
    assert main([*map(str, ('--backbone', *words, '--out', path))]) == 0
    seconds = float(capsys.readouterr().out.split('exported in ')[1].split()[0])
    assert seconds <= 10
    wanted = json.loads((NODES / f'{golden}.json').read_text())
    found = libspconv.to_node_list(onnx.load(path))
    for key in ('inputs', 'outputs', 'nodes', 'initializers'):
        assert found[key] == wanted[key], key
