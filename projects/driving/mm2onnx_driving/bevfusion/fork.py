"""mit-han-lab/bevfusion and its forks: translation of their configs; their code as reference."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import os
import pickle
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv import Config
from mmcv.parallel import DataContainer

import mmdeploy_ext
from mm2onnx_driving.bevfusion.fusion import lidar_columns
from mm2onnx_driving.bevfusion.graphs import TABLES, transform_of
from mm2onnx_driving.bevfusion.reference import (
    NAMES,
    BEVFusionReference,
    rows_of,
    values_of_boxes,
)
from mmdeploy_ext.base import plain_pickle
from mmdeploy_ext.base.config import check_steps
from mmdeploy_ext.base.errors import ConfigError, InferenceError
from mmdeploy_ext.base.user_modules import user_folders
from mmdeploy_ext.runtime.calibration import MATRICES
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import FusedFrame, StepResult
from mmdeploy_ext.upstream.models import catalogue
from mmdeploy_ext.upstream.weights.sparse_checkpoint import decide_layouts, find_kernels

PROGRAM = 'mm2onnx_driving.bevfusion.fork_process'
MARK = Path('mmdet3d', 'models', 'fusion_models')
SPARSE_ENCODER = 'encoders.lidar.backbone'
ENCODERS = {'SparseEncoder': 'BEVFusionSparseEncoder'}
META_KEYS = *MATRICES, 'filename', 'sample_idx', 'box_mode_3d', 'box_type_3d'
"""Metadata keys of a sample that the adapted test pipeline collects."""
TRUTH_STEPS = 'LoadRadarPointsMultiSweeps', 'LoadAnnotations3D', 'LoadBEVSegmentation', 'GTDepth'
"""Test pipeline steps that load radar and annotations."""
IGNORED_STEPS = (*TRUTH_STEPS, 'GlobalRotScaleTrans')
"""Test pipeline steps that change neither pictures nor points."""
PICTURE_STEPS = 'LoadMultiViewImageFromFiles', 'ImageAug3D', 'ImageNormalize'
"""Test pipeline steps that read and change pictures."""
IMAGE_KEYS = 'type', 'final_dim', 'resize_lim', 'bot_pct_lim'
"""Supported keys of ImageAug3D; other keys are for training."""
BEAMS = 32
"""Beams of nuScenes' LiDAR; a loader with fewer drops points."""
CONVENTIONS = {
    '0.x': 'mmdet3d 0.x (columns w, l, h; yaw from -y, clockwise)',
    '1.x': 'mmdet3d 1.x (columns l, w, h; yaw from x, counter-clockwise)',
}
"""Result of `fork_process.box_convention` -> words for it in a proof."""
JOB = 'root', 'cfg', 'steps', 'checkpoint'


