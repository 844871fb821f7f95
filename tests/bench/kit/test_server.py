"""The server of a kit gives this machine's browser the files of the kit, and nothing else."""

import http.client
import shutil
import threading

import pytest

from mmdeploy_ext.bench.kit import page


@pytest.fixture
def get(atss, tmp_path, monkeypatch):
    """Function (path, host) -> status; the kit has a link, and a folder that is one."""
    monkeypatch.setattr(page, 'unpack', lambda folder: (folder / 'ort.mjs').touch())
    kit = shutil.copytree(atss[0], tmp_path / 'kit')
    (tmp_path / 'secret').touch()
    (kit / 'link').symlink_to(tmp_path / 'secret')
    (kit / 'way').symlink_to(tmp_path)
    with page.serving(kit) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()

        def status(path, host='127.0.0.1'):
            connection = http.client.HTTPConnection('127.0.0.1', served.server_port, timeout=10)
            connection.request('GET', path, headers=dict(Host=f'{host}:{served.server_port}'))
            return connection.getresponse().status

        yield status
        served.shutdown()


def test_files_of_the_kit_and_of_the_library_are_served(get):
    for path in ('/', '/index.html?case=000', '/manifest.json', '/model.onnx', '/web/ort/ort.mjs'):
        assert get(path) == 200, path
    assert get('/', 'localhost') == 200


def test_nothing_else_is_served(get):
    for path in ('/link', '/way/secret', '/inputs/', '/%00', '/..%2fsecret', '/web/ort/other.mjs', '//['):
        assert get(path) == 404, path


def test_a_page_of_another_host_gets_nothing(get):
    assert get('/', 'evil.example') == get('/manifest.json', '127.0.0.1.evil.example') == 403
