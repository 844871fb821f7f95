"""A family of a package of one's own: `outside_package`, which docs/own-family.md shows."""

import ast
import functools
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import mmdeploy_ext
from mmdeploy_ext import register_family
from mmdeploy_ext.cli import command, export_app, run_images
from mmdeploy_ext.contract import registry
from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.contract.options import Option
from mmdeploy_ext.core.errors import ConfigError, DataError, ModelFileError
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.runtime.detect import results_of, runtime_of
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.seeded.weights import write_seeded
from mmdeploy_ext.tasks import bbox2d, task_module
from mmdeploy_ext.tasks.check import check_task
from mmdeploy_ext.tasks.half_bars import HalfBars
from verdicts import cases_of

OUTSIDE = Path(__file__).resolve().parents[1] / 'outside_package'
REPOSITORY = OUTSIDE.parents[1]
CONFIG = str(OUTSIDE / 'config.py')
PICTURE = str(REPOSITORY / 'demo/toy.jpg')
PADDED = 'mmdeploy_ext.families.parts.runtime.padded_results'
BEST = Detections(
    np.array([[9, 9, 20, 30], [40, 30, 50, 80]], np.float32),
    np.array([0.9, 0.6], np.float32),
    np.array([0, 1]),
)


def test_the_page_shows_the_package():
    page = (REPOSITORY / 'docs/own-family.md').read_text(encoding='utf-8')
    for path in [*(OUTSIDE / 'gauges').glob('*.py'), OUTSIDE / 'config.py', OUTSIDE / 'pyproject.toml']:
        assert f'\n{path.read_text(encoding="utf-8")}```' in page, path.name


def imports_of(folder):
    """Return the modules of this package that the files of a folder import, without its name."""
    found = set()
    for path in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if not (isinstance(node, ast.ImportFrom) and node.module.split('.')[0] == 'mmdeploy_ext'):
                continue
            for alias in node.names:
                name = f'{node.module}.{alias.name}'
                is_module = (REPOSITORY / name.replace('.', '/')).with_suffix('.py').is_file()
                found.add((name if is_module else node.module).removeprefix('mmdeploy_ext.'))
    return found


