"""Converters of checkpoints and configs of other repositories and versions."""

import shlex

from mmdeploy_ext.base.commands import command


def conversion_command(name: str, path: str) -> str:
    """Command line that converts the checkpoint at `path`, with OUT.pth and CONFIG for the user."""
    return f'{command(name)} {shlex.quote(path)} OUT.pth --config CONFIG'
