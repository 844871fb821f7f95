"""What the benchmark of the whole product measures: a list of cases, each of them data."""

from __future__ import annotations

import dataclasses

EXPORT = 'tools/deployment/pytorch2onnx.py {config} {checkpoint} --output-file {out}'
SIZED = f'{EXPORT} --shape {{shape}}'
QUANTISED = (
    'tools/deployment/quantize.py {{{key}}} --calibrate {{pictures}}/train2017 --rounds 0 --output {{out}}'
)


@dataclasses.dataclass(frozen=True)
class Step:
    """A file or folder that a case needs, and the command that makes it.

    Attributes:
        key: of the step; `{key}` in later commands is its path.
        name: of the file or folder, in the folder of the case.
        command: words after `python`; {config}, {checkpoint}, {shape}, {out} and earlier keys are put in.
        label: of its rows in the tables; '' of what is not measured itself.
        precision: of its weights.
        shared: whether all cases share it, in a folder of its own.
    """

    key: str
    name: str
    command: str
    label: str = ''
    precision: str = 'fp32'
    shared: bool = False


CHECKPOINT = Step('checkpoint', 'seeded.pth', '-m mmdeploy_ext synthetic weights {config} {out}')
PICTURES = Step(
    'pictures',
    'toy_coco',
    '-m mmdeploy_ext synthetic coco --out {out} --train-images 8 --val-images 1',
    shared=True,
)
RAW = Step('raw', 'raw.onnx', f'{SIZED} --postprocess raw', 'raw')
FULL = Step('full', 'full.onnx', f'{SIZED} --postprocess full', 'full')
RAW_INT8 = Step('raw_int8', 'raw.int8.onnx', QUANTISED.format(key='raw'), 'raw, INT8', 'int8')
FULL_INT8 = Step('full_int8', 'full.int8.onnx', QUANTISED.format(key='full'), 'full, INT8', 'int8')
RAW_HALF = Step(
    'raw_fp16', 'raw.fp16.onnx', f'{SIZED} --postprocess raw --precision fp16', 'raw, fp16', 'fp16'
)
FRAMES = Step(
    'frames',
    'toy_nuscenes',
    '-m mmdeploy_ext synthetic nuscenes --root {out} --train-scenes 1 --val-scenes 1 --frames 4 '
    '--image-size 1600 900',
    shared=True,
)
TOY_FRAMES = dataclasses.replace(
    FRAMES, name='toy_nuscenes_small', command=FRAMES.command.partition(' --image-size')[0]
)
"""In the size that the toys were trained on."""
DEPLOY = Step('deploy', 'deploy', EXPORT, 'deploy contract')
DEPLOY_INT8 = Step(
    'deploy_int8',
    'deploy.int8',
    'tools/deployment/quantize.py {deploy} --calibrate {frames}/samples --images 4 --rounds 0 --output {out}',
    'deploy contract, INT8',
    'int8',
)
DEPLOY_HALF = Step(
    'deploy_fp16', 'deploy.fp16', f'{EXPORT} --precision fp16', 'deploy contract, fp16', 'fp16'
)
FORK = Step(
    'fork',
    'fork.onnx',
    f'{EXPORT} --contract fork --fork-img2lidar depth --opset-version 11',
    "fork's contract",
)
PORTABLE = Step(
    'portable',
    'portable.onnx',
    'tools/deployment/export_scn.py {config} {checkpoint} --target portable --output-file {out}',
    'portable',
)
IMAGE_STEPS = (CHECKPOINT, PICTURES, RAW, FULL, RAW_INT8, RAW_HALF)
"""Of a detector of single images. A row of another precision is one more step here."""
PLAIN_STEPS = (CHECKPOINT, RAW, FULL)
"""Of a detector of one stage of which float files are measured."""
STREAM_STEPS = (CHECKPOINT, FRAMES, DEPLOY, FORK, DEPLOY_INT8, DEPLOY_HALF)
SPARSE_STEPS = (CHECKPOINT, PORTABLE)
INFOS = Step(
    'infos',
    'infos',
    'tools/create_data.py nuscenes --root-path {frames} --out-dir {out}',
    shared=True,
)
RIG = Step('rig', 'portable', EXPORT, 'portable')
RIG_INT8 = Step(
    'rig_int8',
    'portable.int8',
    'tools/deployment/quantize.py {rig} --calibrate {infos}/nuscenes_infos_train.pkl --images 4 '
    '--rounds 0 --output {out}',
    'portable, INT8',
    'int8',
)
RIG_HALF = Step('rig_fp16', 'portable.fp16', f'{EXPORT} --precision fp16', 'portable, fp16', 'fp16')
RIG_STEPS = (CHECKPOINT, FRAMES, INFOS, RIG, RIG_INT8)
VIEW_STEPS = (CHECKPOINT, RIG)
"""Of BEVFormer, PETR and PETRv2, of which one contract is measured."""
REGION_STEPS = (CHECKPOINT, PICTURES, FULL, FULL_INT8)
"""Of a detector of two stages, whose one form has its results."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One model that is measured.

    Attributes:
        name: on the command line.
        title: of its section.
        config: path.
        kind: 'images', 'stream' or 'sparse'.
        steps: what is made before, in this order.
        shape: height and width of the input, where the kind has them.
        checkpoint: path of trained weights; '' takes those of the step `checkpoint`.
        options: more words for `benchmark.py`.
        sweeps: whether real sweeps stand in for generated ones where they are given.
    """

    name: str
    title: str
    config: str
    kind: str
    steps: tuple[Step, ...]
    shape: tuple[int, int] | None = None
    checkpoint: str = ''
    options: tuple[str, ...] = ()
    sweeps: bool = False

    @property
    def files(self) -> tuple[Step, ...]:
        """The steps whose files are measured."""
        return tuple(step for step in self.steps if step.label)


