"""Preprocessing rules of pictures, camera rigs and sweeps, which metadata keep. No torch, no mmcv."""

from pathlib import Path

DEFAULT_PICTURE = Path(__file__).with_name('toy.jpg')
"""What is traced, and compared on, where a user names no picture: `demo/toy.jpg` of a checkout."""
