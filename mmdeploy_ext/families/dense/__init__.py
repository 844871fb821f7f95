"""Dense one-stage heads: registers their family; mmdet's own detectors and heads are used as they are."""
