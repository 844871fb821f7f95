"""Write inputs and outputs of files into contracts.md, models-cameras.md and the READMEs of systems.

    python -m dev.pages.contracts

A spec needs the model of a config, without weights. Sizes of the tables are those of the config.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dev.pages.tables import table, write_between
from mmdeploy_ext.upstream import compat

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
PAGE, CAMERA_PAGE = ROOT / 'docs/reference/contracts.md', ROOT / 'docs/models-cameras.md'
HEADINGS = ('tensor', 'side', 'dtype', 'shape', 'meaning')
STREAMS = 'projects/configs'
ROWS: list[tuple[str, str, dict[str, Any]]] = [
    ('One-stage, full', 'configs/atss/atss_coco.py', dict(dynamic=True)),
    ('One-stage, decode', 'configs/atss/atss_coco.py', dict(form='decode', dynamic=True)),
    ('One-stage, raw', 'configs/atss/atss_coco.py', dict(form='raw', height=608, width=608)),
    (
        'One-stage, full with --max-candidates 1000',
        'configs/atss/atss_coco.py',
        dict(max_candidates=1000, height=608, width=608),
    ),
    ('Two-stage, full', 'configs/demo/mask_rcnn_toy.py', dict(dynamic=True)),
    ('Two-stage, proposals', 'configs/demo/mask_rcnn_toy.py', dict(form='proposals', dynamic=True)),
    ('Two-stage, regions', 'configs/demo/mask_rcnn_toy.py', dict(form='regions', dynamic=True)),
    ('Panoptic FPN, full', 'configs/demo/panoptic_fpn_toy.py', dict(dynamic=True)),
    ('Deformable DETR, full', 'configs/demo/deformable_detr_toy.py', dict(dynamic=True)),
    ('SOLOv2, full', 'configs/solov2/solov2_light_r34.py', dict(dynamic=True)),
    ('SOLOv2, raw', 'configs/solov2/solov2_light_r34.py', dict(form='raw', dynamic=True)),
    ('RT-DETR, raw', 'configs/rtdetr/rtdetr_r18vd.py', dict(form='raw', dynamic=True)),
    ('CenterPoint', f'{STREAMS}/BEVFusion/centerpoint_toy.py', {}),
    ('CenterPoint, autoware', f'{STREAMS}/Autoware/centerpoint_pillar032_nus.py', dict(contract='autoware')),
    ('PointPillars', f'{STREAMS}/PointPillars/pointpillars_toy.py', {}),
    ('MVX-Net', f'{STREAMS}/MVXNet/mvxnet_toy.py', {}),
    ('BEVFusion', f'{STREAMS}/BEVFusion/bevfusion_toy.py', {}),
    (
        'BEVFusion, cuda-bevfusion',
        f'{STREAMS}/BEVFusion/bevfusion_toy_engine.py',
        dict(contract='cuda-bevfusion'),
    ),
    (
        'StreamPETR, fork',
        f'{STREAMS}/StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e.py',
        dict(contract='fork'),
    ),
    ('PETRv2, dl4agx', f'{STREAMS}/PETR/petrv2_toy.py', dict(contract='dl4agx')),
    ('BEVFormer, autoware', f'{STREAMS}/BEVFormer/bevformer_tiny.py', dict(contract='autoware')),
    ('BEVDet, trt-plugin', f'{STREAMS}/BEVDet/bevdet_r50.py', dict(contract='trt-plugin')),
    (
        'BEVDet4D, bevdet-cpp',
        f'{STREAMS}/BEVDet/bevdet_r50_4dlongterm_depth_cbgs.py',
        dict(contract='bevdet-cpp'),
    ),
    ('FlashOcc, trt-plugin', f'{STREAMS}/FlashOcc/flashocc_r50.py', dict(contract='trt-plugin')),
    ('FlashOcc, trt-argmax', f'{STREAMS}/FlashOcc/flashocc_r50.py', dict(contract='trt-argmax')),
    ('VAD, autoware', f'{STREAMS}/VAD/VAD_tiny_stage_2.py', dict(contract='autoware')),
    ('Sparse4D, deploy', f'{STREAMS}/Sparse4D/sparse4d_toy.py', dict(contract='deploy')),
    ('FCOS3D, full', f'{STREAMS}/Monocular/fcos3d_toy.py', dict(dynamic=True)),
    ('ImVoxelNet, full', f'{STREAMS}/ImVoxelNet/imvoxelnet_toy.py', dict(dynamic=True)),
]
"""Heading, config, options; the READMEs of `SYSTEMS` have their default contracts."""
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    'bevdet': (f'{STREAMS}/BEVDet/bevdet_r50_4dlongterm_depth_cbgs.py', {}),
    'bevformer': (f'{STREAMS}/BEVFormer/bevformer_tiny.py', {}),
    'bevfusion': (f'{STREAMS}/BEVFusion/bevfusion_camera_lidar_r50_nus.py', {}),
    'flashocc': (f'{STREAMS}/FlashOcc/flashocc_panoptic_r50.py', {}),
    'petr': (f'{STREAMS}/PETR/petrv2_vovnet_gridmask_p4_800x320.py', {}),
    'rtdetr': ('configs/rtdetr/rtdetr_r50vd.py', dict(dynamic=True)),
    'sparse4d': (f'{STREAMS}/Sparse4D/sparse4dv3_temporal_r50_1x8_bs6_256x704.py', {}),
    'sparsedrive': (f'{STREAMS}/SparseDrive/sparsedrive_small_stage2.py', {}),
    'streampetr': (f'{STREAMS}/StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e.py', {}),
    'vad': (f'{STREAMS}/VAD/VAD_tiny_stage_2.py', {}),
}
"""Folder in one of `FOLDERS` -> config and options of the files in its README."""
FOLDERS = ROOT / 'projects/driving/mm2onnx_driving', ROOT / 'mmdeploy_ext/families'
CAMERAS = ('bevdet', 'bevformer', 'petr', 'sparse4d', 'sparsedrive', 'streampetr')
"""Systems with a table of their own in `CAMERA_PAGE`."""


def specs(config: str, chosen: dict[str, Any]) -> list[tuple[str, GraphSpec]]:
    """Return name and spec of each graph of a config's files."""
    from mmdeploy_ext.families import detector as models
    from mmdeploy_ext.families.contracts import contract_of

    model = models.read_config(str(ROOT / config))
    models.build(model)
    family = model.family
    options = models.check_options(family.choose(opset=0, **chosen), model.cfg, family, model.model)
    return [
        (graph.name, graph.spec) for graph in contract_of(family, options).graphs(model.model.eval(), options)
    ]


