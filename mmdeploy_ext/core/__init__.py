"""What everything rests on: errors, files, configs, command lines, processes. No torch, no mmcv."""
