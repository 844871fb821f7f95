"""Serves a kit to a browser on this machine: `mm2onnx kit --serve KIT`."""

from __future__ import annotations

import contextlib
import functools
import http.server
import re
import tempfile
import urllib.parse
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from mmdeploy_ext.base.errors import DataError, UsageError
from mmdeploy_ext.base.files import path_in
from mmdeploy_ext.bench.kit import web_library
from mmdeploy_ext.bench.kit.page import INDEX, LIBRARY, check_page

LOOPBACK = '127.0.0.1'


class KitRequest(http.server.SimpleHTTPRequestHandler):
    """Request for a file of a kit, or of onnxruntime-web in the folder `library`."""

    extensions_map = {  # noqa: RUF012 - of the base class; browsers load modules and WebAssembly of these alone
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        '.js': 'text/javascript; charset=utf-8',
        '.mjs': 'text/javascript; charset=utf-8',
        '.wasm': 'application/wasm',
    }

    def __init__(self, *request: object, directory: str, library: Path) -> None:
        self.library = library
        super().__init__(*request, directory=directory)

    def send_head(self) -> Any:
        """Answer this machine alone: pages elsewhere may give their own names this address."""
        port = self.server.server_port
        if self.headers.get('Host') not in (f'{LOOPBACK}:{port}', f'localhost:{port}'):
            self.send_error(HTTPStatus.FORBIDDEN, f'expected the host {LOOPBACK}:{port}')
            return None
        return super().send_head()

    def translate_path(self, path: str) -> str:
        """Path in the kit, or else in the library; '' (not found) for anything that is no file of them."""
        name = urllib.parse.unquote(re.split('[?#]', path)[0]).lstrip('/') or INDEX
        try:
            file = path_in(self.directory, name, self.directory, below=True)
        except DataError:
            return ''
        in_library = self.library / file.name
        is_library = file.parent == Path(self.directory, LIBRARY)
        return str(in_library if is_library and not file.exists() else file)

    def end_headers(self) -> None:
        """No caching: a kit that was made again has other files of the same names."""
        self.send_header('Cache-Control', 'no-cache')
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """No line per request."""


@contextlib.contextmanager
def serving(kit: Path, port: int = 0) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serve a kit on loopback; `serve_forever` runs the server.

    A library that the kit lacks comes from the cache or npm. `port` 0: a free port.
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
            raise UsageError(f'port {port}: {reason}; choose another port with --port') from error
        with server:
            yield server
