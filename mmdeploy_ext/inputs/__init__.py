"""How pictures, camera rigs and sweeps become inputs: rules that the metadata keeps. No torch, no mmcv."""
