"""`mm2onnx prove-module`: prove any ONNX file against any PyTorch module.

It is `proving.modules.proof.prove_module` for the command line. The options `--inputs`, `--tolerance`,
`--state`, `--rows`, `--seed` and `--no-generated` are those of `options.add_module_arguments`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line.

    In `add('--onnx m.onnx', ...)` the first word is the name of an argument, the second that of its value in
    the help; `module FILE.py:make` is a positional argument, and an option without a second word a switch.
    """
    parser = cli.ArgumentParser(
        description='Prove that an ONNX file computes what a PyTorch module computes: exit status 0 '
        'proven, 1 not, 2 usage. The file needs no metadata, the module no config.'
    )
    add = cli.adder(parser)
    add('module FILE.py:make', 'function without arguments that returns the module in evaluation mode')
    add('--onnx m.onnx', 'the ONNX file', required=True)
    add(
        '--samples FILE.py:samples',
        'function without arguments that yields samples: tuples of arguments, or dicts of them by name',
    )
    shared.add_module_arguments(parser)
    add('--no-fresh-export', 'do not export the module again to compare the graphs')
    add('--json FILE', 'write the verdict as JSON')
    cli.add_debug_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Load both sides, compare, print the verdict; return 0 if the file is proven, 1 if not.

    Samples are those of `--inputs` (a .npz file each, arrays by name), then those of `--samples`, of tensors
    or arrays; all are in memory at once. Names in a dict are those of the module's arguments or of the
    file's inputs. A file is proven if every output on every input, generated ones too, is within the
    tolerance. A graph that is another one than a fresh export's is no failure, and the verdict says so. The
    details are in docs/prove-module.md.

    Raises:
        UsageError: neither --inputs nor --samples is given; the module, its function or a sample cannot be
            loaded; the module is in training mode, or raises on a sample; samples or names do not fit the
            module or the file; or an option cannot be read or is out of range.
        ModelFileError: the ONNX file is missing, damaged, or nothing that ONNX Runtime loads.
    """
    cli.wait_passively()
    if not args.inputs and not args.samples:
        raise UsageError('--inputs or --samples: expected samples to compare on')
    state = shared.parse_state(args.state)

    from mmdeploy_ext import compat
    from mmdeploy_ext.core.files import write_json
    from mmdeploy_ext.proving.modules.loading import make_module, make_samples, read_samples
    from mmdeploy_ext.proving.modules.proof import prove_module
    from mmdeploy_ext.proving.views.table import print_verdict

    compat.apply()  # patches mmcv and others as they are imported, which the file of the user may do
    samples = read_samples(args.inputs or ())
    module = make_module(args.module)
    if args.samples:
        samples += make_samples(args.samples)
    verdict = prove_module(
        module,
        args.onnx,
        samples,
        rtol=args.tolerance,
        state=state,
        rows=args.rows or (),
        generate=not args.no_generated,
        fresh=not args.no_fresh_export,
        seed=args.seed,
    )
    if args.json:
        write_json(args.json, verdict.to_json())
    print_verdict(verdict, cli.stdout())
    return 0 if verdict.proven else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status: 0 proven, 1 not, 2 a refused option or file.

    `argv` are the words of the command line, by default those of the process. SystemExit: --help, or an
    option that the parser refuses, which is status 2.
    """
    return cli.run(run, build_parser, argv)
