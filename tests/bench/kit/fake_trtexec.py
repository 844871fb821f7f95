"""A stand-in for trtexec that runs engines in ONNX Runtime: it takes the options of kits, and no others."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

FLAGS = {'--noTF32', '--stronglyTyped', '--iterations=1', '--duration=0', '--warmUp=0'}
DTYPES = {'tensor(float)': np.float32, 'tensor(double)': np.float64, 'tensor(int64)': np.int64}


def pairs(text):
    """Return name -> value of 'a:1x3,b:2', as trtexec reads lists of inputs."""
    return dict(entry.rsplit(':', 1) for entry in text.split(',')) if text else {}


def main(words):
    if words == ['--help']:
        print('  --stronglyTyped  Create a strongly typed network')
        return
    options = dict(word.split('=', 1) for word in words if word not in FLAGS)
    if '--onnx' in options:
        shapes = {key: pairs(options.get(f'--{key}Shapes', '')) for key in ('min', 'opt', 'max')}
        assert '--stronglyTyped' in words
        engine = dict(onnx=str(Path(options['--onnx']).resolve()), shapes=shapes)
        Path(options['--saveEngine']).write_text(json.dumps(engine))
        return
    engine = json.loads(Path(options['--loadEngine']).read_text())
    session = onnxruntime.InferenceSession(engine['onnx'])
    shapes, files = pairs(options.get('--shapes', '')), pairs(options['--loadInputs'])
    feeds = {}
    for value in session.get_inputs():
        values = np.fromfile(files[value.name], DTYPES[value.type])
        shape = [int(size) for size in shapes[value.name].split('x')] if shapes else value.shape
        for key, fits in (('min', np.less_equal), ('max', np.greater_equal)):
            side = engine['shapes'][key].get(value.name)
            assert not shapes or fits([int(size) for size in side.split('x')], shape).all(), (key, side)
        feeds[value.name] = values.reshape(shape)
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, feeds), strict=True))
    entries = [
        dict(name=name, dimensions='x'.join(map(str, array.shape)), values=array.ravel().tolist())
        for name, array in outputs.items()
    ]
    Path(options['--exportOutput']).write_text(json.dumps(entries))


main(sys.argv[1:])
