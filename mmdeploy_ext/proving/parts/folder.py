"""An export's folder: a file per part, `parts.json`, and results for later proofs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mmdeploy_ext.base.errors import ConfigError, ModelFileError
from mmdeploy_ext.base.files import path_in, read_json, will_read, write_json
from mmdeploy_ext.base.typed_json import JsonDataclass, Mismatch, optional, read
from mmdeploy_ext.proving.parts.graph import PartForm
from mmdeploy_ext.proving.parts.part import PLAIN, Part, Tree
from mmdeploy_ext.proving.parts.record import RESULT, PartCall

MANIFEST = 'parts.json'
RESULTS = 'results.npz'
"""Results of the test path on the export's samples."""


@dataclasses.dataclass(frozen=True)
class PartTensor(JsonDataclass):
    """A tensor of a part; open axes of `shape` are texts."""

    name: str
    path: str
    dtype: str
    shape: tuple[int | str, ...]
    metas: bool = optional(False)

    def check(self) -> None:
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise Mismatch(f'{self.path}: dtype is {self.dtype!r}, expected a dtype of torch')


@dataclasses.dataclass(frozen=True)
class PartResult(JsonDataclass):
    """See `result_json`."""

    leaves: tuple[Mapping[str, Any], ...]
    tree: Any


@dataclasses.dataclass(frozen=True)
class PartEntry(JsonDataclass):
    """The entry of a part in the manifest, see `part_json`; older versions wrote no `rig`."""

    part: str
    file: str
    inputs: tuple[PartTensor, ...]
    outputs: tuple[PartTensor, ...]
    keys: Mapping[str, int]
    results: tuple[PartResult, ...]
    constants: Mapping[str, str]
    rig: Mapping[str, Any] = optional()
    sha256: str = optional('')


def result_json(part: Part, result: Tree) -> dict[str, Any]:
    """Return a result as JSON: names of tensors, plain values; ConfigError: anything else."""
    leaves = []
    for name, value in result.items():
        if name in result.tensors:
            shape, dtype = list(value.shape), str(value.dtype).removeprefix('torch.')
            leaves.append(dict(tensor=name, shape=shape, dtype=dtype))
        elif isinstance(value, PLAIN):
            leaves.append(dict(value=value))
        else:
            raise ConfigError(
                f'--parts {part.text}: returns a {type(value).__name__} as {name}, which a graph cannot '
                'return; export parts inside it'
            )
    return dict(leaves=leaves, tree=json.loads(pytree.treespec_dumps(result.spec)))


def result_of(entry: dict[str, Any], tensors: dict[str, Any]) -> Any:
    """Return the nested result of `result_json` with tensors."""
    leaves = [tensors[leaf['tensor']] if 'tensor' in leaf else leaf['value'] for leaf in entry['leaves']]
    return pytree.tree_unflatten(leaves, pytree.treespec_loads(json.dumps(entry['tree'])))[RESULT]


def part_json(form: PartForm, call: PartCall, names: dict[str, str]) -> dict[str, Any]:
    """Return the entry of a part in the manifest."""
    inputs, outputs = form.inputs_of(call), form.outputs_of(call)
    tensors = {**inputs, **outputs}

    def described(name: str) -> dict[str, Any]:
        tensor, axes = tensors[name], form.dynamic.get(name, {})
        shape = [axes.get(axis, size) for axis, size in enumerate(tensor.shape)]
        return dict(
            name=names.get(name, name), path=name, dtype=str(tensor.dtype).removeprefix('torch.'), shape=shape
        )

    constants = {
        f'{step.text}: {name}': repr(value)[:200]
        for step, of_step in zip(form.part.steps, call.steps, strict=True)
        for name, value in of_step.arguments.constants.items()
    }
    return dict(
        part=form.part.text,
        file=form.part.file,
        inputs=[dict(described(name), metas=name in form.keys) for name in form.inputs],
        outputs=[described(name) for name in form.outputs],
        keys=form.keys,
        results=[result_json(form.part, step.result) for step in call.steps],
        constants=constants,
        rig={
            key: step.stacks[key].tolist() for key in form.fixed for step in call.steps if key in step.stacks
        },
    )


@dataclasses.dataclass(frozen=True)
class CutFolder:
    """An exported folder.

    Attributes:
        path: the folder.
        facts: config, checkpoint, classes and versions of the export.
        options: opset, exporter, precision, simplify, seeded.
        entries: entry of each part, see `part_json`.
    """

    path: Path
    facts: dict[str, Any]
    options: dict[str, Any]
    entries: list[dict[str, Any]]

    @property
    def parts(self) -> list[Part]:
        return [Part.parse(entry['part']) for entry in self.entries]

    @property
    def is_seeded(self) -> bool:
        """Whether random numbers are constants; files of older versions have none."""
        return bool(self.options.get('seeded'))

    @property
    def fixed(self) -> dict[str, tuple[str, ...]]:
        """Part -> keys of metas whose arrays are constants; files of older versions have none."""
        return {entry['part']: tuple(entry.get('rig', ())) for entry in self.entries}

    def file(self, entry: dict[str, Any]) -> Path:
        return path_in(self.path, entry['file'], self.path / MANIFEST)

    def names(self, entry: dict[str, Any]) -> dict[str, str]:
        """Return path of a tensor -> its name in the file, where they differ."""
        tensors = [*entry['inputs'], *entry['outputs']]
        return {tensor['path']: tensor['name'] for tensor in tensors if tensor['path'] != tensor['name']}

    def write(self) -> None:
        write_json(self.path / MANIFEST, dict(facts=self.facts, options=self.options, parts=self.entries))

    @classmethod
    def read(cls, path: str | Path) -> CutFolder:
        """Read a folder; ModelFileError: not an export, or a missing file."""
        if not Path(path, MANIFEST).is_file():
            raise ModelFileError(f'{path}: has no {MANIFEST}; expected a folder of `mm2onnx export --parts`')
        content = read_json(Path(path, MANIFEST))
        try:
            folder = cls(Path(path), content['facts'], content['options'], content['parts'])
            entries = [read(PartEntry, entry) for entry in folder.entries]
            paths = [path_in(folder.path, entry.file, folder.path / MANIFEST) for entry in entries]
        except (KeyError, Mismatch, TypeError) as error:
            raise ModelFileError(f'{path}/{MANIFEST}: is not a manifest of parts ({error})') from error
        will_read('a file of the parts', [Path(path, MANIFEST), Path(path, RESULTS), *paths])
        if missing := [path.name for path in paths if not path.is_file()]:
            raise ModelFileError(f'{path}: {", ".join(missing)} is missing; export the parts again')
        return folder
