"""An option reaches the function that does its work; costly functions before it are left out."""

import dataclasses
import importlib
import inspect
import pkgutil
import sys
from unittest.mock import MagicMock

import onnx
import pytest

from mmdeploy_ext.api import ProofRequest
from mmdeploy_ext.base.commands import COMMANDS
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.cli import export_app, options
from mmdeploy_ext.exporting.int8 import Calibration
from mmdeploy_ext.proving.subject import Claims
from mmdeploy_ext.spec.options import HALF, IMAGE, MAX_CANDIDATES, OPSET, SIMPLIFY, SPARSE, Options
from refusals import CHECKPOINT, CONFIG, MODEL, PICTURE
from toy_engines import parse

MODELS, QUANTIZE = f'{CONFIG} {CHECKPOINT}', f'quantize {MODEL} --output q.onnx --calibrate {PICTURE}'
MODULE = '--samples m.py:f --tolerance 0.5 --rows r s --no-generated --seed 3'
OF_MODULE = dict(rtol=0.5, rows=['r', 's'], generate=False, seed=3)
ENGINE = '--threads 3 --providers CPUExecutionProvider'
SETTINGS = dict(engine='OnnxRuntimeBackend', threads=3, providers=['CPUExecutionProvider'])
NORMAL, OF_NORMAL = '--mean 1 2 3 --std 4 5 6', dict(mean=[1, 2, 3], std=[4, 5, 6])
LEFT_OUT = """
    .build .check_dataset .check_family .measure .open_network
    .proof.print_libraries_not_run .quantisation_facts .show bench.precision.plan.show_plan ._title .title_of
    api.plan_of_export proving.parts.export.read_model families.evaluate.evaluation.build_dataset
    families.evaluate.evaluation.check_evaluation families.evaluate.loop.run_dataset
    families.backbone_files.make_graph families.backbone_files.trace families.backbone_files.load
    families.detector.build families.detector.load_weights bench.kinds.base.Kind.load
    bench.kinds.images.Images.build proving.modules.make_module proving.modules.make_samples
    proving.modules.ModuleProof exporting.int8.dense.DenseQuantiser.calibrate
    exporting.int8.dense.DenseQuantiser.network exporting.int8.dense.finish_model exporting.int8.dense.record
    exporting.int8.dense.DenseGraph bench.precision.dense_target.compare_outputs
    bench.kinds.images.Images.check_provable bench.kinds.tested.ImageModel
    proving.inputs.PictureSamples bench.precision.dense_target.Target.save
    families.backbone_files.checkpoint_ranges bench.precision.sparse_calibration.config_sweeps
    runtime.sweeps.sweep_items
"""
RESULTS = {
    'api.read_config': MagicMock(**{'family.samples': 'images'}),
    'bench.kinds.images.Images.export': ([], 0.0),
    '.int8_layers': ['a', 'b', 'c'],
    '.model_facts': {},
    '.read_config': MagicMock(**{'family.samples': 'images'}),
    '.run_facts': {},
    'cli.lint_parts.parts_of': [MagicMock(exporters=())],
    'proving.parts.samples.samples_of': ([], ''),
    'families.detector.read_config': MagicMock(**{'family.samples': 'images'}),
    'exporting.int8.dense.DenseQuantiser.__init__': None,
    'exporting.int8.dense.layers_in_int8': ['a'],
}
"""Function that is left out -> what it returns; others return mocks."""
ROWS = [
    # command with its options, the function that gets them, its arguments
    (f'{QUANTIZE} --data-root D --images 7',
     'bench.precision.calibration_sets.calibration_set', dict(root='D', limit=7)),
    (f'{QUANTIZE} --reduce-range', 'exporting.int8.dense.DenseQuantiser.__init__', dict(reduce_range=True)),
    (f'{QUANTIZE} --method percentile --percentile 99',
     'exporting.int8.dense.DenseQuantiser.calibrate', dict(method='percentile', percentile=99)),
    (f'{QUANTIZE} --int8-last --keep-float a b', '.int8_layers', dict(keep_float=['a', 'b'], last=True)),
    (f'{QUANTIZE} --threads 3', 'bench.precision.dense_target.compare_outputs', dict(threads=3)),
    (f'prove_module m.py:f --onnx m.onnx {MODULE} --no-fresh-export',
     'proving.modules.prove_module', dict(OF_MODULE, fresh=False)),
    (f'kit m.onnx --module m.py:f --out kit {MODULE}', 'proving.modules.ModuleProof',
     dict(rtol=0.5, rows=['r', 's'], seed=3)),
    (f'kit m.onnx --module m.py:f --out kit {MODULE} --licence CC0', 'bench.kit.modules.write_module_kit',
     dict(generate=False, pictures=[dict(name='m.py:f', licence='CC0')])),
    (f'export {MODELS} --test-img a --frames 3 --input-img b --verify',
     'bench.kinds.images.Images.samples', dict(paths=['a'], frames=3, traced='b')),
    (f'export {MODELS} --images a --verify', 'bench.kinds.images.Images.samples', dict(paths=['a'])),
    (f'export {MODELS} {NORMAL}', 'bench.kinds.images.Images.build', OF_NORMAL),
    (f'export {MODELS} --verify --strict --library installed {ENGINE}', 'api.prove_on',
     dict(engine=SETTINGS, claims=Claims(library='installed', strict=True, written=True))),
    (f'verify {MODELS} m.onnx {NORMAL} --eval bbox --strict --edited {ENGINE}', '.prove_read', dict(
        request=ProofRequest(str(CONFIG), str(CHECKPOINT), 'm.onnx', **OF_NORMAL, cfg_options={}, threads=3,
                             providers=['CPUExecutionProvider'], metrics=['bbox'], edited=True, asked={},
                             strict=True))),
    (f'verify {MODELS} m.onnx --engine openvino --inference-precision fp16',
     'api.engine_settings', dict(engine='openvino', inference_precision='fp16')),
    (f'export_scn --backbone {MODELS} --out m --verify-only --edited --max-voxels 9 --order zyx',
     '.prove_read',
     dict(request=ProofRequest(str(CONFIG), str(CHECKPOINT), 'm', cfg_options={}, edited=True,
                               asked=dict(order='zyx'), option='--input',
                               settings=dict(max_voxels=9, node_list='', ranges=None)))),
    (f'scn_ptq {MODELS} --calibrate D --unfolded a b --data-root R --no-fp16-ranges',
     'bench.precision.sparse_calibration.calibrate',
     dict(options=Calibration(unfolded=['a', 'b'], root='R', half=False))),
    (f'scn_ptq {MODELS} --fidelity F --target 0.9 --no-advice',
     'bench.precision.fidelity.fidelity', dict(target=0.9, advise=False)),
    (f'scn_ptq {MODELS} --output r --weight-layout spconv1',
     'families.backbone_files.load', dict(weight_layout='spconv1')),
    (f'parts {MODELS} --parts p --opset-version 18 --exporter dynamo --precision fp16 --simplify --seeded',
     'proving.parts.export.export_folder',
     dict(options=dict(opset=18, exporter='dynamo', precision='fp16', simplify=True, seeded=True))),
    (f'lint {MODELS} --exporter dynamo --opset-version 18 --dynamic-export',
     'bench.lint.check', dict(exporters=('dynamo',), opset=18, dynamic=True)),
    (f'lint {MODELS} --input-img a --postprocess raw --shape 96 160', 'cli.lint_parts.parts_of',
     dict(picture='a')),
    ('graph diff small.onnx small.onnx --seed 4 --rtol 0.02',
     'graphs.diff.files.diff_files', dict(seed=4, rtol=0.02)),
    ('graph fp16 small.onnx --output h.onnx --io fp16', 'graphs.passes.precision.half', dict(io='fp16')),
    ('graph simplify small.onnx --output s.onnx --tolerance 0.3',
     'graphs.output_comparison.compare_models', dict(rtol=0.3)),
    ('graph simplify small.onnx --output s.onnx --seed 4 --size N=2',
     'graphs.run.random_feeds', dict(seed=4, sizes=dict(N=2))),
    ('synthetic infos --root-path R --out-dir O --extra-tag T --version v1.0-mini --max-sweeps 2',
     'families.synthetic.nuscenes_infos.create_infos',
     dict(out_dir='O', tag='T', version='v1.0-mini', max_sweeps=2)),
    (f'run {MODEL} {PICTURE} {ENGINE}',
     'engines.onnxruntime.OnnxRuntimeBackend', dict(threads=3, providers=SETTINGS['providers'])),
    (f'test {MODELS} --eval bbox --eval-options classwise=True',
     'families.evaluate.evaluation.evaluate', dict(options=dict(classwise=True))),
]  # fmt: skip


