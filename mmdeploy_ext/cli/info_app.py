"""`mm2onnx info`: the metadata of an exported file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import ModelFileError, escape, printable
from mmdeploy_ext.base.files import sha256_file, write_json
from mmdeploy_ext.runtime.exported import model_files
from mmdeploy_ext.spec import digest
from mmdeploy_ext.spec.metadata import PREFIX, check_entries

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from rich.table import Table

MOST_CLASSES, MOST_TENSORS = 20, 12
"""Printed classes, and inputs and outputs; --json has all."""
SHARED = ('family', 'classes', 'preprocess', 'voxels', 'postprocess', 'options', 'config', 'config_sha256')
SHARED += ('checkpoint_sha256', 'versions')
"""Facts that all files of one export share."""
EXPORTED = ('opset', 'exporter', 'order', 'fold')
HASH_DIGITS = 12


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description='Show the metadata of an exported file, or folder of graphs: inputs, outputs, classes, '
        'preprocessing, config and checkpoint.'
    )
    add = cli.adder(parser)
    add('model', 'ONNX file, or folder of graphs, that mm2onnx exported')
    add('--json FILE', 'write everything as JSON')
    return parser


def run(args: argparse.Namespace) -> int:
    files = [describe(path) for path in model_files(args.model)]
    for file in files[1:]:
        for key in SHARED:
            if file.get(key) != files[0].get(key):
                raise ModelFileError(
                    f'{file["file"]}: its {key} differs from {files[0]["file"]}; name one of the files'
                )
    if args.json:
        write_json(args.json, dict(model=args.model, files=files))
    console = cli.stdout()
    console.print(overview(args.model, files))
    for file in files:
        if 'spec' in file:
            console.print(tensors(file), highlight=False)
    damaged = [str(file['file']) for file in files if file['state'] == digest.DAMAGED]
    if damaged:
        raise ModelFileError(f'{", ".join(damaged)}: damaged: {digest.DAMAGE}')
    return 0


def describe(path: Path) -> dict[str, Any]:
    """Metadata of a file, `file`, `bytes`, `sha256` (without external weights) and `state` as JSON types.

    `state` is of `spec.digest`; further keys are the fields of `spec.metadata.Metadata` and
    `precision`. A sparse backbone has `voxels`, its `form` is 'libspconv' or 'portable', and `precision`,
    `spec`, `classes`, `preprocess` and `postprocess` are absent.
    """
    from mmdeploy_ext.spec.metadata import ENTRIES, Metadata, read_props

    props = read_props(path)
    names = [name for name in ENTRIES if PREFIX + name in props]
    if 'family' not in names:
        raise ModelFileError(
            f'{path}: has no mm2onnx metadata; mm2onnx graph show {path} shows any ONNX file'
        )
    check_entries(props, path)
    values = {name: json.loads(props[PREFIX + name]) for name in names}
    if 'voxels' not in names:  # metadata of a sparse backbone has no precision
        values['precision'] = Metadata.from_props(props, path).precision
    facts = dict(file=str(path), bytes=path.stat().st_size, sha256=sha256_file(path))
    return dict(facts, state=digest.state(path), **values)


def overview(model: str, files: Sequence[Mapping[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    last = files[-1]
    options, rule = last.get('options', {}), last.get('preprocess') or last.get('voxels') or {}
    sample = 'PICTURE_OR_FOLDER'
    if 'voxel_size' in rule:
        sample = 'SWEEP.bin'
    elif 'kind' in rule:
        sample = 'INFOS.pkl'
    precisions = dict.fromkeys(file.get('precision') or options.get('precision') for file in files)
    rewritten = [file for file in files if file['state'] == digest.REWRITTEN]
    rows = dict(
        model=f'{last["family"]}: {", ".join(file["form"] for file in files)}',
        file='\n'.join(
            f'{file["file"]}, {file["bytes"] / 1e6:.2f} MB, sha256 {file["sha256"][:HASH_DIGITS]}'
            for file in files
        ),
        computes=', '.join(
            filter(None, [*precisions, *(f'{key} {options[key]}' for key in EXPORTED if key in options)])
        ),
        classes=class_text(last.get('classes', ())),
        preprocessing=plain_text(rule),
        postprocessing=plain_text(last.get('postprocess', {})),
        made_from=f'{last["config"]} (sha256 {last["config_sha256"][:HASH_DIGITS]}), checkpoint '
        f'{last["checkpoint_sha256"][:HASH_DIGITS]}',
        made_with=' '.join(f'{name} {version}' for name, version in last['versions'].items()),
        edited='; '.join(edit for file in files for edit in file.get('edits', ())),
        note='; '.join(f'{file["file"]}: {digest.REWRITE}' for file in rewritten),
        run=f'mm2onnx run {model} {sample}' if 'spec' in last else '',
    )
    for name, text in rows.items():
        if text:
            lines = text.splitlines() if name == 'file' else [text]
            table.add_row(name.replace('_', ' '), Text('\n'.join(map(printable, lines))))
    return table


def tensors(file: Mapping[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from mmdeploy_ext.spec.tensors import GraphSpec

    spec = GraphSpec.from_json(file['spec'])
    state = {target: source for source, target in spec.state}
    table = Table('', 'name', 'type', 'shape', 'default', 'meaning', title=escape(Path(file['file']).name))
    for side, side_tensors in (('in', spec.inputs), ('out', spec.outputs)):
        for tensor in side_tensors[:MOST_TENSORS]:
            default = '' if not tensor.is_optional else f'{tensor.default:g}'
            unit = f' [{tensor.unit}]' if tensor.unit else ''
            memory = f'; {state[tensor.name]} of the previous frame' if tensor.name in state else ''
            meaning = f'{tensor.meaning}{unit}{memory}'
            texts = (tensor.name, tensor.dtype, tensor.shape_text(), default, meaning)
            table.add_row(side, *(Text(printable(text)) for text in texts))
        if (hidden := len(side_tensors) - MOST_TENSORS) > 0:
            table.add_row(side, f'{hidden} more', '', '', '', '--json has all')
    return table


def class_text(classes: Sequence[str]) -> str:
    """'2: car, bus', or ''."""
    ellipsis = ', ...' if len(classes) > MOST_CLASSES else ''
    return f'{len(classes)}: {", ".join(classes[:MOST_CLASSES])}{ellipsis}' if classes else ''


def plain_text(facts: Mapping[str, Any]) -> str:
    """Facts as words: 'size_divisor 32'."""
    texts = []
    for key, value in facts.items():
        entries = value if isinstance(value, list) else [value]
        words = [f'{entry:.7g}' if isinstance(entry, float) else str(entry) for entry in entries]
        if value is not None and words and not any(isinstance(entry, list | dict) for entry in entries):
            texts.append(f'{key} {" ".join(words)}')
    return ', '.join(texts)


main = cli.program(run, build_parser)
