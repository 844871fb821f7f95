# PyTorch with its state in a boundary of its own; the tensors of the first frames are dumped.
backend_config = dict(type='TorchBackend', dump=dict(frames=4))