def full(name, app):
    return f'{app.__name__}{name}' if name.startswith('.') else f'mmdeploy_ext.{name}'


@pytest.fixture
def replace(monkeypatch):
    """Return a function that puts a stand-in at a place, until the end of the test.

    A module that is imported in between has the stand-in under its own name; it gets the original as well.
    """
    originals = {}

    def put(place, stand_in):
        owner, _, name = place.rpartition('.')
        current = getattr(pkgutil.resolve_name(owner), name)
        originals[id(stand_in)] = stand_in, originals.get(id(current), (None, current))[1]
        monkeypatch.setattr(place, stand_in)

    yield put
    for module in modules_of_ours():
        for name, value in list(vars(module).items()):
            if id(value) in originals:
                setattr(module, name, originals[id(value)][1])


def modules_of_ours():
    return [module for name, module in list(sys.modules.items()) if name.startswith('mmdeploy_ext.')]


@pytest.fixture(scope='module', autouse=True)
def nothing_is_left():
    """After this file's tests no module has a stand-in."""
    yield
    for module in modules_of_ours():
        for name, value in vars(module).items():
            assert not isinstance(value, MagicMock), f'{module.__name__}.{name}'
            assert getattr(value, '__module__', '') != __name__, f'{module.__name__}.{name}'


