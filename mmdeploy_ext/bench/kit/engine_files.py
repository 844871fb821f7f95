"""Programs and commands in a kit that run its inputs."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext.bench.kit import runners
from mmdeploy_ext.bench.kit.contents import KIT_HASH, LIBSPCONV, KitGraph

RUNNERS = Path(runners.__file__).parent
SPARSE_RUNNER = 'run_libspconv.cpp'
DETECT = 'detect.cpp'
TRTEXEC = 'run_trtexec.sh'
TRITON = 'config.pbtxt'
TRITON_TYPES = dict(
    float32='FP32', float16='FP16', float64='FP64', int64='INT64', int32='INT32', uint8='UINT8', int8='INT8'
)
"""numpy's dtype -> Triton's without TYPE_."""


def write_engine_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the runners and `run_trtexec.sh`, or the runner of a sparse backbone."""
    if manifest.get('engine') == LIBSPCONV:
        shutil.copyfile(RUNNERS / SPARSE_RUNNER, folder / SPARSE_RUNNER)
        return
    for program in sorted(RUNNERS.glob('run_*')):
        if program.name != SPARSE_RUNNER:
            shutil.copyfile(program, folder / program.name)
    (folder / TRTEXEC).write_text(trtexec_script(manifest), encoding='utf-8')
    for graph in map(KitGraph.from_json, manifest['graphs']):
        name = TRITON if len(manifest['graphs']) == 1 else f'{graph.name}.{TRITON}'
        (folder / name).write_text(triton_config(graph), encoding='utf-8')
        if 'num_dets' in graph.spec.output_names and graph.spec.inputs[0].pixels is not None:
            shutil.copyfile(RUNNERS / DETECT, folder / DETECT)


def shapes_of(case: Mapping[str, Any]) -> str:
    """Shapes of a case's inputs for trtexec, 'img:1x3x64x64,time:1'; without scalars."""
    inputs = case['inputs'].items()
    return ','.join(
        f'{name}:{"x".join(map(str, entry["shape"]))}' for name, entry in inputs if entry['shape']
    )


def is_dynamic(graph: KitGraph) -> bool:
    """Whether an engine has to be told sizes of inputs."""
    return any(tensor.dynamic_axes for tensor in graph.spec.inputs)


def shape_ranges(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """'min', 'opt' (the first case) and 'max' -> input -> shape."""
    ranges: dict[str, dict[str, list[int]]] = {}
    for option, choose in (('min', min), ('opt', None), ('max', max)):
        ranges[option] = {}
        for name, entry in cases[0]['inputs'].items():
            sides = [case['inputs'][name]['shape'] for case in cases]
            shape = [choose(axis) for axis in zip(*sides, strict=True)] if choose else entry['shape']
            if shape:
                ranges[option][name] = list(shape)
    return ranges


def triton_config(graph: KitGraph) -> str:
    """Triton's model configuration; the first axis is one of the tensor's own sizes."""
    lines = [
        f'name: "{graph.name}"',
        'backend: "onnxruntime"',
        f'default_model_filename: "{Path(graph.file).name}"',
        'max_batch_size: 0',
    ]
    for side, tensors in (('input', graph.spec.inputs), ('output', graph.spec.outputs)):
        for tensor in tensors:
            kind = TRITON_TYPES.get(tensor.dtype, tensor.dtype.upper())
            sizes = ', '.join(str(axis) if isinstance(axis, int) else '-1' for axis in tensor.axes)
            lines.append(f'{side} [{{ name: "{tensor.name}", data_type: TYPE_{kind}, dims: [{sizes}] }}]')
    return '\n'.join([*lines, ''])


def trtexec_script(manifest: Mapping[str, Any]) -> str:
    """Shell script that builds an engine per file and runs all cases."""
    lines = [
        '#!/bin/sh',
        '# Run the inputs of this kit in TensorRT: sh run_trtexec.sh OUTPUTS [FLAG...]',
        '# FLAGs go to the build: --noTF32 for float32. The file decides the precision: for half precision,',
        '# write a file with `mm2onnx precision`. TensorRT 10 needs --stronglyTyped for it. Afterwards:',
        "# mm2onnx judge KIT OUTPUTS --told 'DEVICE, TensorRT VERSION' [--precision fp16]",
        'set -e',
        'typed=; if trtexec --help 2>&1 | grep -q -e --stronglyTyped; then typed=--stronglyTyped; fi',
        'outputs=$1; shift; mkdir -p "$outputs"; outputs=$(cd "$outputs" && pwd); cd "$(dirname "$0")"',
    ]
    for entry in manifest['graphs']:
        graph = KitGraph.from_json(entry)
        cases = [case for case in manifest['cases'] if case['graph'] == graph.name]
        engine = f'"$outputs"/{shlex.quote(graph.name)}.engine'
        words = [f'--onnx={graph.file}']
        if is_dynamic(graph):
            for option, shapes in shape_ranges(cases).items():
                texts = (f'{name}:{"x".join(map(str, shape))}' for name, shape in shapes.items())
                words.append(f'--{option}Shapes={",".join(texts)}')
        lines.append(f'trtexec {shlex.join(words)} --saveEngine={engine} $typed "$@"')
        for case in cases:
            loaded = ','.join(f'{name}:{entry["file"]}' for name, entry in case['inputs'].items())
            words = [f'--loadInputs={loaded}', '--iterations=1', '--duration=0', '--warmUp=0']
            if is_dynamic(graph):
                words.append(f'--shapes={shapes_of(case)}')
            results = f'--exportOutput="$outputs"/{case["name"]}.json'
            lines.append(f'trtexec --loadEngine={engine} {shlex.join(words)} {results}')
    lines.append(f'cp {KIT_HASH} "$outputs/{KIT_HASH}"')
    return '\n'.join([*lines, ''])
