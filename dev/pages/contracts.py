"""Write docs/reference/contracts.md: the inputs and outputs of every family's files, from the specs.

    python -m dev.pages.contracts

A spec needs the model of a config, without weights. Sizes of the tables are those of the config.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dev.pages.tables import table, write_between
from mmdeploy_ext import compat

if TYPE_CHECKING:
    from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs/reference/contracts.md'
HEADINGS = ('tensor', 'side', 'dtype', 'shape', 'default', 'unit', 'meaning')
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
    ('RT-DETR, full', 'configs/rtdetr/rtdetr_r18vd.py', dict(dynamic=True)),
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
        'StreamPETR, deploy',
        f'{STREAMS}/StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e.py',
        dict(contract='deploy'),
    ),
    (
        'StreamPETR, fork',
        f'{STREAMS}/StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e.py',
        dict(contract='fork'),
    ),
    ('PETRv2, portable', f'{STREAMS}/PETR/petrv2_toy.py', {}),
    ('PETRv2, dl4agx', f'{STREAMS}/PETR/petrv2_toy.py', dict(contract='dl4agx')),
    ('BEVFormer, portable', f'{STREAMS}/BEVFormer/bevformer_tiny.py', {}),
    ('BEVFormer, autoware', f'{STREAMS}/BEVFormer/bevformer_tiny.py', dict(contract='autoware')),
    ('BEVDet, trt-plugin', f'{STREAMS}/BEVDet/bevdet_r50.py', dict(contract='trt-plugin')),
    ('BEVDet4D, portable', f'{STREAMS}/BEVDet/bevdet_r50_4dlongterm_depth_cbgs.py', {}),
    (
        'BEVDet4D, bevdet-cpp',
        f'{STREAMS}/BEVDet/bevdet_r50_4dlongterm_depth_cbgs.py',
        dict(contract='bevdet-cpp'),
    ),
    ('Sparse4D, portable', f'{STREAMS}/Sparse4D/sparse4d_toy.py', {}),
    ('Sparse4D, deploy', f'{STREAMS}/Sparse4D/sparse4d_toy.py', dict(contract='deploy')),
    ('FCOS3D, full', f'{STREAMS}/Monocular/fcos3d_toy.py', dict(dynamic=True)),
    ('ImVoxelNet, full', f'{STREAMS}/ImVoxelNet/imvoxelnet_toy.py', dict(dynamic=True)),
]
"""Heading, config, options."""


def specs(config: str, chosen: dict[str, Any]) -> list[tuple[str, GraphSpec]]:
    """Return name and spec of each graph of a config's files."""
    from mmdeploy_ext import detector as models
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
    default = '' if tensor.default is None else f'{tensor.default:g}'
    return [f'`{tensor.name}`', side, tensor.dtype, shape, default, tensor.unit, tensor.meaning]


def section(heading: str, config: str, chosen: dict[str, Any]) -> str:
    """Return a heading and a table for each graph."""
    parts = [f'## {heading}\n\n`{config}`\n']
    for name, spec in specs(config, chosen):
        rows = [row('in', tensor) for tensor in spec.inputs] + [row('out', tensor) for tensor in spec.outputs]
        parts.append(f'`{name}`:\n\n{table(HEADINGS, rows)}')
    return '\n'.join(parts)


def main() -> None:
    """Write the page."""
    compat.apply()
    write_between(PAGE, 'contracts', '\n' + '\n'.join(section(*one) for one in ROWS))


if __name__ == '__main__':
    main()
