"""A small detector of cameras in plain PyTorch, whose head reads metas in the ways that parts can be cut."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from mmcv.cnn import Conv2d
from torch import nn

from mmdeploy_ext.base.source_code import model_classes
from mmdeploy_ext.exporting.copy import prepare


class Head(nn.Module):
    """Projects features by `lidar2img`; `how` says what else it does with its arguments."""

    def __init__(self, how: str = '') -> None:
        super().__init__()
        self.linear, self.how = nn.Sequential(nn.Linear(4, 4)), how
        self.memory = None

    def forward(self, feats, img_metas):
        matrices = np.asarray([meta['lidar2img'] for meta in img_metas])
        if self.how == 'numpy':
            matrices = np.linalg.inv(matrices)
        projection = feats[0].new_tensor(matrices)
        if self.how == 'two forms':
            self.linear.double()(feats[0].double().mean((2, 3)))
            self.linear.float()
        out = self.linear(feats[0].mean((2, 3))) @ projection[0]
        if self.how == 'after':
            out = out @ feats[0].new_tensor(np.asarray([meta['after'] for meta in img_metas]))[0]
        if self.how == 'constant':
            out = out * img_metas[0]['scale']
        if self.how == 'inplace':
            feats[0].mul_(2)
        if self.how == 'memory':
            out = out if self.memory is None else out + self.memory
            self.memory = out
        out = self.changed(out, feats, img_metas)
        if self.how == 'operator':
            out = torch.linalg.svd(out)[1]
        return dict(logits=out)

    def changed(self, out, feats, img_metas):
        if self.how == 'rig':  # linspace of a size enters torch only where it is traced
            steps = torch.linspace(0.0, 1.0, feats[0].shape[3]).mean()
            for weight, key in enumerate(('ego2global', 'lidar2ego')):
                out = out + (weight + steps) * out @ feats[0].new_tensor(img_metas[0][key])
        out = self.of_one_rig(out, feats, img_metas)
        if self.how == 'random':
            out = out + torch.rand_like(out) + torch.empty_like(out).normal_()
        if self.how == 'numpy random':
            out = out + feats[0].new_tensor(np.random.rand(4))
        if self.how == 'volume':  # ONNX samples volumes since opset 20
            grid = out[None, None, None, :, :3]
            out = out + nn.functional.grid_sample(feats[0][None, :1], grid, align_corners=False).mean()
        if self.how == 'nan':
            out = out * float('nan')
        if self.how == 'large' and feats[0].shape[2] > 8:
            out = -out
        if self.how == 'number':
            out = out + float(feats[0].sum())
        return out

    def of_one_rig(self, out, feats, img_metas):
        if self.how == 'visible':  # BEVFormer's lists of the points that a camera sees
            seen = (feats[0].new_tensor(img_metas[0]['lidar2ego']) > 0.99).nonzero()
            out = out + len(seen)
        if self.how == 'order':
            out = out + int(torch.as_tensor(img_metas[0]['order'])[0])
        return out


class Regions(nn.Module):
    """A second stage whose methods are called, as MV2D's and StageInteractor's `roi_head`."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))])

    def simple_test(self, logits):
        for stage in self.stages:
            logits = stage(logits)
        return logits, self.described(logits)

    def described(self, logits):
        return logits.numpy()


class Detector(nn.Module):
    """Backbone, neck and head; `between` is code between backbone and neck."""

    def __init__(self, how: str = '') -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.neck = Conv2d(4, 4, 1)  # exported as torch's, which names its argument otherwise
        self.head = Head(how)
        self.regions = Regions()
        if how == 'skip':
            self.skip = nn.Conv2d(4, 4, 1)

    def extract_feat(self, img):
        feats = self.backbone(img)
        if self.head.how == 'between':
            feats = feats * 2
        if self.head.how == 'bright' and img.mean() > 0.7:
            feats = feats - 1
        if self.head.how == 'skip':
            return [self.neck(feats) + self.skip(feats)]
        return [self.neck(feats)]

    def forward(self, img, img_metas, return_loss=False):
        results = self.head(self.extract_feat(img), img_metas)
        if self.head.how == 'regions':
            results['regions'] = self.regions.simple_test(results['logits'])[0]
        return results


@dataclasses.dataclass
class ToyDeployment:
    """Stands for `ModelFactory`: makes the detector in its fresh state."""

    how: str = ''
    config = checkpoint = 'toy'

    @property
    def pristine(self):
        return self.make()

    def make(self):
        return Detector(self.how).eval().requires_grad_(False)

    def make_prepared(self):
        return prepare(self.make())

    def facts(self):
        classes = [entry.to_json() for entry in model_classes(self.make())]
        return dict(config='toy', config_sha256='', checkpoint_sha256='', classes=classes)


def samples(sizes=(8, 8, 8)):
    """Return a sample per size, with metas that differ."""
    result = []
    for seed, size in enumerate(sizes):
        rng = np.random.default_rng(seed)
        lidar2img, after = np.eye(4) + rng.random((4, 4)), rng.random((4, 4))
        meta = dict(lidar2img=lidar2img, after=after, scale=1.0 + seed, filename=f'{seed}.jpg')
        meta |= dict(ego2global=np.eye(4), lidar2ego=np.eye(4), order=np.array([2, 0, 1, 3]))
        img = torch.from_numpy(rng.random((1, 3, size, 8), dtype=np.float32))
        result.append(dict(img=img, img_metas=[meta]))
    return result
