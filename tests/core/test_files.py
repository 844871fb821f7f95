"""Files appear whole or not at all, whatever happens while they are written."""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mmdeploy_ext.core.files import (
    atomic_path,
    sha256_file,
    sha256_onnx,
)
from toy_engines import two_outputs


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_under_its_name_only_when_it_is_whole(tmp_path):
    target = tmp_path / 'new' / 'folder' / 'target'
    with atomic_path(target) as temporary:
        temporary.write_bytes(b'whole')
        assert temporary.parent == target.parent and not target.exists()
    assert target.read_bytes() == b'whole' and names(target.parent) == ['target']


@pytest.mark.parametrize('error', [KeyError, KeyboardInterrupt])
def test_an_exception_leaves_the_earlier_file_and_nothing_else(error, tmp_path):
    (tmp_path / 'target').write_bytes(b'earlier')
    with pytest.raises(error), atomic_path(tmp_path / 'target') as temporary:
        temporary.write_bytes(b'half')
        raise error
    assert (tmp_path / 'target').read_bytes() == b'earlier' and names(tmp_path) == ['target']


def test_the_digest_of_an_onnx_file_has_the_weights_beside_it(tmp_path):
    path = tmp_path / 'm.onnx'
    model = two_outputs()
    onnx.save(model, path)
    assert sha256_onnx(path) == sha256_file(path)
    weight = numpy_helper.from_array(np.zeros(300, np.float32), 'weight')
    model.graph.initializer.append(weight)
    digests = []
    for value in range(2):
        stored = copy.deepcopy(model)
        stored.graph.initializer[-1].raw_data = np.full(300, value, np.float32).tobytes()
        onnx.save_model(stored, path, save_as_external_data=True, location='m.data', size_threshold=0)
        digests.append((sha256_file(path), sha256_onnx(path)))
        (tmp_path / 'm.data').unlink()
    (graph, first), (same_graph, second) = digests
    assert graph == same_graph and len({graph, first, second, sha256_onnx(path)}) == 4
