# Exports when the files are missing or stale, checks them against the dump of the _pth run, evaluates.
backend_config = dict(type='OnnxRuntimeBackend', contract='deploy', providers=['CPUExecutionProvider'])
