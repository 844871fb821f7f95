"""Prepare a checkpoint for release: weights and plain facts, no optimizer state, no environment.

`python tools/model_converters/publish_model.py IN_FILE OUT_FILE`, as in mmdet; the name is kept as given.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError

META_KEYS = ('CLASSES', 'config', 'exp_name', 'seed', 'epoch', 'iter', 'mmcv_version', 'mmdet_version')
"""Keys of the checkpoint's `meta` that are published."""


def plain(value: Any) -> Any:
    """Return a value with numpy's scalars and arrays, and tensors, as numbers and lists.

    Every safe loader takes these. An array without axes becomes a number. Lists and tuples are converted
    entry by entry; other values, dicts too, are returned as they are.
    """
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value.tolist() if hasattr(value, 'tolist') else value


def publish(args: argparse.Namespace) -> int:
    """Read the checkpoint, keep weights and plain facts, write the new one, and return 0.

    Args:
        args: `in_file`, `out_file` and `half`, see `build_parser`.

    Raises:
        CheckpointError: `in_file` is no checkpoint.
        UsageError: `out_file` is `in_file`, has the suffix of another kind of file or cannot be written; or
            `--half` with weights that float16 cannot hold.
        Mm2OnnxError: the write failed; an older `out_file` remains.
    """
    from mmdeploy_ext.weights.checkpoint import load_checkpoint
    from mmdeploy_ext.weights.convert.conversion import check_output, save_checkpoint

    check_output(args.in_file, args.out_file)
    source = load_checkpoint(args.in_file)
    meta = {key: plain(source.meta[key]) for key in META_KEYS if key in source.meta}
    weights = {key: value.contiguous() for key, value in source.state_dict.items()}
    for key, value in weights.items() if args.half else ():
        if value.is_floating_point():
            weights[key] = value.half()
            if weights[key].isinf().sum() > value.isinf().sum():
                raise UsageError(f'--half: {key} has values beyond 65504, the largest that float16 holds')
    save_checkpoint(args.out_file, weights, meta)
    numbers = sum(value.numel() for value in weights.values())
    size_mb = Path(args.out_file).stat().st_size / 1e6
    print(f'{args.out_file}: {len(weights)} tensors, {numbers / 1e6:.2f} M numbers, {size_mb:.1f} MB')
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    add = cli.adder(parser)
    add('in_file', 'checkpoint as the training saved it')
    add('out_file', 'checkpoint to write', writes='{}')
    add('--half', 'store weights as float16, half of the size')
    cli.add_debug_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status: 0 done, 1 failed, 2 a refused option or file.

    `argv` are the words of the command line, by default those of the process. SystemExit: --help, or an
    option that the parser refuses, which is status 2.
    """
    return cli.run(publish, build_parser(), argv)
