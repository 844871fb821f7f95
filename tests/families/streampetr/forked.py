"""A toy repository with a plugin of its own, as a folder, and what a process in it prints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import toy_streampetr as toy
import toy_streampetr_export as exported
from projects.configs.nuscenes_stream import image_augmentation, test_pipeline

REPOSITORY = Path(__file__).resolve().parents[3]
FORK = REPOSITORY / 'tests/families/streampetr/fork'
CONFIG = 'projects/configs/toy.py'


def write_streampetr(folder: Path) -> Path:
    """Write a repository like that of StreamPETR, of toy size; return its root."""
    root = folder / 'repository'
    shutil.copytree(FORK, root, ignore=shutil.ignore_patterns('__pycache__'))
    image = image_augmentation((toy.HEIGHT, toy.WIDTH), (0.5, 0.6), source=exported.RULE.source)
    settings = dict(
        plugin=True,
        plugin_dir='projects/mmdet3d_plugin/',
        class_names=[f'class {label}' for label in range(toy.NUM_CLASSES)],
        model=dict(toy.model_cfg(), img_roi_head=None, train_cfg=None),
        test_pipeline=test_pipeline(image),
    )
    text = ''.join(f'{name} = {value!r}\n' for name, value in settings.items())
    (root / CONFIG).parent.mkdir(exist_ok=True)
    (root / CONFIG).write_text(text, encoding='utf-8')
    return root


def verdicts(root: Path, *changes: str) -> dict[str, Any]:
    """Return what `prove.py` prints of a repository, run in its root; our package comes last on the path."""
    command = [sys.executable, 'prove.py', CONFIG, str(root), *changes]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(root), str(REPOSITORY)]))
    outcome = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return json.loads(outcome.stdout.splitlines()[-1])
