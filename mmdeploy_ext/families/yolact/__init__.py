"""YOLACT: its family, graph and runtime; mmdet's own detector and heads are used as they are."""
