"""A kit is served on loopback; onnxruntime-web comes from npm, of the right hash, or not at all."""

import http.client
import os
import threading

import pytest

from browser_pages import write_empty_kit
from mmdeploy_ext.cli import kit_app
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.kit import web_library
from mmdeploy_ext.kit.contents import MANIFEST
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


def test_folders_and_command_lines_that_make_no_page_are_refused(kit, tmp_path, capsys):
    assert kit_app.main(['--serve', str(tmp_path)]) == 2
    assert MANIFEST in capsys.readouterr().err
    assert kit_app.main(['demo/atss_toy.onnx', '--out', str(tmp_path / 'new')]) == 2
    assert '--serve KIT' in capsys.readouterr().err
    assert kit_app.main(['--serve', str(kit), '--port', '70000']) == 2
    assert 'port 70000: ' in capsys.readouterr().err
    (kit / 'web/app.js').write_text('changed')
    assert kit_app.main(['--serve', str(kit)]) == 2
    assert 'app.js: was changed' in capsys.readouterr().err


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a folder of programs that npm would be one of."""
    programs = tmp_path / 'programs'
    programs.mkdir()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('PATH', str(programs))
    return programs


def write_npm(folder, script):
    (folder / 'npm').write_text(f'#!{os.path.realpath("/bin/sh")}\n{script}\n')
    (folder / 'npm').chmod(0o755)


def test_a_package_of_another_hash_is_refused(cache):
    write_npm(cache, f'echo wrong >{web_library.NAME}-{web_library.VERSION}.tgz')
    with pytest.raises(DataError, match=r'sha512-q0y'):
        web_library.package()
