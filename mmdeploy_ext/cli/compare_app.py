"""`mm2onnx compare`: `graph.py diff` of two files."""

import argparse
from collections.abc import Sequence

from mmdeploy_ext.cli.graph_commands import comparison
from mmdeploy_ext.core import cli


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: the options of `diff` that two files have."""
    parser = cli.ArgumentParser(
        description='Find the first tensor in which the second file differs from the first: exit status 0 '
        'equal, 1 different, 2 usage.'
    )
    cli.add(parser, 'models MODEL', 'ONNX file; the first is the reference', nargs=2)
    comparison.add_pair_arguments(parser)
    parser.set_defaults(**dict.fromkeys(comparison.CHECKPOINT_OPTIONS))
    cli.add(parser, '--json FILE', 'also write what was found as JSON')
    cli.add_debug_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status: 0 equal, 1 different or not run, 2 a refused option or file.

    `argv` are the words of the command line, by default those of the process. SystemExit: --help, or an
    option that the parser refuses, which is status 2.
    """
    return cli.run(comparison.run_diff, build_parser(), argv)
