"""SOLO, Decoupled SOLO, SOLOv2: registers their family; mmdet's detectors are used as they are."""
