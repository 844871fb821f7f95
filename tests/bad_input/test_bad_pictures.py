"""Pictures that cannot be used: named, not decoded where they are too large, and no end of a folder's run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import picture_faults
from mmdeploy_ext.cli import run_app
from mmdeploy_ext.core.errors import ImageError
from mmdeploy_ext.preprocess.pictures import list_images, read_image

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = str(REPOSITORY / 'demo/atss_toy.onnx')
TOY = REPOSITORY / 'demo/toy.jpg'
BAD = {
    'b_cut.jpg': 'is not an image',
    'd_damaged.jpg': 'is damaged (Corrupt JPEG data',
    'f_empty.png': 'is empty',
}


def damaged(content):
    """Return a JPEG whose middle is not what was written: it has a size, an end, and other pixels."""
    middle = len(content) // 2
    return content[:middle] + bytes(400) + content[middle + 400 :]


@pytest.fixture
def folder(tmp_path):
    """A folder of three good pictures between three bad ones."""
    content = TOY.read_bytes()
    files = {'b_cut.jpg': content[: len(content) // 2], 'd_damaged.jpg': damaged(content), 'f_empty.png': b''}
    for name in ('a.jpg', 'c.jpg', 'e.jpg'):
        files[name] = content
    for name, data in files.items():
        (tmp_path / 'in').mkdir(exist_ok=True)
        (tmp_path / 'in' / name).write_bytes(data)
    return tmp_path / 'in'


def run(folder, *words):
    return run_app.main([MODEL, str(folder), '--out', str(folder.parent / 'out'), '--threads', '1', *words])


def test_a_bad_picture_is_reported_and_the_others_are_done(folder, capsys):
    report = folder.parent / 'found.json'
    assert run(folder, '--json', str(report)) == 1
    out, err = capsys.readouterr()
    entries = json.loads(report.read_text())['images']
    assert [Path(entry['image']).name for entry in entries] == sorted(path.name for path in folder.iterdir())
    for entry in entries:
        message = BAD.get(Path(entry['image']).name)
        assert ('detections' in entry) == (message is None)
        assert message is None or (entry['error'] in err and f'{entry["image"]}: {message}' in entry['error'])
    assert out.count('detections, ') == 4 and 'error: 3 of 6 images could not be used' in err
    assert len(err.splitlines()) == 4 and all(line.startswith('error: ') for line in err.splitlines())
    assert sorted(os.listdir(folder.parent / 'out')) == ['a_det.jpg', 'c_det.jpg', 'e_det.jpg']


def test_fail_fast_ends_at_the_first_one(folder, capsys):
    assert run(folder, '--fail-fast') == 2
    out, err = capsys.readouterr()
    assert out.count(' detections, ') == 1 and err.count('\n') == 1 and 'b_cut.jpg: is not an image' in err


def test_a_single_bad_picture_is_refused(folder, capsys):
    assert run_app.main([MODEL, str(folder / 'b_cut.jpg'), '--out', str(folder.parent / 'out')]) == 2
    assert capsys.readouterr().err.count('\n') == 1


@pytest.mark.parametrize('captured', [True, False])
def test_a_jpeg_that_is_damaged_in_the_middle_is_refused(folder, captured, capfd):
    script = 'from mmdeploy_ext.preprocess.pictures import read_image; '
    script += f'read_image({str(folder / "d_damaged.jpg")!r})'
    if captured:
        with capfd.disabled(), pytest.raises(ImageError, match=r'd_damaged\.jpg.*\(Corrupt JPEG'):
            read_image(folder / 'd_damaged.jpg')
        with pytest.raises(ImageError, match='is damaged'):
            read_image(folder / 'd_damaged.jpg')
        assert capfd.readouterr() == ('', '')
        return
    closed = f'import os, sys; os.close(2)\ntry:\n    {script}\nexcept Exception as error:\n    print(error)'
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    done = subprocess.run([sys.executable, '-c', closed], env=environment, capture_output=True, text=True)
    assert 'is damaged (Corrupt JPEG data' in done.stdout, done


def test_what_opencv_raises_is_an_error_that_names_the_file(tmp_path):
    # sides that OpenCV takes for impossible, in a format whose header is not read here
    (tmp_path / 'large.pgm').write_bytes(b'P5\n2000000 2000000\n255\n')
    with pytest.raises(ImageError, match=r'large\.pgm: cannot be decoded|large\.pgm: is not an image'):
        read_image(tmp_path / 'large.pgm')


def test_folders_with_the_names_of_pictures_are_none(tmp_path):
    (tmp_path / 'album.jpg').mkdir()
    (tmp_path / 'album.jpg' / 'a.png').write_bytes(b'x')
    assert [path.name for path in list_images([tmp_path])] == ['a.png']


def test_damaged_pictures_are_read_or_refused(tmp_path):
    for number, (name, content) in enumerate(picture_faults.pictures(TOY, 60, seed=45)):
        path = tmp_path / f'{number}{name}'
        path.write_bytes(content)
        try:
            assert read_image(path).dtype == np.uint8
        except ImageError as error:
            assert str(error).startswith(f'{path}: ')
