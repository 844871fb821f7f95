"""Checkpoints of mmdet 3 (mmengine) as those of mmdet 2.28: names, and what is kept of `meta`."""

import dataclasses
from pathlib import Path
from typing import Any

from mmdeploy_ext.core.commands import command, tool
from mmdeploy_ext.core.distinct import check_distinct
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import atomic_path, check_outputs, check_writable
from mmdeploy_ext.weights.checkpoint import Checkpoint, load_checkpoint, naming
from mmdeploy_ext.weights.convert import fitting
from mmdeploy_ext.weights.convert.mmdet3_config import config2, read_config3
from mmdeploy_ext.weights.convert.mmdet3_names import COMMAND, NOT_OF_THE_MODEL, renamed

KEPT_META = ('epoch', 'iter', 'seed', 'mmengine_version')
OTHER_CONFIG = (
    f'. Give the config of the same model with --config; `{command(COMMAND)} --config CONFIG3.py OUT.py` '
    f"makes it of mmdet 3's"
)


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted checkpoint: mmdet 2's names in the model's order, with the tensors of the file.

    Attributes:
        renamed: how many have another name than in the file.
        left_out: names of the file that are no weights of the model.
        own: the model's tensors, on the meta device.
    """

    state_dict: fitting.Tensors
    renamed: int
    left_out: list[str]
    own: fitting.Tensors


def convert(source: Checkpoint, cfg: Any) -> Converted:
    """Rename the tensors of a checkpoint of mmdet 3 for the model of a config of mmdet 2.28.

    Every key of file and model is accounted for.

    Raises:
        CheckpointError: a key or shape that the config's model does not account for.
        ConfigError: the config's model cannot be built.
    """
    own = fitting.model_tensors(cfg)
    detector = cfg.model.get('type')
    given = {key: value for key, value in source.state_dict.items() if not key.startswith(NOT_OF_THE_MODEL)}
    names = {key: key if key in own else renamed(key, detector) for key in given}
    with naming(source.path):
        check_distinct(names.items())
        tensors = {name: given[key] for key, name in names.items()}
        state_dict = fitting.in_order(tensors, own, cfg.filename, OTHER_CONFIG)
    left_out = [key for key in source.state_dict if key not in given]
    return Converted(state_dict, sum(key != name for key, name in names.items()), left_out, own)


def convert_file(source: str | Path, target: str | Path, cfg: Any) -> Converted:
    """Convert a checkpoint and write it, with `CLASSES` of its `dataset_meta`; refuses as `convert`.

    Also weights that are not finite, or codes in their place, and a path that cannot be written.
    """
    fitting.check_output(source, target, cfg.filename)
    loaded = load_checkpoint(source)
    converted = convert(loaded, cfg)
    fitting.check_numbers(source, converted.state_dict, converted.own)
    meta = {key: loaded.meta[key] for key in KEPT_META if isinstance(loaded.meta.get(key), str | int)}
    classes = loaded.meta.get('CLASSES')
    if isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes):
        meta['CLASSES'] = tuple(classes)
    fitting.save_checkpoint(target, converted.state_dict, meta)
    return converted


def translate_file(source: str | Path, target: str | Path | None) -> str:
    """Return a config of mmdet 3 as the text of one of mmdet 2.28, and write it where a target is given.

    Raises:
        ConfigError: names the file, and the part or key that mmdet 2.28 has not.
        UsageError: a target that cannot be written, or is the source.
    """
    if target is not None:
        if not str(target).endswith('.py'):
            raise UsageError(f'{target}: is not the name of a config; expected one that ends with .py')
        check_outputs({'': [target]}, {'the config': [source]})
        check_writable(target)
    cfg = config2(read_config3(source))
    text = f'# {source} of mmdet 3 as a config of mmdet 2.28, by {tool(COMMAND)}\n{cfg.pretty_text}'
    if target is not None:
        with atomic_path(target) as temporary:
            temporary.write_text(text, encoding='utf-8')
    return text