@pytest.fixture
def command(tmp_path, monkeypatch, replace):
    """Return a function from words to the module of the command, whose costly functions are left out."""

    def opened(words):
        app = importlib.import_module(f'mmdeploy_ext.cli.{words.split()[0]}_app')
        for name in (*LEFT_OUT.split(), *RESULTS):
            if not name.startswith('.') or hasattr(app, name.split('.')[1]):
                result = RESULTS[name] if name in RESULTS else MagicMock()
                replace(full(name, app), MagicMock(return_value=result))
        return app

    monkeypatch.chdir(tmp_path)
    onnx.save(parse('y = Relu(x)'), 'small.onnx')
    return opened


@pytest.mark.parametrize(('words', 'place', 'expected'), ROWS, ids=[row[0].split()[0] for row in ROWS])
def test_an_option_reaches_its_function(words, place, expected, command, replace):
    def record(*args, **kwargs):
        given.update(signature.bind(*args, **kwargs).arguments)
        raise UsageError('reached')

    app = importlib.import_module(f'mmdeploy_ext.cli.{words.split()[0]}_app')
    given, (owner, _, function) = {}, full(place, app).rpartition('.')
    signature = inspect.signature(getattr(pkgutil.resolve_name(owner), function))
    command(words)
    replace(full(place, app), record)
    main = getattr(app, 'main', export_app.main)  # of its variants
    main(words.split()[1:])
    assert {name: given.get(name) for name in expected} == expected


