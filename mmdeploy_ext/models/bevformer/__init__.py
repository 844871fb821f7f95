"""BEVFormer: a bird's-eye view that attends to its predecessor and to all cameras; test time alone."""
