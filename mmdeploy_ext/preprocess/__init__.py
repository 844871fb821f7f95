"""Preprocessing rules of pictures, camera rigs and sweeps, which metadata keep. No torch, no mmcv."""
