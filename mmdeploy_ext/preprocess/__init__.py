"""Rules of preprocessing for pictures, camera rigs and sweeps, stored in metadata; no torch, no mmcv."""

from pathlib import Path

DEFAULT_PICTURE = Path(__file__).with_name('toy.jpg')
"""The picture that is traced and proven if the user names none: `demo/toy.jpg` of a checkout."""
