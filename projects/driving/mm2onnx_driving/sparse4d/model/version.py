"""Supported settings of Sparse4D's third version."""

import functools
from typing import Any

from mmdeploy_ext.base.errors import ConfigError

SETTINGS = {
    'use_deformable_func': (True, False),
    'head.deformable_model.use_deformable_func': (True, False),
    'head.deformable_model.use_camera_embed': (True, False),
    'head.deformable_model.residual_mode': ('cat', 'add'),
    'head.anchor_encoder.mode': ('cat', 'add'),
    'head.anchor_encoder.output_fc': (False, True),
    'head.anchor_encoder.vel_dims': (3, 3),
    'head.refine_layer.refine_yaw': (True, False),
    'head.refine_layer.normalize_yaw': (False, False),
    'head.refine_layer.with_quality_estimation': (True, False),
}
"""Setting -> its only supported value, and its default."""
DEFAULT_ORDER = ('refine',) * 6


def check_version(cfg: Any) -> None:
    """Raise ConfigError for other versions than the third."""
    wrong = []
    for path, (needed, absent) in SETTINGS.items():
        *parts, name = path.split('.')
        section = functools.reduce(lambda outer, part: outer.get(part) or {}, parts, cfg.model)
        if (value := section.get(name, absent)) != needed:
            wrong.append(f'{path}={value!r}, expected {needed!r}')
    head = cfg.model.get('head') or {}
    bank, order = head.get('instance_bank') or {}, head.get('operation_order') or DEFAULT_ORDER
    num_temp, num_anchor = (int(bank.get(name) or 0) for name in ('num_temp_instances', 'num_anchor'))
    if not 0 < num_temp < num_anchor:
        wrong.append(f'head.instance_bank.num_temp_instances={num_temp}, expected 1 to {num_anchor - 1}')
    before, refinements = int(head.get('num_single_frame_decoder', -1)), order.count('refine')
    if order[-1] != 'refine' or not 0 < before < refinements:
        wrong.append(
            f'head.num_single_frame_decoder={before}, {refinements} refinements, at last {order[-1]!r}; '
            f'expected 1 to {refinements - 1}, and refine as the last operation'
        )
    if wrong:
        raise ConfigError(
            f'{cfg.filename}: model: {"; ".join(wrong)}: only Sparse4D v3 is supported; without its '
            'operator the results differ at image borders'
        )
