"""Serves a kit to a browser on this machine: `mm2onnx kit --serve KIT`."""

from __future__ import annotations

import contextlib
import functools
import http.server
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.kit import web_library
from mmdeploy_ext.kit.page import LIBRARY, check_page

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = '127.0.0.1'


class KitRequest(http.server.SimpleHTTPRequestHandler):
    """A request for a file of a kit, or of the library that runs its model.

    Attributes:
        library: folder of onnxruntime-web, for kits that do not have it.
    """

    extensions_map = {  # noqa: RUF012 - of the base class; browsers load modules and WebAssembly of these alone
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        '.js': 'text/javascript; charset=utf-8',
        '.mjs': 'text/javascript; charset=utf-8',
        '.wasm': 'application/wasm',
    }

    def __init__(self, *request: object, directory: str, library: Path) -> None:
        self.library = library
        super().__init__(*request, directory=directory)

    def translate_path(self, path: str) -> str:
        """Return the path of the file of an address, `path`: of the kit, or else of the library."""
        file = Path(super().translate_path(path))
        in_library = self.library / file.name
        is_library = file.parent == Path(self.directory, LIBRARY)
        return str(in_library if is_library and not file.exists() else file)

    def end_headers(self) -> None:
        """Let the browser ask each time: a kit that was made again has other files of the same names."""
        self.send_header('Cache-Control', 'no-cache')
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Print no line for a request: the page tells what could not be loaded."""


@contextlib.contextmanager
def serving(kit: Path, port: int = 0) -> Iterator[http.server.ThreadingHTTPServer]:
    """Yield a server of a kit on loopback, which nobody on other machines reaches; `serve_forever` runs it.

    Args:
        kit: folder that `mm2onnx kit` wrote; a library that it lacks comes from the cache, or is downloaded
            by npm.
        port: port of the address; 0 takes a free one.
    """
    check_page(kit)
    with tempfile.TemporaryDirectory(prefix='mm2onnx') as unpacked:
        library = Path(unpacked)
        if not (kit / LIBRARY).is_dir():
            web_library.unpack(library)
        handler = functools.partial(KitRequest, directory=str(kit.resolve()), library=library)
        try:
            server = http.server.ThreadingHTTPServer((LOOPBACK, port), handler)
        except (OSError, OverflowError) as error:  # the second one is of a number beyond 65535
            reason = getattr(error, 'strerror', error)
            raise UsageError(f'port {port}: {reason}; choose another one by --port') from error
        with server:
            yield server
