"""`check_autoware.py`: the same as `graph.py check-folder --contract autoware`."""

import argparse
from collections.abc import Sequence

from mmdeploy_ext.cli.graph_commands.folders import run_check
from mmdeploy_ext.core import cli


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = cli.ArgumentParser(
        description='Say what a perception node of Autoware would reject or read wrongly in a folder of ONNX '
        'files and manifests. Exit status 1 with errors.'
    )
    add = cli.adder(parser)
    add('folder FOLDER', 'of ONNX files and manifests, whoever wrote them')
    add('--strict', 'warnings fail, too')
    add('--json FILE', 'also write what was found as JSON')
    cli.add_debug_option(parser)
    parser.set_defaults(contract='autoware')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status: 0 no error, 1 errors, with --strict also warnings, 2 usage.

    `argv` are the words of the command line, by default those of the process. SystemExit: --help, or an
    option that the parser refuses, which is status 2.
    """
    return cli.run(run_check, build_parser(), argv)
