"""The lowest layer: errors, files, configs, command lines, processes. No torch, no mmcv."""
