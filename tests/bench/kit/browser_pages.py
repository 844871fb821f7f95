"""Pages of kits in headless Chromium: what they need, and what tests do with them."""

import base64
import contextlib
import json
import threading

import numpy as np
import pytest

import headless
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.base.files import sha256_file, write_json
from mmdeploy_ext.bench.kit import page
from mmdeploy_ext.bench.kit.contents import MANIFEST, kit_hash
from mmdeploy_ext.bench.kit.page import serving

ENDED = "['equal', 'different', 'failed'].includes(document.body.dataset.state)"


@contextlib.contextmanager
def opened_browser(profile):
    """Yield a browser; the test is skipped if there is none."""
    if headless.PROGRAM is None:
        pytest.skip('no Chromium here: `apt install chromium` (Debian) installs it')
    with headless.Browser(profile) as browser:
        yield browser


def needs_library():
    """Skip the test if onnxruntime-web cannot be had."""
    try:
        page.package()
    except UsageError as error:
        pytest.skip(f'no onnxruntime-web here: {error}')


@contextlib.contextmanager
def address_of(kit):
    """Serve a kit and yield its address."""
    with serving(kit) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()


def run_page(browser, address):
    """Open the page of a kit, run its inputs and return its verdict and failures."""
    browser.requests.clear()
    browser.problems.clear()
    browser.open(address)
    browser.wait_for("document.body.dataset.state === 'ready'")
    browser.evaluate("document.getElementById('run').click()")
    browser.wait_for(ENDED)
    texts = "['verdict', 'failures', 'detail'].map((id) => document.getElementById(id).innerText)"
    return browser.evaluate(texts)


COUNTS = ('reference', 'matched', 'missing', 'extra', 'outside', 'low', 'low_alone')
"""Counts of a row of an image, in Python and in JavaScript."""


def counts(row):
    """Return the counts of a `DetectionRow`."""
    return [getattr(row, name) for name in COUNTS]


def in_page(browser, body, **values):
    """Run the body of an asynchronous JavaScript function in the page of a kit and return what it returns."""
    text = json.dumps(json.dumps(values, default=_as_text))
    answer = browser.evaluate(f"""(async () => {{
        const {{ arrayOf }} = await import('kit/arrays.js');
        const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
        const revive = (_, value) => (
            value?.base64 === undefined ? value : arrayOf(bytes(value.base64), value));
        const run = async ({{ {', '.join(values)} }}) => {{ {body} }};
        const answer = await run(JSON.parse({text}, revive));
        return JSON.stringify(answer, (_, value) => {{
            if (!ArrayBuffer.isView(value)) return value;
            const bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
            const letters = Array.from(bytes, (byte) => String.fromCharCode(byte));
            return {{ base64: btoa(letters.join('')), type: value.constructor.name }};
        }});
    }})()""")
    return json.loads(answer, object_hook=_as_array)


def _as_text(value):
    if isinstance(value, np.ndarray):
        text = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return dict(base64=text, dtype=value.dtype.name, shape=value.shape)
    return value.item()


def _as_array(entry):
    if entry.keys() == {'base64', 'type'}:
        dtype = entry['type'].removesuffix('Array').replace('Big', '').lower()
        return np.frombuffer(base64.b64decode(entry['base64']), dtype)
    return entry


def change_manifest(kit, change):
    """Let a function change the manifest of a kit, and bring its hashes up to date."""
    manifest = json.loads((kit / MANIFEST).read_text())
    change(manifest)
    manifest['files'] = {file: sha256_file(kit / file) for file in manifest['files']}
    manifest['kit_sha256'] = kit_hash(manifest)
    write_json(kit / MANIFEST, manifest)
