"""YOLACT: registers its family; mmdet's own detector and heads are used as they are."""
