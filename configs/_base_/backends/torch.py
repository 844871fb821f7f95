# PyTorch through the tensor boundary of the graph; the tensors of the first samples are dumped.
backend_config = dict(type='TorchBackend', postprocess='full', dump=dict(samples=4))