@pytest.mark.parametrize('package', [OUTSIDE, REPOSITORY / 'projects/mmrotate/mm2onnx_mmrotate'])
def test_packages_outside_import_the_modules_that_the_page_lists_and_no_others(package):
    page = (REPOSITORY / 'docs/own-family.md').read_text(encoding='utf-8')
    table = page.partition('## What to import')[2].partition('\n## ')[0]
    public = set(re.findall(r'^\| `([\w.]+)`', table, re.M))
    assert len(public) <= 12
    assert {'mmdeploy_ext', 'families.images'} <= imports_of(package) <= public


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Return the status of an export of the family that a config registers, and the folder of its files."""
    folder = tmp_path_factory.mktemp('gauges')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(OUTSIDE))
        patch.setattr(registry, '_REGISTERED', dict(registry.registered()))
        write_seeded(CONFIG, folder / 'gauges.pth')
        option = Option('panel', 'round', 'kind of panel', ('round', 'square'))
        register_family(
            'gauges', 'gauges.family:GaugeFamily', options=(option,), runtime=PADDED, claims=('GaugeHead',)
        )
        words = [CONFIG, folder / 'gauges.pth', '--output-file', folder / 'm.onnx', '--panel', 'square']
        words += ['--verify', '--json', folder / 'verdict.json', '--report', folder / 'report']
        yield export_app.main([*map(str, words)]), folder
    FAMILIES.pop('gauges')
    for name in [name for name in sys.modules if name.split('.')[0] == 'gauges']:
        del sys.modules[name]


def test_the_family_of_the_page_is_proven_with_its_option(exported):
    status, folder = exported
    verdict = json.loads((folder / 'verdict.json').read_text())
    assert (status, verdict['verdict'], verdict['subject']['task']) == (0, 'proven', 'bbox2d')
    metadata = read_metadata(str(folder / 'm.onnx'))
    assert (metadata.family, metadata.form, metadata.options['panel']) == ('gauges', 'full', 'square')
    assert (folder / 'report/detections.png').is_file()


def test_the_same_by_functions(exported):
    _, folder = exported
    checkpoint, file = folder / 'gauges.pth', folder / 'm.onnx'
    assert mmdeploy_ext.prove(CONFIG, checkpoint, file, asked=dict(panel='square')).proven
    assert not mmdeploy_ext.prove(CONFIG, checkpoint, file, asked=dict(panel='round')).passed
    made = mmdeploy_ext.export(CONFIG, checkpoint, folder / 'other.onnx', height=64, width=64)
    assert made.files == [str(folder / 'other.onnx')] and made.options.panel == 'round'
    with mmdeploy_ext.open_model(made.files[0]) as model:
        assert len(model(read_image(PICTURE))) == 6


@pytest.mark.parametrize(
    ('edits', 'expected'),
    [
        ({}, []),
        (dict(iou_bar=0.0), ['other bboxes_xyxy']),
        (dict(score_bar=9.0), ['other scores']),
    ],
)
def test_a_matching_that_overlooks_differences_is_told(monkeypatch, edits, expected):
    monkeypatch.setattr(bbox2d, 'match_detections', functools.partial(bbox2d.match_detections, **edits))
    assert check_task('bbox2d', BEST, ['bboxes_xyxy']) == expected
    with pytest.raises(DataError, match='give some that count'):
        check_task('bbox2d', BEST[:0])


def test_weights_that_a_family_calls_unused_and_a_checkpoint_lacks_prove_nothing(exported, monkeypatch):
    _, folder = exported
    weights = torch.load(folder / 'gauges.pth')['state_dict']
    head = 'bbox_head.bbox_pred.'
    without = {name: tensor for name, tensor in weights.items() if not name.startswith(head)}
    torch.save(dict(state_dict=without), folder / 'without.pth')
    monkeypatch.setattr(type(FAMILIES['gauges']), 'ignored_prefixes', (head,))
    made = mmdeploy_ext.export(CONFIG, folder / 'without.pth', folder / 'without.onnx', height=64, width=64)
    verdict = mmdeploy_ext.prove(CONFIG, folder / 'without.pth', made.files[0])
    failures = [failure for case in cases_of(verdict) for failure in case.failures]
    assert not verdict.passed and 'NaN' in failures[0]


def test_the_same_file_is_drawn_by_its_runtime(exported):
    _, folder = exported
    words = ['run', folder / 'm.onnx', PICTURE, '--out', folder / 'drawn', '--json', folder / 'c.json']
    assert command.main([*map(str, words)]) == 0
    (image,) = json.loads((folder / 'c.json').read_text())['images']
    assert image['detections']


@pytest.fixture
def registered(monkeypatch):
    registry.registered()
    monkeypatch.setattr(registry, '_REGISTERED', dict(registry._REGISTERED))


def test_a_default_that_is_no_choice_and_a_module_that_is_no_runtime_are_refused(registered):
    option = Option('radius', 'miles', choices=('pixels', 'log'))
    with pytest.raises(ConfigError, match="option 'radius' has the default 'miles'"):
        register_family('rings', 'rings.family:Rings', options=(option,))
    register_family('rings', 'rings.family:Rings', runtime='json')
    with pytest.raises(ConfigError, match='its runtime json has neither detections'):
        runtime_of('rings')


@pytest.mark.parametrize(
    ('results', 'expected'),
    [
        (None, 'gives NoneType'),
        ([BEST.bboxes_xyxy], 'gives list of ndarray'),
        ([BEST[::-1]], 'another order than the best first'),
    ],
)
def test_results_of_a_runtime_that_are_none_or_in_another_order_are_refused(
    registered, monkeypatch, results, expected
):
    runtime = types.ModuleType('rings_runtime')
    runtime.detections = lambda *_: results
    monkeypatch.setitem(sys.modules, 'rings_runtime', runtime)
    register_family('rings', 'rings:Rings', runtime='rings_runtime')
    with pytest.raises(ConfigError, match=expected):
        results_of('rings', None, {}, {})


def test_what_is_missing_is_named(registered):
    register_family('bare', 'bare.family:Bare')
    with pytest.raises(ConfigError, match=r"'bare'"):
        runtime_of('bare')
    with pytest.raises(ModelFileError, match=r"'absent'"):
        runtime_of('absent')
    metadata = types.SimpleNamespace(family='absent', form='raw')
    with pytest.raises(ModelFileError, match=r"'absent' is not registered here.*Install the package"):
        run_images.check_file('m.onnx', metadata, 'run')
    with pytest.raises(ConfigError, match=r"'rbbox'.*bbox2d"):
        task_module('rbbox')
    with pytest.raises(ConfigError, match=r"'json'.*match_detections.*pair_up"):
        task_module('json')
    with pytest.raises(ConfigError, match=r"'json'.*half_bars, half_text"):
        HalfBars().of_task('json')
    register_family('wrong', 'json:Wrong')
    with pytest.raises(ConfigError, match=r"'wrong'.*'json:Wrong'"):
        FAMILIES.get('wrong')


def test_families_can_be_instances_of_one_class(registered, monkeypatch):
    rings = [types.SimpleNamespace(name=name) for name in ('small', 'large')]
    monkeypatch.setitem(sys.modules, 'rings', types.SimpleNamespace(SMALL=rings[0], LARGE=rings[1]))
    for name in ('small', 'large'):
        register_family(name, f'rings:{name.upper()}')
    assert [registry.registered()[ring.name].load_family() for ring in rings] == rings


def test_a_family_without_a_task_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"task '': there is no such module; expected bbox2d"):
        task_module('')
    with pytest.raises(ConfigError, match=r"task '\.relative': there is no such module"):
        task_module('.relative')


def test_a_family_of_images_that_states_no_forms_is_refused_by_name(monkeypatch):
    class Rings(ImageFamily):
        name = 'rings'

    monkeypatch.setattr(Rings, '__abstractmethods__', frozenset())
    with pytest.raises(ConfigError, match=r"family 'rings' has no forms; expected one at least"):
        Rings().choose()


def test_a_task_whose_import_fails_is_not_said_to_be_missing(tmp_path, monkeypatch):
    (tmp_path / 'absent_task.py').write_text('import absent')
    (tmp_path / 'wrong_task.py').write_text("raise ValueError('of its own')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="'absent'"):
        task_module('absent_task')
    with pytest.raises(ValueError, match='of its own'):
        task_module('wrong_task')


def test_a_name_is_taken_once(registered):
    register_family('twice', 'a:A')
    register_family('twice', 'a:A')  # as after a reload
    with pytest.raises(ConfigError, match=r"'twice'.*'b:B'"):
        register_family('twice', 'b:B')
    with pytest.raises(ConfigError, match=r"'Upper'"):
        register_family('Upper', 'a:A')
    with pytest.raises(ConfigError, match=r"expected 'module:Class'"):
        register_family('right', 'a.A')


def test_an_entry_point_that_fails_is_named(registered, monkeypatch):
    class Entry:
        dist, name, value = None, 'broken', 'broken_package'

        def load(self):
            raise ImportError('no torch')

    monkeypatch.setattr(registry.importlib.metadata, 'entry_points', lambda group: [Entry()])
    registry._import_all.cache_clear()
    with pytest.raises(ConfigError, match=r'broken_package.*mm2onnx.families'):
        registry.registered()
    monkeypatch.undo()
    registry._import_all.cache_clear()
