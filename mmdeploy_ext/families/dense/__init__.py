"""Dense one-stage heads: their family, graphs and runtime; mmdet's own detectors are used as they are."""
