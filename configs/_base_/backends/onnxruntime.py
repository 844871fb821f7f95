# Exports when the file is missing or stale, checks it against the dump of the _pth run, evaluates.
backend_config = dict(type='OnnxRuntimeBackend', postprocess='full', providers=['CPUExecutionProvider'])
