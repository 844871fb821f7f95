"""Run the inputs of this kit in OpenVINO: python run_openvino.py OUTPUTS [DEVICE [PRECISION]]."""

import sys
from collections.abc import Callable
from pathlib import Path


def open_file(path: Path, device: str = 'CPU', precision: str = 'f32') -> Callable[[dict], dict]:
    """Return a function from inputs to outputs, both arrays by name."""
    import numpy
    import openvino

    model = openvino.compile_model(path, device, {'INFERENCE_PRECISION_HINT': precision})
    names = {name for port in model.inputs for name in port.names}  # without inputs that nothing uses

    def run(inputs: dict) -> dict:
        results = model({name: array for name, array in inputs.items() if name in names})
        return {name: numpy.array(array) for port, array in results.items() for name in port.names}

    return run


if __name__ == '__main__':
    from run_onnxruntime import main

    main(*sys.argv[1:], opens=open_file)
