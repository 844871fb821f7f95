"""The record of commands that changed a graph after its export, and how they are done again. Needs no torch.

A file of this project states in its metadata which commands changed it. The proof does the same to a fresh
export and compares the graphs, so that a file that was simplified or converted is held to every node, too.
"""

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx

from mmdeploy_ext.contract.metadata import PREFIX
from mmdeploy_ext.core.errors import Mm2OnnxError, ModelFileError
from mmdeploy_ext.graph.passes.named_rules import APPROXIMATE, replace_all
from mmdeploy_ext.graph.passes.opset import convert_opset
from mmdeploy_ext.graph.passes.precision import half
from mmdeploy_ext.graph.passes.rename import rename
from mmdeploy_ext.graph.passes.shapes import OPEN, set_by_text
from mmdeploy_ext.graph.passes.simplify import fold, simplify

KEY = f'{PREFIX}edits'
"""Key of `metadata_props` of the record: JSON, a list of dicts of `command`, `arguments` and `versions`."""


def record(model: onnx.ModelProto, command: str, arguments: Mapping[str, Any], *packages: str) -> None:
    """Append a command to the record of a model, in place.

    A file that this project did not export has no record, gets none, and cannot be proven.

    Args:
        model: the edited graph.
        command: one of `REPEATED`, or another one, such as that of `quantize.py`.
        arguments: parameter -> value of the command's function, in plain JSON types.
        packages: names, as pip has them, of the packages that decide about the result; their versions are
            recorded.

    Raises:
        ModelFileError: this project exported the file, and it has no record, or one that is no JSON list.
        importlib.metadata.PackageNotFoundError: one of `packages` is not installed.
    """
    props = {entry.key: entry for entry in model.metadata_props}
    if f'{PREFIX}family' not in props:
        return
    if KEY not in props:
        raise ModelFileError(f'the file has no {KEY}; export it again')
    versions = {package: importlib.metadata.version(package) for package in packages}
    edit = dict(command=command, arguments=dict(arguments), versions=versions)
    try:
        recorded = json.loads(props[KEY].value)
    except ValueError as error:
        raise ModelFileError(f'the file has a damaged {KEY} ({error}); export it again') from error
    if not isinstance(recorded, list):
        raise ModelFileError(f'the file has a damaged {KEY} (it is no list); export it again')
    props[KEY].value = json.dumps([*recorded, edit])


def repeat(
    model: onnx.ModelProto,
    edits: Sequence[Mapping[str, Any]],
    family_commands: Mapping[str, Callable[..., onnx.ModelProto]] | None = None,
) -> onnx.ModelProto:
    """Return what recorded commands make of a fresh export; without any, `model` itself.

    The commands of `REPEATED` leave the model that they are given as it is.

    Args:
        model: the fresh export.
        edits: the record, in order: dicts of `command`, `arguments` and `versions`.
        family_commands: command -> function of a model, which it has to leave as it is, too, and the
            arguments, beside those of `REPEATED`; None: there are none.

    Raises:
        ModelFileError: an entry without a command, an unknown command or argument, or one that fails on the
            model.
    """
    commands = {**REPEATED, **(family_commands or {})}
    for edit in edits:
        name = edit.get('command') if isinstance(edit, Mapping) else edit
        if not isinstance(name, str) or name not in commands:
            raise ModelFileError(
                f'{KEY}: the command {name!r} cannot be done again on a fresh export; these can: '
                f'{", ".join(commands)}'
            )
        try:
            model = commands[name](model, **edit['arguments'])
        except (Mm2OnnxError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise ModelFileError(f'{KEY}: {name} cannot be done again on a fresh export: {error}') from error
    return model


def other_versions(edits: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each version in a record that is not the installed one.

    `edits` are the entries of the record, see `repeat`, each with its `versions`: a package has a sentence
    for each entry. [] if all versions agree.
    """
    lines = []
    for edit in edits:
        for package, version in edit['versions'].items():
            try:
                installed = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                installed = 'not installed'
            if installed != version:
                lines.append(f'{edit["command"]} was done by {package} {version}, here is {installed}')
    return lines


REPEATED: dict[str, Callable[..., onnx.ModelProto]] = {
    # Equal by construction: a node of constants has one value, which ONNX's definition of the operator gives.
    'fold': fold,
    # Fixed code without an argument, which `--simplify` of an export runs, too: a part of the exporter.
    'simplify': simplify,
    # Fixed code: each operator is written as the other opset defines the same function, or is refused.
    'convert-opset': lambda model, opset: convert_opset(model, opset),
    # A rule may change what is computed: its results are compared on inputs, see `judged_by_inputs`.
    'replace': lambda model, rules, named: replace_all(model, rules, named)[0],
    # Equal by construction: names are no part of what is computed.
    'rename': rename,
    # Equal by construction: it fixes declared shapes, and changes no node. `opened` is read by `opened_by`.
    'set-shape': lambda model, shapes, opened=(): set_by_text(model, shapes),
    # Never PROVEN: judged by the bars of half precision, whatever stays float32.
    'fp16': lambda model, io, keep_fp32: half(model, io, keep_fp32)[0],
}
"""Commands of graph.py -> function of a model and the recorded arguments that does them again.

The arguments are those of the functions, as the command line gives them: `rules` are texts for `parse_rule`,
`named` names of rules, `shapes` texts for `shapes.parse` such as 'batch=1', `opened` names of options, `io`
'fp16' or 'fp32', `keep_fp32` patterns of nodes; those of `rename` are `tensors`, `nodes`, `prefix` and
`fill`.

The proof repeats the record on a fresh export and compares the graphs, so that a command which changes what
is computed would change both sides, and go unnoticed. Therefore a command has to be equal by construction, or
the proof judges its results in another way; the comments say which.
"""


def opened_by(edits: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the options of `shapes.OPEN` that were on at the export and that `set-shape` has turned off.

    `edits` is the record, see `repeat`; () if the file has the sizes that it was exported with.
    """
    opened = [edit['arguments'].get('opened') for edit in edits if edit['command'] == 'set-shape']
    return tuple(name for name in OPEN if any(isinstance(names, list) and name in names for names in opened))


def judged_by_inputs(edits: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the recorded replacements that are not equal by construction, each as 'replace: RULE'.

    Only runs on inputs show whether they are equal. These are the rules that a user wrote, and the named ones
    of `APPROXIMATE`. `edits` is the record, see `repeat`.
    """
    replacements = [edit['arguments'] for edit in edits if edit['command'] == 'replace']
    return [
        f'replace: {rule}'
        for arguments in replacements
        for rule in (*arguments['rules'], *(name for name in arguments['named'] if name in APPROXIMATE))
    ]
