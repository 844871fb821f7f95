"""SOLO, Decoupled SOLO, SOLOv2: their family, graphs and runtime; mmdet's detectors are used as they are."""
