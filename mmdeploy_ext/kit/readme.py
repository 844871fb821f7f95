"""The README of a kit: how it was made, and what to type for each engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.contract.metadata import Metadata


def write_readme(folder: Path, manifest: Mapping[str, Any], metadata: Metadata) -> None:
    """Write README.md into the folder of a kit, from its manifest and the metadata of its ONNX file."""
    versions = ', '.join(f'{name} {version}' for name, version in manifest['made_with'].items() if version)
    spec = metadata.spec
    template = jinja2.Template((Path(__file__).with_name('readme.md.j2')).read_text(encoding='utf-8'))
    text = template.render(
        family=metadata.family,
        form=metadata.form,
        file=manifest['file'],
        count=len(manifest['cases']),
        made_with=versions,
        config=manifest['config'],
        checkpoint=manifest['checkpoint_sha256'],
        inputs=', '.join(f'`{tensor.name}` {tensor.dtype} {tensor.shape_text()}' for tensor in spec.inputs),
        outputs=', '.join(f'`{tensor.name}` {tensor.dtype} {tensor.shape_text()}' for tensor in spec.outputs),
        trtexec=_trtexec(manifest),
        polygraphy=_polygraphy(manifest),
        cases='\n'.join(
            f'| {case["name"]} | {case["title"]} | {_shapes(case)} |' for case in manifest['cases']
        ),
    )
    (folder / 'README.md').write_text(text, encoding='utf-8')


def _shapes(case: Mapping[str, Any]) -> str:
    return ','.join(f'{name}:{"x".join(map(str, entry["shape"]))}' for name, entry in case['inputs'].items())


def _trtexec(manifest: Mapping[str, Any]) -> str:
    """Return the commands of trtexec: one that builds the engine, one per case that runs it."""
    cases = manifest['cases']
    ranges = []
    for option, choose in (('min', min), ('opt', None), ('max', max)):
        shapes = []
        for name, entry in cases[0]['inputs'].items():
            sides = [case['inputs'][name]['shape'] for case in cases if name in case['inputs']]
            shape = entry['shape'] if choose is None else [choose(axis) for axis in zip(*sides, strict=True)]
            if shape:
                shapes.append(f'{name}:{"x".join(map(str, shape))}')
        ranges.append(f'--{option}Shapes={",".join(shapes)}')
    is_dynamic = len({_shapes(case) for case in cases}) > 1
    lines = [
        f'trtexec --onnx={manifest["file"]} --saveEngine=model.engine'
        + ''.join(f' {entry}' for entry in ranges if is_dynamic)
    ]
    lines.append('mkdir -p outputs')
    for case in cases:
        loaded = ','.join(f'{name}:{entry["file"]}' for name, entry in case['inputs'].items())
        shapes_option = f' --shapes={_shapes(case)}' if is_dynamic else ''
        lines.append(
            f'trtexec --loadEngine=model.engine{shapes_option} --loadInputs={loaded} '
            f'--exportOutput=outputs/{case["name"]}.json --iterations=1 --duration=0 --warmUp=0'
        )
    return '\n'.join(lines)


def _polygraphy(manifest: Mapping[str, Any]) -> str:
    """Return a command of Polygraphy that compares TensorRT with ONNX Runtime on the first shapes."""
    shapes = ' '.join(
        f'{name}:[{",".join(map(str, entry["shape"]))}]'
        for name, entry in manifest['cases'][0]['inputs'].items()
    )
    return f'polygraphy run {manifest["file"]} --trt --onnxrt --input-shapes {shapes}'
