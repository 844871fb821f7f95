"""Files of `_base_` that are missing: where they are looked for, and what is refused."""

import pytest

from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.compat import replaced

pytest.importorskip('mmdet')


def config(folder, *bases):
    path = folder / 'configs/own/own.py'
    path.parent.mkdir(parents=True)
    path.write_text(f'_base_ = {[*bases]}\nmodel = dict(type="FCOS")\n')
    return str(path)


def test_a_missing_base_is_read_from_the_installed_library_and_said(tmp_path, capsys):
    cfg = load_config(config(tmp_path, '../_base_/schedules/schedule_1x.py'))
    assert cfg.optimizer.type == 'SGD'
    said = capsys.readouterr().err
    assert str(tmp_path / 'configs/_base_/schedules/schedule_1x.py') in said and '.mim/configs' in said


@pytest.mark.parametrize('base', ['../_base_', '../../another/mmdetection/configs/_base_'])
def test_a_base_that_is_read_in_place_of_a_missing_one_is_in_the_verdict(tmp_path, base):
    load_config(config(tmp_path, f'{base}/schedules/schedule_1x.py'))
    missing = (tmp_path / 'configs/own' / base / 'schedules/schedule_1x.py').resolve()
    assert '.mim/configs' in replaced.facts()['bases'][str(missing)]


def test_a_base_of_the_repositorys_own_configs_comes_first(tmp_path, capsys):
    path = config(tmp_path, '_base_/schedules/schedule_1x.py')
    (tmp_path / 'configs/_base_/schedules').mkdir(parents=True)
    (tmp_path / 'configs/_base_/schedules/schedule_1x.py').write_text('optimizer = dict(type="Own")\n')
    assert load_config(path).optimizer.type == 'Own'
    assert str(tmp_path / 'configs/_base_') in capsys.readouterr().err


def test_a_base_that_nobody_has_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r'configs/_base_/models/nobodys\.py'):
        load_config(config(tmp_path, '../_base_/models/nobodys.py'))


def test_a_key_that_two_bases_set_is_refused_as_mmcv_refuses_it(tmp_path):
    path = config(tmp_path, '../_base_/schedules/schedule_1x.py', 'also.py')
    (tmp_path / 'configs/own/also.py').write_text('optimizer = dict(type="Adam")\n')
    with pytest.raises(ConfigError, match='optimizer'):
        load_config(path)
