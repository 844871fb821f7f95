"""A family of a package of one's own, `outside_package`, with a task, options, checks and a runtime."""

import functools
import json
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import mmdeploy_ext
from mmdeploy_ext import register_family
from mmdeploy_ext.cli import command, export_app
from mmdeploy_ext.contract import registry
from mmdeploy_ext.contract.metadata import Metadata, read_metadata
from mmdeploy_ext.contract.options import Option
from mmdeploy_ext.core.errors import ConfigError, DataError, ModelFileError
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.runtime import run_images
from mmdeploy_ext.runtime.detect import results_of, runtime_of
from mmdeploy_ext.tasks import task_module
from mmdeploy_ext.tasks.check import check_task
from mmdeploy_ext.tasks.half_bars import HalfBars
from verdicts import cases_of

OUTSIDE = Path(__file__).resolve().parents[2] / 'outside_package'
CONFIG = str(OUTSIDE / 'config.py')
PICTURE = str(Path(__file__).resolve().parents[3] / 'demo/toy.jpg')


def test_the_page_shows_the_package_and_says_how_many_lines_it_has():
    page = (Path(__file__).resolve().parents[3] / 'docs/own-family.md').read_text(encoding='utf-8')
    files = sorted((OUTSIDE / 'circles').glob('*.py'))
    for path in [*files, OUTSIDE / 'pyproject.toml']:
        assert f'\n{path.read_text(encoding="utf-8")}```' in page, path.name
    lines = [line for path in files if path.name != 'model.py' for line in path.read_text().splitlines()]
    assert len([line for line in lines if line.strip()]) == 108 and '108 lines' in page


def write_checkpoint(path):
    """Write seeded weights, with scores that spread, of the model of the package."""
    from circles.model import CircleNet

    torch.manual_seed(1)
    model = CircleNet(3, 20)
    model.heat.weight.data *= 20
    model.radius.bias.data += 2
    torch.save(dict(state_dict=model.state_dict()), path)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Return the status of an export of the family that a config registers, and the folder of its files."""
    folder = tmp_path_factory.mktemp('circles')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(OUTSIDE))
        write_checkpoint(folder / 'circles.pth')
        words = [CONFIG, folder / 'circles.pth', '--output-file', folder / 'm.onnx', '--radius', 'log']
        words += [
            '--shape',
            '64',
            '96',
            '--verify',
            '--json',
            folder / 'verdict.json',
            '--report',
            folder / 'report',
        ]
        status = export_app.main([*map(str, words)])
    yield status, folder
    registry._REGISTERED.pop('circles')
    FAMILIES.pop('circles')
    for name in [name for name in sys.modules if name.split('.')[0] == 'circles']:
        del sys.modules[name]


def test_a_family_that_a_config_imports_is_proven_with_its_form_its_option_and_its_task(exported):
    status, folder = exported
    verdict = json.loads((folder / 'verdict.json').read_text())
    assert (status, verdict['verdict'], verdict['subject']['task']) == (0, 'proven', 'circles.task')
    metadata = read_metadata(str(folder / 'm.onnx'))
    assert (metadata.family, metadata.form, metadata.options['radius']) == ('circles', 'raw', 'log')
    assert (folder / 'report/detections.png').is_file()


def test_the_same_by_functions(exported):
    _, folder = exported
    verdict = mmdeploy_ext.prove(CONFIG, folder / 'circles.pth', folder / 'm.onnx', asked=dict(radius='log'))
    assert verdict.proven and verdict.title == 'PROVEN'
    verdict = mmdeploy_ext.prove(
        CONFIG, folder / 'circles.pth', folder / 'm.onnx', asked=dict(radius='pixels')
    )
    assert not verdict.passed
    made = mmdeploy_ext.export(CONFIG, folder / 'circles.pth', folder / 'other.onnx', height=64, width=64)
    assert made.files == [str(folder / 'other.onnx')] and made.options.radius == 'pixels'
    with mmdeploy_ext.open_model(made.files[0]) as model:
        assert len(model(read_image(PICTURE))) == 20


@pytest.mark.parametrize(
    ('edits', 'expected'),
    [
        ({}, []),
        (dict(pixel_bar=1e9), ['other circles']),
        (dict(score_bar=9.0), ['other scores']),
    ],
)
def test_a_matching_that_overlooks_differences_is_told(exported, monkeypatch, edits, expected):
    from circles import task
    from circles.runtime import Circles

    monkeypatch.setattr(task, 'match_detections', functools.partial(task.match_detections, **edits))
    places = np.array([[9, 9, 2], [40, 30, 5]], np.float32)
    results = Circles(places, np.array([0.9, 0.6], np.float32), np.array([0, 1]))
    assert check_task('circles.task', results, ['circles']) == expected
    with pytest.raises(DataError, match='give some that count'):
        check_task('circles.task', results[:0])


@pytest.mark.parametrize(
    ('results', 'expected'),
    [
        (lambda best: None, 'gives NoneType'),
        (lambda best: [best.circles], 'gives list of ndarray'),
        (lambda best: [best[::-1]], 'another order than the best first'),
    ],
)
def test_results_of_a_runtime_that_are_none_or_in_another_order_are_refused(
    exported, monkeypatch, results, expected
):
    from circles import runtime

    best = runtime.Circles(np.ones((2, 3)), np.array([0.9, 0.6], np.float32), np.array([0, 1]))
    monkeypatch.setattr(runtime, 'detections', lambda *_: results(best))
    with pytest.raises(ConfigError, match=expected):
        results_of('circles', None, {}, {})


def test_weights_that_a_family_calls_unused_and_a_checkpoint_lacks_prove_nothing(exported, monkeypatch):
    _, folder = exported
    weights = torch.load(folder / 'circles.pth')['state_dict']
    without = {name: tensor for name, tensor in weights.items() if not name.startswith('radius.')}
    torch.save(dict(state_dict=without), folder / 'without.pth')
    monkeypatch.setattr(type(FAMILIES['circles']), 'ignored_prefixes', ('radius.',))
    made = mmdeploy_ext.export(CONFIG, folder / 'without.pth', folder / 'without.onnx', height=64, width=64)
    verdict = mmdeploy_ext.prove(CONFIG, folder / 'without.pth', made.files[0])
    failures = [failure for case in cases_of(verdict) for failure in case.failures]
    assert not verdict.passed and 'NaN' in failures[0]


def test_the_same_file_is_drawn_by_its_runtime(exported, capsys):
    _, folder = exported
    words = [
        'run',
        str(folder / 'm.onnx'),
        PICTURE,
        '--out',
        str(folder / 'drawn'),
        '--json',
        str(folder / 'c.json'),
    ]
    assert command.main(words) == 0
    (image,) = json.loads((folder / 'c.json').read_text())['images']
    assert len(image['detections']) == 20 and len(image['detections'][0]['circle']) == 3


def test_metadata_are_checked_by_the_facts_of_the_family(exported):
    _, folder = exported
    model = onnx.load(folder / 'm.onnx')
    props = {prop.key: prop.value for prop in model.metadata_props}
    facts = json.loads(props['mm2onnx.postprocess']) | dict(count=0)
    with pytest.raises(ModelFileError, match=r'mm2onnx\.postprocess: count is 0'):
        Metadata.from_props({**props, 'mm2onnx.postprocess': json.dumps(facts)}, 'm.onnx')


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
