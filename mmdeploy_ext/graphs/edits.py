"""The metadata of a graph that was changed after its export. Needs no torch."""

import json

import onnx

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.graphs.io.index import refill
from mmdeploy_ext.spec.metadata import PREFIX, read_entry

KEY = f'{PREFIX}edits'
"""Key of `metadata_props`: JSON list of the commands that changed the file, in order."""


def record(model: onnx.ModelProto, command: str) -> None:
    """Append a command to the record of a file that this project exported, in place."""
    props = {entry.key: entry for entry in model.metadata_props}
    if f'{PREFIX}family' not in props:
        return
    if KEY not in props:
        raise ModelFileError(f'the file has no {KEY}; export it again')
    earlier = read_entry({KEY: props[KEY].value}, 'edits', 'the file')
    props[KEY].value = json.dumps([*earlier, command])


def drop_metadata(model: onnx.ModelProto) -> None:
    """Remove the metadata of the export, in place."""
    entries = [entry for entry in model.metadata_props if not entry.key.startswith(PREFIX)]
    refill(model, metadata_props=entries)
