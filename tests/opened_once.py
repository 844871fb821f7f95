"""A pytest plugin: in tests of files a file that was opened in ONNX Runtime is not prepared again.

A drive is proven by two sessions of each file, and tests judge a file many times; ONNX Runtime optimises the
graph each time, which was a quarter of the CPU seconds of a proof of Sparse4D. A session has no state: who
opens a file of the same bytes with the same options gets the session that is there.
"""

import collections
import hashlib
import sys
from pathlib import Path

import pytest

FOLDERS = (
    'tests/demo',
    'tests/projects',
    'tests/tools',
    *(f'tests/mmdeploy_ext/{name}' for name in ('contract', 'families', 'proving', 'quantize', 'runtime')),
)
"""Where files are opened by `OnnxRuntimeBackend`, and what it does is not what is tested."""
MODULE = 'mmdeploy_ext.engines.onnxruntime'
SESSIONS = collections.OrderedDict()
MOST_SESSIONS, MOST_BYTES = 12, 64 << 20


def key_of(backend):
    """Return what tells sessions apart; None for a file that is large, or has files of its own beside it."""
    path = Path(backend.path)
    if backend.profile_prefix or not path.is_file() or path.stat().st_size > MOST_BYTES:
        return None
    if len(list(path.parent.glob(f'{path.name}*'))) > 1:
        return None
    options = (backend.threads, backend.graph_optimization, backend.spinning, backend.plan_memory)
    content = hashlib.blake2b(path.read_bytes()).digest()
    return content, *options, backend.round_fp16, backend.inner_tensors, *backend.providers


@pytest.fixture(autouse=True)
def _opened_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules.get(MODULE)
    if module is None or not request.node.nodeid.startswith(FOLDERS):
        return
    open_session = module.OnnxRuntimeBackend.open_session

    def once(backend):
        key = key_of(backend)
        if key not in SESSIONS:
            open_session(backend)
            if key is not None:
                SESSIONS[key] = backend.session
        if key is not None:
            SESSIONS.move_to_end(key)
            backend.session = SESSIONS[key]
        if len(SESSIONS) > MOST_SESSIONS:
            SESSIONS.popitem(last=False)

    monkeypatch.setattr(module.OnnxRuntimeBackend, 'open_session', once)
