"""BEVFormer: a bird's-eye view of all cameras that remembers the frame before, and objects found in it."""
