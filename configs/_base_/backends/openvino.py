# The same file through OpenVINO (pip install openvino).
backend_config = dict(type='OpenVinoBackend', postprocess='full')
