"""What a verdict says of the files that it is about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.graph.io.files import external_files, read

if TYPE_CHECKING:
    from collections.abc import Iterable


def data_hashes(paths: Iterable[str | Path]) -> dict[str, dict[str, str]]:
    """Return `data_sha256`: name -> hash of every file that ONNX files keep weights in; nothing without any.

    Args:
        paths: of ONNX files whose data are there.
    """
    files = {file for path in paths for file in external_files(read(path), Path(path).parent).values()}
    found = {file.name: sha256_file(file) for file in sorted(files)}
    return {'data_sha256': found} if found else {}
