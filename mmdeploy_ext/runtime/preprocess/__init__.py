"""Preprocessing rules for pictures, camera rigs and sweeps, stored in metadata. No torch, no mmcv."""

from pathlib import Path

DEFAULT_PICTURE = Path(__file__).with_name('toy.jpg')
