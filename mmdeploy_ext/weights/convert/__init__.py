"""Converters of checkpoints and configs of other repositories and versions."""

import shlex

from mmdeploy_ext.core.commands import command


def conversion_command(name: str, path: str) -> str:
    """Return the command line that converts the checkpoint at `path`.

    `name` is a command of `core/commands.py`. OUT.pth and CONFIG in it are left to the user.
    """
    return f'{command(name)} {shlex.quote(path)} OUT.pth --config CONFIG'
