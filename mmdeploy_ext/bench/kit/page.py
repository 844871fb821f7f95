"""`index.html` of a kit: runs its inputs in a browser and judges the outputs."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.parse
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import DataError, UsageError, one_line
from mmdeploy_ext.base.files import external_locations, path_in, replaced_folder
from mmdeploy_ext.bench.kit.contents import read_manifest
from mmdeploy_ext.runtime.tasks import bbox2d, boxed_mask, mask, task_module
from mmdeploy_ext.spec import matching
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL

if TYPE_CHECKING:
    from mmdeploy_ext.bench.kit.contents import KitGraph


# onnxruntime-web from npm: downloaded once, compared with its hash, unpacked beside a page.


NAME, VERSION = 'onnxruntime-web', '1.30.0'
INTEGRITY = 'sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='
"""SHA-512 in base64, as in npm's lock files."""
LOADERS = {
    'ort.wasm.bundle.min.mjs': 'ort-wasm-simd-threaded.wasm',
    'ort.webgpu.bundle.min.mjs': 'ort-wasm-simd-threaded.asyncify.wasm',
}
"""Script that a page imports -> its WebAssembly, without and with WebGPU."""
LICENCES = ('LICENSE', 'ThirdPartyNotices.txt')
"""Taken from the Python package onnxruntime, same sources; npm's package has no licence file."""
SECONDS = 600
"""Time limit of the download of 33 MB."""


def cache_folder() -> Path:
    """`mm2onnx/npm` in the user's cache."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mm2onnx/npm'


def package() -> Path:
    """Path of the package in the cache, downloaded if needed."""
    path = cache_folder() / f'{NAME}-{VERSION}.tgz'
    if not path.is_file():
        _download(path)
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if f'sha512-{digest}' != INTEGRITY:
        raise DataError(f'{path}: got sha512-{digest}, expected {INTEGRITY}; remove the file and try again')
    return path


def _download(path: Path) -> None:
    by_hand = f'or run `npm pack {NAME}@{VERSION}` on another machine and copy its file to {path.parent}'
    npm = shutil.which('npm')
    if npm is None:
        raise UsageError(
            f'{NAME} {VERSION} is not in {path.parent}, and npm, which downloads it, is not installed: '
            f'install Node.js (on Debian: apt install npm), {by_hand}'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.npm') as folder:
        command = [npm, 'pack', '--ignore-scripts', '--silent', f'{NAME}@{VERSION}']
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            reason = one_line(error.stderr or '')[:300] or error
            raise UsageError(
                f'npm pack {NAME}@{VERSION} failed: {reason}; check the registry with npm ping and try '
                f'again, {by_hand}'
            ) from error
        os.replace(Path(folder, path.name), path)


def unpack(folder: Path) -> None:
    """Write `LOADERS`, their WebAssembly and `LICENCES` into a folder."""
    import onnxruntime  # of any of its distributions

    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(package()) as archive:
        for name in (*LOADERS, *LOADERS.values()):
            content = archive.extractfile(f'package/dist/{name}')
            (folder / name).write_bytes(content.read())
    for name in LICENCES:
        shutil.copyfile(Path(onnxruntime.__file__).with_name(name), folder / name)


SOURCES = Path(__file__).with_name('web')
INDEX = 'index.html'
PLACE = 'web'
LIBRARY = f'{PLACE}/ort'
TASKS = ('bbox2d', 'boxed_mask', 'mask', 'panoptic')
"""Tasks with results that the page compares; of a module it compares tensors."""


def bars_of(task: str | None) -> dict[str, float]:
    """The proof's float32 tolerances by name, as in the manifest."""
    bars = dict(
        rtol=DEFAULT_RTOL, low_alone=matching.ALLOWED_LOW_ALONE, low_alone_share=matching.MAX_LOW_ALONE_SHARE
    )
    if task not in TASKS:
        return bars
    rules = mask if task == 'panoptic' else task_module(task)
    scores = rules.match_detections.keywords
    return bars | dict(
        score_thr=scores['score_thr'],
        score_bar=scores['score_bar'],
        iou_bar=bbox2d.IOU_BAR if task == 'bbox2d' else mask.IOU_BAR,
        box_iou_bar=bbox2d.IOU_BAR,
        pair_iou=bbox2d.PAIR_IOU if task == 'bbox2d' else mask.PAIR_IOU,
        corner_eps=bbox2d.CORNER_EPS,
        flipped_pixels=mask.FLIPPED_PIXELS,
        sliver=boxed_mask.SLIVER,
        sliver_iou=boxed_mask.SLIVER_IOU,
    )


def write_page(folder: Path, graph: KitGraph, task: str | None) -> dict[str, float]:
    """Write the page into a kit, without onnxruntime-web; return its tolerances.

    No page and {} for files below float32, external weights and result classes of a family.
    """
    is_exact = graph.metadata is None or graph.metadata.precision == 'fp32'
    if not is_exact or task not in (None, *TASKS) or external_locations(folder / graph.file):
        return {}
    shutil.copyfile(SOURCES / INDEX, folder / INDEX)
    (folder / PLACE).mkdir()
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in ('.js', '.css'):
            shutil.copyfile(source, folder / PLACE / source.name)
    return bars_of(task)


def check_page(kit: Path) -> None:
    """Raise DataError for no kit, a changed one, or one without a page."""
    if INDEX not in read_manifest(kit).files:
        raise DataError(
            f'{kit}: has no page; a page needs a kit of one float32 file with its weights inside and no '
            'memory, with colour images as inputs and upright boxes, masks, segments or tensors as '
            'results'
        )


def add_library(kit: Path) -> None:
    """Write onnxruntime-web into a kit, so that any web server can show it."""
    check_page(kit)
    with replaced_folder(kit / LIBRARY) as folder:
        unpack(folder)


# Serves a kit to a browser on this machine: `mm2onnx kit --serve KIT`.


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
            unpack(library)
        handler = functools.partial(KitRequest, directory=str(kit.resolve()), library=library)
        try:
            server = http.server.ThreadingHTTPServer((LOOPBACK, port), handler)
        except (OSError, OverflowError) as error:  # the second one is of a number beyond 65535
            reason = getattr(error, 'strerror', error)
            raise UsageError(f'port {port}: {reason}; choose another port with --port') from error
        with server:
            yield server
