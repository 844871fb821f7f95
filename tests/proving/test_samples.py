"""Any tool that proves takes samples of the model's kind, and has generated ones where none are given."""

import pickle
import types

import numpy as np
import pytest

import toy_centerpoint
import toy_scn_family
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import DataError, UsageError
from mmdeploy_ext.base.files import read_json
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.bench.kinds.sequence import check_paths, proof_samples
from mmdeploy_ext.cli import export_app, verify_app
from mmdeploy_ext.families.synthetic.coco import ensure_toy_coco
from toy_atss import CONFIG, PICTURE
from verdicts import cases_of

MEMORY = types.SimpleNamespace(memory=True, samples='frames')
SWEEPS = types.SimpleNamespace(memory=False, samples='sweeps')
IMAGES = types.SimpleNamespace(product='detector', samples='images', preprocess_rule=lambda cfg: None)


@pytest.fixture(scope='module')
def toy():
    return toy_centerpoint.exported()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Three sweeps, and infos of them."""
    folder = tmp_path_factory.mktemp('sweeps')
    names = [f'{seed}.bin' for seed in range(3)]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(toy_centerpoint.sweep(seed).tobytes())
    infos = [dict(lidar_path=str(folder / name), sweeps=[], timestamp=0) for name in names]
    (folder.parent / 'infos.pkl').write_bytes(pickle.dumps(dict(infos=infos)))
    return folder


def test_a_model_without_a_memory_is_proven_on_one_frame_and_with_one_on_two():
    assert check_paths(SWEEPS, [], 1) == 1 and check_paths(MEMORY, [], 2) == 2
    assert check_paths(SWEEPS, []) == check_paths(MEMORY, []) == 12
    with pytest.raises(UsageError, match=r'--frames 1.*2'):
        check_paths(MEMORY, [], 1)
    with pytest.raises(UsageError, match=r'--frames 0.*1'):
        check_paths(SWEEPS, [], 0)


def test_files_of_another_kind_are_refused_by_name(tmp_path):
    sweep, picture = tmp_path / 'a.bin', tmp_path / 'a.jpg'
    for path in (sweep, picture):
        path.write_bytes(b'')
    with pytest.raises(UsageError, match=r'--images.*none.bin'):
        check_paths(SWEEPS, [str(tmp_path / 'none.bin')])
    with pytest.raises(UsageError, match=r'--test-img.*a.jpg.*LiDAR'):
        check_paths(SWEEPS, [str(picture)], option='--test-img')
    with pytest.raises(UsageError, match=r'a.bin.*\(.pkl\)'):
        check_paths(MEMORY, [str(sweep)])
    check_paths(SWEEPS, [str(sweep), str(tmp_path)])
    with pytest.raises(UsageError, match=r'--images a.pkl b.pkl: expected one info file'):
        check_paths(MEMORY, ['a.pkl', 'b.pkl'])


def test_sweeps_are_read_from_files_folders_and_infos(toy, folder):
    detector = toy[0]
    for given, names in (
        ([folder / '1.bin'], ['1.bin']),
        ([folder], ['0.bin', '1.bin', '2.bin']),
        ([folder.parent / 'infos.pkl', folder / '0.bin'], ['0.bin', '1.bin', '2.bin', '0.bin']),
    ):
        found, _ = proof_samples(detector, 3, list(map(str, given)))
        assert [sweep.name for sweep in found] == names
        for sweep in found:
            seed = int(sweep.name[0])
            np.testing.assert_array_equal(sweep.points, toy_centerpoint.sweep(seed))
    assert [sweep.name for sweep in proof_samples(detector, 1, [str(folder)])[0]] == ['0.bin']


def test_a_sweep_that_cannot_be_read_once_the_weights_are_loaded_has_exit_status_1(toy, tmp_path):
    (tmp_path / 'a.bin').write_bytes(bytes(7))
    samples = kind_of(toy[0].family).samples(toy[0], [str(tmp_path / 'a.bin')])
    with pytest.raises(DataError, match=r'a.bin') as error:
        samples.of(toy[0])
    assert error.value.exit_code == 1


def test_pictures_of_the_data_set_are_added_where_it_is_there_and_the_user_names_none(tmp_path):
    root = tmp_path / 'coco'

    def chosen(*paths):
        options = {
            'data.test.ann_file': f'{root}/annotations/instances_val2017.json',
            'data.test.img_prefix': f'{root}/val2017/',
        }
        detector = types.SimpleNamespace(cfg=load_config(CONFIG, options), family=IMAGES, rule=None)
        found = kind_of(IMAGES).samples(detector, paths).of(detector)
        return [name for name, _ in found.samples], found.origin

    assert chosen() == (['toy.jpg'], '')
    ensure_toy_coco(root, train_images=1, val_images=6)
    names = [f'{number:012d}.jpg' for number in (1, 3, 5)]
    assert chosen() == (['toy.jpg', *names], '3 of 6 of data.test')
    assert chosen(str(PICTURE)) == (['toy.jpg'], '')
    (root / 'val2017' / names[1]).unlink()
    found, origin = chosen()
    assert found == ['toy.jpg'] and names[1] in origin


@pytest.mark.matrix
def test_a_sparse_backbone_is_proven_by_verify_too(tmp_path, capsys):
    config, checkpoint = toy_scn_family.write_model(tmp_path)
    points = np.random.default_rng(0).uniform(-8, 8, (2000, 5)) * [1, 1, 0.4, 1, 1]
    points.astype(np.float32).tofile(tmp_path / 'sweep.bin')
    path, report = str(tmp_path / 'lidar.backbone.xyz.onnx'), str(tmp_path / 'v.json')
    assert export_app.main(['--backbone', config, checkpoint, '--output-file', path]) == 0
    words = [config, checkpoint, path, '--images', str(tmp_path / 'sweep.bin'), '--json', report]
    assert verify_app.main(words) == 0
    assert cases_of(read_json(report))[-1].name == 'sweep.bin: 2000 points'
    for option in (['--eval', 'bbox'], ['--device', 'cuda']):
        assert verify_app.main([config, checkpoint, path, *option]) == 2
        assert option[0] in capsys.readouterr().err
