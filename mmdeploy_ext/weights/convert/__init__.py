"""Converters of checkpoints and configs of other repositories and versions."""

import shlex

from mmdeploy_ext.core.commands import command


def conversion_command(name: str, path: str) -> str:
    """Return the command line that converts the checkpoint at `path`, which is quoted for a shell.

    `name` is a command of `core/commands.py`, such as 'convert solo'. OUT.pth and CONFIG in the line are left
    to the user.
    """
    return f'{command(name)} {shlex.quote(path)} OUT.pth --config CONFIG'