def _image(
    name: str, title: str, config: str, shape: tuple[int, int], steps: tuple[Step, ...] = IMAGE_STEPS
) -> Case:
    return Case(name, title, config, 'images', steps, shape)


def _toy(case: Case, config: str, name: str) -> Case:
    """Return a case with the small trained model of its family, in the smallest size that tells anything."""
    steps = tuple(TOY_FRAMES if step is FRAMES else step for step in case.steps if step is not CHECKPOINT)
    title = f'{case.title.split(",")[0].split(" R")[0]}, toy'
    shape = case.shape and (128, 160)
    checkpoint = f'demo/checkpoints/{name}.pth'
    return dataclasses.replace(
        case, name=name, title=title, config=config, steps=steps, shape=shape, checkpoint=checkpoint
    )


STREAM_R50 = 'projects/configs/StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e.py'
BEV = 'projects/configs/BEVFusion'
MMDET = 'configs/mmdet'
VOXELS = ('--voxels', '60000', '--no-racing')
CASES = (
    _image('atss_r50', 'ATSS R50, 608x608', 'configs/atss/atss_coco.py', (608, 608)),
    _image('solov2_r34', 'SOLOv2 light R34, 448x672', 'configs/solov2/solov2_light_r34.py', (448, 672)),
    _image('solov2_r50', 'SOLOv2 R50, 800x1344', 'configs/solov2/solov2_r50.py', (800, 1344)),
    _image(
        'decoupled_solo_r50',
        'Decoupled SOLO light R50, 512x864',
        'configs/solo/decoupled_solo_light_r50.py',
        (512, 864),
    ),
    _image('rtdetr_r18', 'RT-DETR R18vd, 640x640', 'configs/rtdetr/rtdetr_r18vd.py', (640, 640)),
    _image('rtdetr_r50', 'RT-DETR R50vd, 640x640', 'configs/rtdetr/rtdetr_r50vd.py', (640, 640)),
    _image('retinanet_r50', 'RetinaNet R50, 800x1344', f'{MMDET}/retinanet_r50.py', (800, 1344), PLAIN_STEPS),
    _image('fcos_r50', 'FCOS R50, 800x1344', f'{MMDET}/fcos_r50.py', (800, 1344), PLAIN_STEPS),
    _image('yolox_s', 'YOLOX-s, 640x640', f'{MMDET}/yolox_s.py', (640, 640), PLAIN_STEPS),
    _image('ssd300', 'SSD300, 300x300', f'{MMDET}/ssd300.py', (300, 300), PLAIN_STEPS),
    _image(
        'faster_rcnn_r50',
        'Faster R-CNN R50, 800x1344',
        f'{MMDET}/faster_rcnn_r50.py',
        (800, 1344),
        REGION_STEPS,
    ),
    _image(
        'mask_rcnn_r50',
        'Mask R-CNN R50, 800x1344',
        f'{MMDET}/mask_rcnn_r50.py',
        (800, 1344),
        REGION_STEPS,
    ),
    _image(
        'deformable_detr_r50',
        'Deformable DETR R50, 800x1344',
        f'{MMDET}/deformable_detr_r50.py',
        (800, 1344),
        (CHECKPOINT, FULL),
    ),
    _image(
        'mask2former_r50',
        'Mask2Former R50, 800x1344',
        f'{MMDET}/mask2former_r50.py',
        (800, 1344),
        (CHECKPOINT, FULL),
    ),
    Case('streampetr_r50', 'StreamPETR R50, six cameras of 704x256', STREAM_R50, 'stream', STREAM_STEPS),
    Case(
        'bevformer_tiny',
        'BEVFormer tiny, six cameras of 800x480',
        'projects/configs/BEVFormer/bevformer_tiny.py',
        'stream',
        VIEW_STEPS,
    ),
    Case(
        'petr_r50',
        'PETR R50-DCN, six cameras of 1408x512',
        'projects/configs/PETR/petr_r50dcn_gridmask_p4.py',
        'stream',
        VIEW_STEPS,
    ),
    Case(
        'petrv2_vovnet',
        'PETRv2 VoVNet-99, six cameras of 800x320',
        'projects/configs/PETR/petrv2_vovnet_gridmask_p4_800x320.py',
        'stream',
        VIEW_STEPS,
    ),
    Case(
        'sparse4d_r50',
        'Sparse4D v3 R50, six cameras of 704x256',
        'projects/configs/Sparse4D/sparse4dv3_temporal_r50_1x8_bs6_256x704.py',
        'stream',
        (*RIG_STEPS, RIG_HALF),
    ),
    Case(
        'bevfusion_r50',
        'BEVFusion R50, six cameras of 704x256 and a sweep',
        f'{BEV}/bevfusion_camera_lidar_r50_nus.py',
        'stream',
        RIG_STEPS,
        sweeps=True,
    ),
    Case(
        'bevfusion',
        'BEVFusion, sparse LiDAR backbone',
        f'{BEV}/bevfusion_lidar_0075voxel_nus.py',
        'sparse',
        SPARSE_STEPS,
        options=VOXELS,
        sweeps=True,
    ),
    Case(
        'centerpoint',
        'CenterPoint, sparse LiDAR backbone',
        f'{BEV}/centerpoint_0075voxel_second_secfpn_nus.py',
        'sparse',
        SPARSE_STEPS,
        options=VOXELS,
        sweeps=True,
    ),
)
"""All families at full size, weights by a seeded rule."""

_CASES = {case.name: case for case in CASES}
TOYS = (
    _toy(_CASES['atss_r50'], 'configs/demo/atss_toy.py', 'atss_toy'),
    _toy(_CASES['solov2_r34'], 'configs/demo/solov2_toy.py', 'solov2_toy'),
    _toy(_CASES['decoupled_solo_r50'], 'configs/demo/decoupled_solo_toy.py', 'decoupled_solo_toy'),
    _toy(_CASES['rtdetr_r18'], 'configs/demo/rtdetr_toy.py', 'rtdetr_toy'),
    _toy(_CASES['streampetr_r50'], 'projects/configs/StreamPETR/stream_petr_toy.py', 'stream_petr_toy'),
    dataclasses.replace(
        _toy(_CASES['centerpoint'], f'{BEV}/centerpoint_toy.py', 'centerpoint_toy'),
        options=('--voxels', '500', '--no-racing'),
    ),
)
"""The small trained models of the repository: the same way through, in minutes."""
