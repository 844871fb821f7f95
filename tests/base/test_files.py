"""Files appear whole or not at all, whatever happens while they are written."""

import copy
import os
import secrets
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mmdeploy_ext.base.errors import Mm2OnnxError, ModelFileError, UsageError
from mmdeploy_ext.base.files import (
    atomic_path,
    check_outputs,
    check_writable,
    read_onnx,
    sha256_file,
    sha256_onnx,
    watched_run,
    will_read,
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


def write(target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.write_bytes(b'new')


def test_a_pipe_is_written_through(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_writable(pipe)
    write(pipe)
    assert os.read(reader, 9) == b'new' and stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


def test_the_link_to_an_open_output_is_written_through(tmp_path, capfd):
    (tmp_path / 'stdout').symlink_to('/proc/self/fd/1')
    print('before')
    write(tmp_path / 'stdout')
    print('after')
    assert capfd.readouterr().out == 'before\nnewafter\n' and (tmp_path / 'stdout').is_symlink()


def test_no_temporary_name_can_be_taken_before(tmp_path, monkeypatch):
    (tmp_path / 'victim').write_bytes(b'mine')
    (tmp_path / f'.target.{os.getpid()}.part').symlink_to('victim')
    monkeypatch.setattr(secrets, 'token_hex', lambda _: 'known')
    (tmp_path / '.target.known.part').symlink_to('victim')
    with pytest.raises(Mm2OnnxError):
        write(tmp_path / 'target')
    monkeypatch.undo()
    write(tmp_path / 'target')
    assert (tmp_path / 'victim').read_bytes() == b'mine' and (tmp_path / 'target').read_bytes() == b'new'


@pytest.mark.parametrize('earlier', [True, False])
def test_the_target_of_a_link_is_written(tmp_path, earlier):
    (tmp_path / 'store').mkdir()
    if earlier:
        (tmp_path / 'store/target').write_bytes(b'earlier')
    (tmp_path / 'link').symlink_to('store/target')
    write(tmp_path / 'link')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'store/target').read_bytes() == b'new'
    assert names(tmp_path) == ['link', 'store'] and names(tmp_path / 'store') == ['target']


def test_a_file_keeps_its_permissions_and_a_read_only_one_its_content(tmp_path):
    for mode in (0o600, 0o444):
        path = tmp_path / f'{mode:o}'
        path.write_bytes(b'earlier')
        path.chmod(mode)
    write(tmp_path / '600')
    for refuses in (write, check_writable):
        with pytest.raises(UsageError, match='444'):
            refuses(tmp_path / '444')
    modes = {path.name: (oct(path.stat().st_mode)[-3:], path.read_bytes()) for path in tmp_path.iterdir()}
    assert modes == {'600': ('600', b'new'), '444': ('444', b'earlier')}


def test_an_input_is_known_by_its_resolved_path(tmp_path):
    (tmp_path / 'in.onnx').write_bytes(b'input')
    with pytest.raises(UsageError, match='not overwritten'):
        check_outputs({'--output': [tmp_path / 'new/../in.onnx']}, {'the input': [tmp_path / 'in.onnx']})


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


def test_a_name_that_leaves_no_room_for_the_temporary_one_is_refused_before_the_work(tmp_path):
    check_writable(tmp_path / ('a' * 230))
    with pytest.raises(UsageError, match='shorter'):
        check_writable(tmp_path / ('a' * 250))


def test_an_onnx_file_without_permission_is_not_called_cut_short(tmp_path, monkeypatch):
    path = tmp_path / 'm.onnx'
    path.write_bytes(b'x')
    monkeypatch.setattr(os, 'access', lambda *_: False)  # root may read all
    with pytest.raises(ModelFileError, match='permission'):
        read_onnx(path)


def test_an_output_is_no_input_that_is_found_later(tmp_path):
    (tmp_path / 'a').touch()
    with watched_run() as run:
        run.writes('--json', [tmp_path / 'a', tmp_path / 'b'])
        with pytest.raises(UsageError, match='--json'):
            will_read('a file of the kit', [tmp_path / 'a'])
        will_read('a file of the kit', [tmp_path / 'c'])
        run.writes('--out', [os.devnull])
        will_read('a file of the kit', [os.devnull])
