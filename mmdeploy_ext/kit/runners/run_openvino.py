"""Run the inputs of this kit in OpenVINO: python run_openvino.py OUTPUTS [DEVICE [PRECISION]].

DEVICE is CPU, GPU or NPU; PRECISION is f32, f16 or bf16, in which the device computes (default: f32). Needs
numpy and openvino. Afterwards, where mm2onnx is: mm2onnx judge KIT OUTPUTS --told 'DEVICE, OpenVINO'.
"""

import sys
from collections.abc import Callable
from pathlib import Path


def open_file(path: Path, device: str = 'CPU', precision: str = 'f32') -> Callable[[dict], dict]:
    """Return a function from inputs to outputs of an ONNX file, both dicts of arrays by name.

    `device` and `precision` are those of the command line. OpenVINO raises a RuntimeError here for a file or
    device that it cannot take, and in the function for inputs that do not fit; inputs that no node reads may
    be there.
    """
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