def test_options_of_a_graph_are_read_by_their_own_names():
    def parsed(words):
        return export_app.build_parser().parse_args(['c', 'k', *words.split()])

    shaped = dict(height=96, width=160, form='raw', opset=18, dynamic_batch=True)
    words = '--shape 96 160 --skip-postprocess --opset-version 18 --dynamic-batch'
    assert options.graph_values(parsed(words)) == shaped
    square = dict(height=96, width=96, exporter='dynamo')
    assert options.graph_values(parsed('--shape 96 --exporter dynamo')) == square
    with pytest.raises(UsageError, match='--dynamic-batch'):
        options.graph_values(parsed('--dynamic-export --dynamic-batch'))
    again = '--library installed --mean 1.0 2.0 3.0 --ignore-keys a b --cfg-options x=1'
    assert options.proof_words(parsed(again)) == again.split()


def test_the_bounds_of_an_option_are_allowed_values():
    option = dataclasses.replace(MAX_CANDIDATES, maximum=5)
    for value in (1, 5):
        option.check(value)
    for value in (0, 6, True, 2.0):
        with pytest.raises(UsageError, match='--max-candidates'):
            option.check(value)


def words_of(declared, **values):
    chosen = Options(declared, **values)
    return ' '.join(word for option in declared for word in option.words(chosen))


def test_a_command_repeats_what_was_chosen_and_metadata_have_it():
    stated = '--postprocess full --opset-version 17 --shape 96 160 --batch-size 1 --exporter torchscript'
    assert words_of(IMAGE, height=96, width=160) == stated
    assert words_of(HALF, precision='fp16', keep_fp32=('a', 'b')) == '--precision fp16 --keep-fp32 a b'
    assert words_of(HALF, keep_fp32=('a',)) == ''
    assert words_of((dataclasses.replace(SIMPLIFY, default=True),), simplify=False) == '--no-simplify'
    assert words_of(SPARSE, layer_precision=(('a', 'int8', 'fp16'),)) == '--layer-precision a=int8:fp16'
    content = Options(IMAGE).to_json()
    assert {'simplify', 'batch'} <= content.keys() and 'input' not in content
    assert Options(IMAGE, input='uint8').to_json()['input'] == 'uint8'
    fixing = dataclasses.replace(OPSET, fixes={17: dict(simplify=True)}), SIMPLIFY
    with pytest.raises(UsageError, match='is written with True'):
        Options(fixing).check(names=['simplify'])


OUTPUTS = (
    'export c k', 'export c k --backbone', 'export c k --parts p', 'run m i', 'kit m c k', 'tensorrt m',
    'quantize m --calibrate i', 'calibrate c k', 'graph extract m --nodes a',
    'graph set-shape m x=1x1', 'graph replace m --rule r', 'graph simplify m', 'graph fp16 m',
    'graph reduce m --check nan', 'graph write-tables d k', 'convert solo m --config c',
    'convert rtdetr m --config c', 'convert mmdet3 m', 'synthetic coco', 'synthetic panoptic',
    'synthetic nuscenes', 'synthetic monocular', 'synthetic infos', 'synthetic weights c',
)  # fmt: skip


def parser_of(name, words):
    app = importlib.import_module(COMMANDS[name].module)
    return app.build_parser(*([app.chosen_by(words)] if hasattr(app, 'chosen_by') else []))


@pytest.mark.parametrize('line', OUTPUTS)
def test_the_output_of_every_command_is_given_by_out(line, capsys):
    name, *words = line.split()

    def parsed(*output):
        return vars(parser_of(name, words).parse_args([*words, *output]))

    given = parsed('--out', 'o.onnx')
    assert 'o.onnx' in map(str, given.values())
    others = [
        '--output',
        '--output-file',
        '--root' if line in ('synthetic nuscenes', 'synthetic monocular') else '',
    ]
    assert all(parsed(word, 'o.onnx') == given for word in filter(None, others))
    if name == 'convert' or line == 'synthetic weights c':
        assert parsed('o.onnx') == given
    with pytest.raises(SystemExit):
        parsed('--help')
    shown = capsys.readouterr().out
    assert '--out ' in shown and '--output ' not in shown
    assert ('--output-file' in shown) == (name == 'export')
