"""One claim: the file computes what PyTorch's model computes."""