def row(side: str, tensor: TensorSpec) -> list[str]:
    """Return the cells of a tensor."""
    shape = 'x'.join(map(str, tensor.axes)) or 'scalar'
    notes = [tensor.unit] if tensor.unit else []
    if tensor.default is not None:
        notes.append(f'default {tensor.default:g}')
    meaning = f'{tensor.meaning} ({", ".join(notes)})' if notes else tensor.meaning
    return [f'`{tensor.name}`', side, tensor.dtype, shape, meaning.strip()]


def grouped(rows: list[list[str]]) -> list[list[str]]:
    """Return the rows of a graph: one for numbered tensors (`reg_0`, `reg_1`), one for neighbour lists."""
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    layers: dict[str, dict[str, str]] = {}
    for cells in rows:
        name, side, dtype, _, meaning = cells
        layer, dot, tensor = name.strip('`').partition('.')
        base = re.sub(r'_\d+`$', '', name)
        if dot and not meaning:
            layers.setdefault(layer, {})[f'`{tensor}` {dtype}'] = ''
        else:
            groups.setdefault((base, side, dtype), []).append(cells)
    merged = []
    for (_, side, dtype), members in groups.items():
        name, shapes, meaning = members[0][0], [cells[3] for cells in members], members[0][4]
        if len(members) > 1:
            name = f'{name} to `{members[-1][0].rpartition("_")[2]}'
            meaning = re.sub(r'\b0\b', 'i', meaning)
        merged.append([name, side, dtype, ', '.join(shapes if len(set(shapes)) > 1 else shapes[:1]), meaning])
    if layers:
        tensors = dict.fromkeys(name for of_layer in layers.values() for name in of_layer)
        merged.append(
            ['`LAYER.*`', 'in', '', '', f'neighbours for {", ".join(layers)}: {", ".join(tensors)}']
        )
    return merged


