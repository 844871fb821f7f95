"""Names that a file's content gives lead to nothing outside of its folder."""

import os

import pytest

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.base.files import name_problem, path_in

OUTSIDE = ['../a', '/a', 'a/../b', 'a//b', './a', '', '.', '..', 'a\\b', 'a\0b', 'a\nb', 'x' * 256, None, 3]


@pytest.mark.parametrize('name', OUTSIDE)
def test_no_name_leads_out_of_its_folder(tmp_path, name):
    assert name_problem(name) and name_problem(name, below=True)
    with pytest.raises(DataError, match='source'):
        path_in(tmp_path, name, 'source', below=True)


def test_a_name_may_have_folders_where_they_are_asked_for(tmp_path):
    assert name_problem('a/b.bin') and not name_problem('a/b.bin', below=True)
    assert path_in(tmp_path, 'a/b.bin', 'source', below=True) == tmp_path / 'a/b.bin'


def test_links_folders_and_pipes_are_no_files_of_a_folder(tmp_path):
    folder, elsewhere = tmp_path / 'folder', tmp_path / 'elsewhere'
    (elsewhere / 'inner').mkdir(parents=True)
    (elsewhere / 'inner/file').touch()
    folder.mkdir()
    (folder / 'link').symlink_to(elsewhere / 'inner/file')
    (folder / 'way').symlink_to(elsewhere)
    (folder / 'made').mkdir()
    os.mkfifo(folder / 'pipe')
    for name in ('link', 'way/inner/file', 'made', 'pipe'):
        with pytest.raises(DataError, match=name.partition('/')[0]):
            path_in(folder, name, 'source', below=True)
    (tmp_path / 'entrance').symlink_to(elsewhere / 'inner')
    assert path_in(tmp_path / 'entrance', 'file', 'source').is_file(), 'the folder itself may be a link'