@dataclasses.dataclass
class Fork:
    """The repository of a model.

    Attributes:
        root: folder with its `mmdet3d`.
        cfg: its config as plain values, unchanged.
        steps: test pipeline steps that make pictures, points and matrices.
        checkpoint: path of the weights; '' before they are loaded.
    """

    root: str
    cfg: dict[str, Any]
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    checkpoint: str = ''

    @functools.cached_property
    def process(self) -> ForkProcess:
        return ForkProcess(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Fork:
        return self

    def weights(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return name -> weight of `model`, kernels in the layout of the repository's spconv."""
        weights, shapes = model.state_dict(), self.process.call('weight_shapes', {})
        encoder = model.encoders['lidar'].encoder if 'lidar' in model.sensors else torch.nn.Module()
        kernels = {f'{SPARSE_ENCODER}.{key}': kernel for key, kernel in find_kernels(encoder).items()}
        repository_shapes = {key: tuple(map(int, shapes[key])) for key in kernels if key in shapes}
        for key, layout in decide_layouts(self.root, repository_shapes, kernels, 'auto').items():
            repositorys = dataclasses.replace(kernels[key], layout=layout)
            weights[key] = repositorys.convert(weights[key], kernels[key].layout)
        return weights


def root_of(filename: str | None) -> Path | None:
    folders = user_folders(filename) if filename else [Path.cwd()]
    return next((folder for folder in folders if (folder / MARK).is_dir()), None)


def adapt(cfg: Any) -> None:
    root = root_of(cfg.filename)
    if root is None or 'fork' in cfg or not cfg.model.get('encoders'):
        return
    fork = Fork(str(root), copy.deepcopy(cfg._cfg_dict.to_dict()))
    model, dataset = cfg.model, (cfg.get('data') or {}).get('test') or {}
    lidar, camera = (model.encoders.get(name) for name in ('lidar', 'camera'))
    if lidar:
        if not lidar.pop('voxelize_reduce', True):
            raise ConfigError(
                f'{cfg.filename}: model.encoders.lidar.voxelize_reduce=False; expected True: the mean of '
                'the points of each voxel'
            )
        backbone = lidar.get('backbone') or {}
        if backbone.get('type') in ENCODERS:
            backbone['type'] = ENCODERS[backbone['type']]
    model.encoders = {name: encoder for name, encoder in model.encoders.items() if encoder}
    cfg.model = {key: value for key, value in model.items() if key != 'loss_scale'}
    for head in filter(None, (cfg.model.get('heads') or {}).values()):
        head.pop('train_cfg', None)  # names classes of the repository that training builds
    classes = list(dataset.get('object_classes') or cfg.get('object_classes') or ())
    cfg.class_names = classes
    pipeline = dataset.get('pipeline') or cfg.get('test_pipeline') or []
    check_steps(pipeline, f'{cfg.filename}: the test pipeline')
    steps = [dict(step) for step in pipeline]
    fork.steps = _repository_steps(steps, has_camera=bool(camera))
    test = dict(
        type='FusionNuScenesDataset' if camera else 'NuScenesDataset',
        classes=classes,
        data_root=str(dataset.get('dataset_root') or ''),
        ann_file=dataset.get('ann_file'),
        modality=dict(use_lidar=True, use_camera=bool(camera)),
        pipeline=_pipeline(cfg, steps, classes, has_camera=bool(camera)),
        test_mode=True,
    )
    cfg.data = dict(test=test)
    cfg.fork, cfg.as_read = fork, Config(copy.deepcopy(fork.cfg), filename=cfg.filename)
    catalogue.register_named(cfg)


def _pipeline(cfg: Any, steps: Any, classes: list[str], has_camera: bool) -> list[dict[str, Any]]:
    keys, meta_keys = ['points'], list(META_KEYS[len(MATRICES) + 1 :])
    if has_camera:
        keys, meta_keys = ['img', 'points'], list(META_KEYS)
    endings = dict(
        DefaultFormatBundle3D=dict(class_names=classes, with_label=False),
        Collect3D=dict(keys=keys, meta_keys=meta_keys),
    )
    ignored = IGNORED_STEPS if has_camera else (*IGNORED_STEPS, *PICTURE_STEPS)
    pipeline = []
    for step in steps:
        step_type = step['type']
        if step_type == 'GlobalRotScaleTrans' and step.get('is_train'):
            raise ConfigError(
                f'{cfg.filename}: GlobalRotScaleTrans of the test pipeline has is_train=True, which '
                'rotates and scales points; expected False'
            )
        if step_type in ignored:
            continue
        if step_type in endings:
            pipeline.append(dict(type=step_type, **endings[step_type]))
        elif step_type == 'ImageAug3D':
            pipeline.append({key: step[key] for key in IMAGE_KEYS if key in step})
        elif step_type.startswith('LoadPoints'):
            pipeline += _points_step(cfg, step)
        else:
            pipeline.append(dict(step))
    return pipeline


def _repository_steps(steps: Iterable[dict[str, Any]], has_camera: bool) -> list[dict[str, Any]]:
    ignored = TRUTH_STEPS if has_camera else (*TRUTH_STEPS, *PICTURE_STEPS)
    steps = [copy.deepcopy(step) for step in steps if step['type'] not in ignored]
    for step in steps:
        if step['type'] == 'LoadPointsFromMultiSweeps':
            step['test_mode'] = True
        if step['type'] == 'Collect3D':
            keys = step.get('keys') or ()
            step['keys'] = [key for key in keys if key == 'points' or (has_camera and key == 'img')]
    return steps


def _points_step(cfg: Any, step: Mapping[str, Any]) -> list[dict[str, Any]]:
    values = dict(step)
    beams, augmented = values.pop('reduce_beams', None), values.pop('load_augmented', None)
    if augmented or (beams or BEAMS) < BEAMS:
        raise ConfigError(
            f'{cfg.filename}: {step["type"]} has reduce_beams={beams}, load_augmented={augmented}; '
            f'expected {BEAMS} beams without augmentation'
        )
    if isinstance(values.get('use_dim'), int):
        values['use_dim'] = list(range(values['use_dim']))
    if step['type'] == 'LoadPointsFromMultiSweeps':
        values['test_mode'] = True
        return [] if values.get('sweeps_num') == 0 else [values]
    return [values]


class ForkProcess:
    """A process that runs the model of a repository (`fork_process.py`).

    Attributes:
        folder: temporary folder of the job and of the exchanged arrays.
        close: ends the process, at the latest when this object is collected.
        facts: see `fork_process.ForkModel.facts`.
        operators: compiled operators of the repository that ran in PyTorch so far.
    """

    def __init__(self, fork: Fork) -> None:
        self.fork = fork
        self.folder = tempfile.TemporaryDirectory(prefix='mm2onnx_fork_')
        self.operators: list[str] = []
        job = Path(self.folder.name, 'job.pkl')
        job.write_bytes(pickle.dumps({name: getattr(fork, name) for name in JOB}))
        paths = [fork.root, str(Path(mmdeploy_ext.__file__).parents[1]), os.environ.get('PYTHONPATH', '')]
        self.process = subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-m', PROGRAM, str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths)), 'PYTHONSAFEPATH': '1'},
        )
        self.close = weakref.finalize(self, end_process, self.process, self.folder)
        self.facts = self._answer()

    def call(self, method: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        inputs, outputs = (Path(self.folder.name, name) for name in ('input.npz', 'output.npz'))
        np.savez(inputs, **arrays)
        request = dict(method=method, input=str(inputs), output=str(outputs))
        with contextlib.suppress(BrokenPipeError):  # of a process that ended, which `_answer` tells
            print(json.dumps(request), file=self.process.stdin, flush=True)
        self.operators = self._answer()['operators']
        with np.load(outputs) as results:
            return dict(results)

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        content = (
            json.loads(line)
            if line
            else dict(error=f"the repository's process ended with status {self.process.wait()}")
        )
        if 'error' in content:
            raise InferenceError(f'{self.fork.root}: its own code raised {content["error"]}')
        return content


def end_process(process: subprocess.Popen, folder: tempfile.TemporaryDirectory) -> None:
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):  # what was written last for a process that ended
            stream.close()
    process.wait()
    folder.cleanup()


class RepositoryMoments(torch.utils.data.Dataset):
    """Moments of an info file, prepared by the test pipeline of a repository."""

    picture_rtol = 1e-6
    """Relative to the largest value: torchvision divides twice, a rule multiplies once."""

    def __init__(self, ann_file: str, fork: Fork, data_root: str = '', **ignored: Any) -> None:
        self.ann_file, self.fork, self.data_root = ann_file, fork, data_root
        self.data_infos = plain_pickle.loads(Path(ann_file).read_bytes())['infos']

    def __len__(self) -> int:
        return len(self.data_infos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        moment = self.fork.process.call('moment', dict(infos=self.ann_file, index=index))
        arrays = {name: torch.from_numpy(moment[name]) for name in ('points', 'img') if name in moment}
        names = MATRICES if 'camera2lidar' in moment else ()
        meta = {name: moment[name] for name in names if name in moment}
        containers = {name: DataContainer(array, stack=name == 'img') for name, array in arrays.items()}
        meta['sample_idx'] = self.data_infos[index]['token']
        return dict(containers, img_metas=DataContainer(meta, cpu_only=True))


def with_truth(infos: Path) -> None:
    content = plain_pickle.loads(infos.read_bytes())
    for info in content['infos']:
        info.update(
            location='',
            gt_boxes=np.zeros((0, 7)),
            gt_names=np.zeros(0, str),
            gt_velocity=np.zeros((0, 2)),
            num_lidar_pts=np.zeros(0, np.int64),
            valid_flag=np.zeros(0, bool),
        )
        for camera in info['cams'].values():
            camera.setdefault('camera_intrinsics', camera['cam_intrinsic'])  # its name before 2023
            camera.setdefault('sensor2ego_rotation', [1.0, 0.0, 0.0, 0.0])
            camera.setdefault('sensor2ego_translation', [0.0, 0.0, 0.0])
    infos.write_bytes(pickle.dumps(content))


class ForkReference(BEVFusionReference):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.process = model.fork.process

    def step(self, frame: FusedFrame) -> StepResult:
        images, cloud = self._inputs(frame)
        arrays = {name: frame.calibration[name] for name in MATRICES if name in frame.calibration}
        arrays['points'] = frame.points if cloud is None else cloud[0].cpu().numpy()
        if images is not None:
            arrays['images'] = images[0].cpu().numpy()
        results = self.process.call('step', arrays)
        outputs = {name: results[name] for name in ('bev', 'depth', 'cells') if name in results}
        if 'cells' in outputs:
            tables = transform_of(self.model).pool_tables(torch.from_numpy(outputs['cells']))
            outputs |= {name: table.numpy() for name, table in zip(TABLES, tables, strict=True)}
        return StepResult(outputs, self._detections(results))

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        head = self.model.heads['object']
        if not hasattr(head, 'prediction_heads'):
            return of_head(head.suppress(rows_of(outputs)))
        values = values_of_boxes(outputs, head.bbox_coder, head.num_classes)
        return self._detections(self.process.call('boxes_of', values))

    def _detections(self, results: Mapping[str, np.ndarray]) -> Detections3D:
        boxes = {name: torch.from_numpy(results[key]) for name, key in NAMES.items()}
        if self.process.facts['box_convention'] == '0.x':
            return of_head(boxes)
        order = boxes['scores'].argsort(descending=True, stable=True)
        return Detections3D(*(boxes[name][order].numpy() for name in NAMES))

    @property
    def notes(self) -> list[str]:
        facts = self.process.facts
        convention = facts['box_convention']
        turned = '' if convention == '1.x' else ', converted to mmdet3d 1.x for the comparison'
        lines = [
            f'the reference is the test path of {facts["root"]} in a separate process',
            'the graphs are our implementation with the same weights',
            f'its boxes have the convention of {CONVENTIONS[convention]}{turned}',
            *(f'patched in the reference: {patch["name"]}: {patch["reason"]}' for patch in facts['patches']),
        ]
        if self.process.operators:
            lines.append(
                'operators of the repository that are not compiled ran in PyTorch: '
                f'{", ".join(self.process.operators)}'
            )
        return lines


def of_head(boxes: Mapping[str, torch.Tensor]) -> Detections3D:
    """Return a head's boxes of one sample, best first, in mmdet3d 1.x's columns."""
    order = boxes['scores'].argsort(descending=True, stable=True)
    columns = lidar_columns(boxes['bboxes'][order])
    return Detections3D(columns.numpy(), *(boxes[name][order].numpy() for name in ('scores', 'labels')))