def section(heading: str, config: str, chosen: dict[str, Any]) -> str:
    """Return a heading and a table for each graph."""
    parts = [f'## {heading}\n\n`{config}`\n']
    for name, spec in specs(config, chosen):
        rows = [row('in', tensor) for tensor in spec.inputs] + [row('out', tensor) for tensor in spec.outputs]
        parts.append(f'`{name}`:\n\n{table(HEADINGS, grouped(rows))}')
    return '\n'.join(parts)


def of_system(config: str, chosen: dict[str, Any]) -> str:
    """Return the table of a README; tensors without a meaning are left to the page of contracts."""
    rows = []
    for name, spec in specs(config, chosen):
        tensors = [('in', tensor) for tensor in spec.inputs] + [('out', tensor) for tensor in spec.outputs]
        listed = grouped([row(side, tensor) for side, tensor in tensors if tensor.meaning])
        for cell, side, dtype, shape, meaning in listed:
            rows.append([f'`{name}`', side, cell, shape, dtype, meaning])
    return f'`{config}`:\n\n{table(("file", "side", "tensor", "shape", "dtype", "meaning"), rows)}'


def of_camera_model(config: str, chosen: dict[str, Any]) -> str:
    """Return how a model's images are prepared, and the names and shapes of its tensors."""
    from mmdeploy_ext.families import detector as models

    model = models.read_config(str(ROOT / config))
    rule = model.family.preprocess_rule(model.cfg)
    (height, width), (top, left) = rule.size, rule.crop
    order = 'RGB' if rule.to_rgb else 'BGR'
    normalise = f'normalise as {order} (mean {numbers(rule.mean)}, std {numbers(rule.std)})'
    resize = f'resize {size(rule.source)} to {size(rule.resized)}'
    if rule.normalised_first:
        steps = [normalise, f'{resize} (OpenCV, bilinear)']
    else:
        steps = [
            f'{resize} (Pillow, bicubic)',
            f'crop {height}x{width} at row {top}, column {left}',
            normalise,
        ]
    if rule.input_size != rule.size:
        steps.append(f'pad bottom and right to {size(rule.input_size)}')
    cameras = ', '.join(name.removeprefix('CAM_') for name in rule.cameras)
    rows = [
        [f'`{name}`', *(tensors_of(side) for side in (spec.inputs, spec.outputs))]
        for name, spec in specs(config, chosen)
    ]
    return (
        f'`{Path(config).name}`: {"; ".join(steps)}. Cameras: {cameras}.\n\n'
        f'{table(("file", "inputs", "outputs"), rows)}'
    )


def size(sides: tuple[int, int]) -> str:
    return f'{sides[0]}x{sides[1]}'


def numbers(values: tuple[float, ...]) -> str:
    return ' '.join(f'{value:g}' for value in values)


def tensors_of(tensors: Iterable[TensorSpec]) -> str:
    cells = grouped([row('', tensor) for tensor in tensors])
    return ', '.join(f'{name} {shapes}' for name, _, _, shapes, _ in cells)


def main() -> None:
    """Write the page and the tables of the READMEs."""
    compat.apply()
    write_between(PAGE, 'contracts', '\n' + '\n'.join(section(*one) for one in ROWS))
    for name, (config, chosen) in SYSTEMS.items():
        page = next(path for folder in FOLDERS if (path := folder / name / 'README.md').is_file())
        write_between(page, 'tensors', f'\n{of_system(config, chosen)}\n')
        if name in CAMERAS:
            write_between(CAMERA_PAGE, name, f'\n{of_camera_model(config, chosen)}\n')


if __name__ == '__main__':
    main()
