"""What mmdet 3.3.0 gives for RTMDet's parts, on generated weights and maps: names, shapes and sampled values.

`PYTHONPATH=tests/support .venv-mmdet3/bin/python tests/families/dense/rtmdet_golden.py` writes
`rtmdet_golden.json`; the tests build the same parts of this project, fill them in the same way and compare.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from drawn_weights import SAMPLES, drawn

FILE = Path(__file__).with_suffix('.json')
SIZE = (2, 3, 64, 128)
HEAD = dict(
    type='RTMDetSepBNHead',
    num_classes=5,
    in_channels=32,
    feat_channels=32,
    with_objectness=False,
    loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
    loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
    norm_cfg=dict(type='BN'),
    act_cfg=dict(type='SiLU', inplace=True),
)
LAYERS = dict(norm_cfg=dict(type='BN'), act_cfg=dict(type='SiLU', inplace=True))
POINTS = dict(type='MlvlPointGenerator', offset=0)


def case(backbone=(), neck=(), head=(), channels=(32, 64, 128), strides=(8, 16, 32)):
    """Return the configs of the three parts; entries of the arguments go over what is common to all."""
    return dict(
        backbone=dict(type='CSPNeXt', deepen_factor=0.167, widen_factor=0.125, **LAYERS) | dict(backbone),
        neck=dict(
            type='CSPNeXtPAFPN', in_channels=list(channels), out_channels=32, num_csp_blocks=1, **LAYERS
        )
        | dict(neck),
        bbox_head=HEAD | dict(anchor_generator=POINTS | dict(strides=list(strides))) | dict(head),
    )


CASES = {
    'published': case(),
    'exponential': case(head=dict(exp_on_reg=True), backbone=dict(deepen_factor=0.33)),
    'objectness': case(
        head=dict(with_objectness=True, exp_on_reg=True, share_conv=False, pred_kernel_size=3)
    ),
    'depthwise': case(
        *(dict(use_depthwise=True, channel_attention=False, expand_ratio=0.25), dict(use_depthwise=True)),
        head=dict(use_depthwise=True, share_conv=False),
    ),
    'P6': case(
        backbone=dict(arch='P6', out_indices=(2, 3, 4, 5)),
        channels=(32, 64, 96, 128),
        strides=(8, 16, 32, 64),
    ),
}


def parts_of(build, configs):
    """Return backbone, neck and head as one module; `build` takes a key and its config."""
    return torch.nn.ModuleDict({key: build(key, dict(config)) for key, config in configs.items()}).eval()


def fill(model):
    """Fill the tensors of a state dict, each by numbers that its name draws."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(drawn(name, tensor))


def facts(model):
    """Return names and shapes as one hash, and sampled values of every output."""
    keys = '\n'.join(f'{name} {list(tensor.shape)}' for name, tensor in sorted(model.state_dict().items()))
    image = torch.from_numpy(np.random.default_rng(0).normal(0, 1, SIZE).astype(np.float32))
    with torch.no_grad():
        fill(model)
        outputs = model['bbox_head'](model['neck'](model['backbone'](image)))
    flat = [tensor.numpy().ravel() for kind in outputs for tensor in kind]
    places = [np.linspace(0, len(values) - 1, SAMPLES).astype(int) for values in flat]
    return dict(
        keys=hashlib.sha256(keys.encode()).hexdigest(),
        tensors=len(model.state_dict()),
        outputs=[values[place].astype(float).tolist() for values, place in zip(flat, places, strict=True)],
    )


def main():
    """Write the file, by mmdet 3."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules()
    found = {name: facts(parts_of(lambda _, cfg: MODELS.build(cfg), one)) for name, one in CASES.items()}
    FILE.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
