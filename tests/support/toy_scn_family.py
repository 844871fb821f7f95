"""A family of sparse backbones for tests: BEVFusion's encoder and SECOND's at 24 x 24 cells, seeded."""

import torch
from mmcv.ops import Voxelization

import toy_seeded as seeded
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import FAMILIES, Claim
from mmdeploy_ext.families.sparse import EncoderSettings, SparseFamily
from mmdeploy_ext.spec.preparation import VoxelRule
from mmdeploy_ext.spec.registry import register_family
from mmdeploy_ext.upstream import compat
from mmdeploy_ext.upstream.weights.sparse_checkpoint import load_model
from scn_nets import bevfusion, second

GRID = (24, 24, 41)
WIDTHS = ((16, 16, 16), (16, 16, 24), (24, 24, 24), (24, 24))
NETS = {
    'bevfusion': lambda: bevfusion(GRID, WIDTHS, output_channels=16),
    'second': lambda: second(GRID[::-1], 5),
}
SHAPES = {'bevfusion': (1, 32, 3, 3), 'second': (1, 40, 6, 6)}
CONFIG = """
model = dict(type='ToyScn', net='{net}', output_shape={shape})
"""


class ToyScnFamily(SparseFamily):
    """Two networks: coordinates x, y, z of one, z, y, x of the other."""

    name = 'toy_scn'

    def claims(self, cfg):
        return Claim.PART if cfg.model.get('type') == 'ToyScn' else Claim.NO

    def build(self, cfg):
        return NETS[cfg.model.net]().eval()

    def settings(self, cfg, model):
        order = 'xyz' if cfg.model.net == 'bevfusion' else 'zyx'
        shape = GRID if order == 'xyz' else GRID[::-1]
        if cfg.model.get('grid') not in (None, list(shape)):
            raise ConfigError(f'{cfg.filename}: grid {cfg.model.grid}, the encoder has {list(shape)}')
        return EncoderSettings('', order, shape, 5, cfg.model.get('output_shape'))

    def encoder(self, model):
        return model

    def voxel_layer(self, model):
        return Voxelization((1.0, 1.0, 0.2), (-12.0, -12.0, -4.0, 12.0, 12.0, 4.2), 10, 5000).eval()

    def preprocess_rule(self, cfg):
        order = 'xyz' if cfg.model.net == 'bevfusion' else 'zyx'
        return VoxelRule(
            point_cloud_range=(-12.0, -12.0, -4.0, 12.0, 12.0, 4.2),
            voxel_size=(1.0, 1.0, 0.2),
            max_points=10,
            max_voxels=5000,
            order=order,
            in_channels=5,
            mode='hard',
        )

    def load(self, model, path, weight_layout='auto'):
        return load_model(path, model, weight_layout=weight_layout)

    def run_encoder(self, model, features, coordinates):
        with torch.no_grad(), compat.single_thread():
            return model(torch.from_numpy(features), torch.from_numpy(coordinates), 1).numpy()


def register():
    register_family('toy_scn', 'toy_scn_family:ToyScnFamily')
    FAMILIES.setdefault('toy_scn', ToyScnFamily())


def write_model(folder, net='bevfusion', shape=None):
    """Write a config and a checkpoint with seeded weights; returns their paths."""
    register()
    config, checkpoint = folder / f'{net}.py', folder / f'{net}.pth'
    config.write_text(CONFIG.format(net=net, shape=shape or SHAPES[net]))
    model = NETS[net]()
    seeded.fill_sparse_module(model)
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    return str(config), str(checkpoint)
