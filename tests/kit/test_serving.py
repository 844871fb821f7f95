"""A kit is served on loopback; onnxruntime-web comes from npm, of the right hash, or not at all."""

import http.client
import threading

import pytest

from browser_pages import write_empty_kit
from mmdeploy_ext.kit.server import serving


@pytest.fixture
def kit(tmp_path):
    """A folder with the page, a library of one file, and nothing to run."""
    folder = tmp_path / 'kit'
    folder.mkdir()
    write_empty_kit(folder)
    (folder / 'web/ort/a.wasm').write_bytes(b'wasm')
    (folder / 'web/ort/a.mjs').write_bytes(b'')
    (tmp_path / 'secret.txt').write_text('secret')
    return folder


TYPES = {
    '/': 'text/html',
    '/web/app.js': 'text/javascript; charset=utf-8',
    '/web/style.css': 'text/css',
    '/web/ort/a.mjs': 'text/javascript; charset=utf-8',
    '/web/ort/a.wasm': 'application/wasm',
    '/manifest.json': 'application/json',
    '/model.onnx': 'application/octet-stream',
}


def test_files_have_the_types_that_browsers_want_and_nothing_else_is_served(kit):
    with serving(kit) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert server.server_address[0] == '127.0.0.1'
        connection = http.client.HTTPConnection(*server.server_address)

        def get(path):
            connection.request('GET', path)
            response = connection.getresponse()
            return response.status, response.read(), response.headers['Content-Type']

        for path, kind in TYPES.items():
            status, _, got = get(path)
            assert (status, got) == (200, kind), path
        assert get('/model.onnx')[1] == b'model'
        for path in ('/../secret.txt', '/%2e%2e/secret.txt', '/web/ort/../../../secret.txt', '/none.wasm'):
            assert get(path)[0] == 404, path
        server.shutdown()
