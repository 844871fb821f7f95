"""An option reaches the function that does its work; costly functions before it are left out."""

import importlib
import inspect
import pkgutil
from unittest.mock import MagicMock

import pytest

from mmdeploy_ext.cli import export_app, options
from mmdeploy_ext.core.errors import UsageError
from refusals import CHECKPOINT, CONFIG, MODEL, PICTURE

MODELS, QUANTIZE = f'{CONFIG} {CHECKPOINT}', f'{MODEL} --output q.onnx --calibrate {PICTURE}'
LAYERS = ['.int8_layers', 'quantize.dense_layers.DenseGraph', 'quantize.dense.DenseQuantiser.__init__']
RANKED = [*LAYERS, 'quantize.dense.DenseQuantiser.calibrate', 'quantize.dense_sensitivity.rank']
MODULE = '--samples m.py:f --tolerance 0.5 --rows r s --no-generated --seed 3'
OF_MODULE = dict(rtol=0.5, rows=['r', 's'], generate=False, seed=3)
LOADED = [f'proving.modules.loading.{name}' for name in ('make_module', 'make_samples')]
READ = ['.read_config', '.check_family', '.proof.print_libraries_not_run']
ENGINE = '--threads 3 --providers CPUExecutionProvider'
SETTINGS = dict(engine='OnnxRuntimeBackend', threads=3, providers=['CPUExecutionProvider'])
NORMAL, OF_NORMAL = '--mean 1 2 3 --std 4 5 6', dict(mean=[1, 2, 3], std=[4, 5, 6])
SCN = ['runtime.sweeps.sweep_items', 'families.model.load', 'quantize.sparse_calibration.config_sweeps']
SCN += [f'families.backbone_files.{name}' for name in ('make_graph', 'trace')]
LOADING = ['families.model.build', 'families.model.load_weights']
LOOP = [*LOADING, ('families.model.read_config', MagicMock(**{'family.samples': 'images'})), '.check_dataset']
LOOP += [f'evaluate.evaluation.{name}' for name in ('build_dataset', 'check_evaluation')]
LOOP += ['.ImageModel', '.open_network', ('.title_of', ''), ('.model_facts', {}), ('.run_facts', {})]
RUN = ['.model_files', 'contract.metadata.read_props', '.check_inputs']
RUN += [('contract.metadata.Metadata.from_props', MagicMock(samples='frames'))]

ROWS = [
    # command, its options, functions left out, the function that gets the options, its arguments
    ('quantize', f'{QUANTIZE} --data-root D --images 7', [],
     'quantize.calibration_sets.calibration_set', dict(root='D', limit=7)),
    ('quantize', f'{QUANTIZE} --reduce-range', LAYERS[:2],
     'quantize.dense.DenseQuantiser.__init__', dict(reduce_range=True)),
    ('quantize', f'{QUANTIZE} --method percentile --percentile 99', LAYERS,
     'quantize.dense.DenseQuantiser.calibrate', dict(method='percentile', percentile=99)),
    ('quantize', f'{QUANTIZE} --int8-last --keep-float a b', LAYERS[1:],
     '.int8_layers', dict(keep_float=['a', 'b'], last=True)),
    ('quantize', f'{QUANTIZE} --threads 3', RANKED, 'quantize.dense_sensitivity.Probe', dict(threads=3)),
    ('quantize', f'{QUANTIZE} --max-error 0.2 --budget 5', [*RANKED, 'quantize.dense_sensitivity.Probe'],
     'quantize.dense_sensitivity.exclude', dict(max_error=0.2, budget=5)),
    ('prove_module', f'm.py:f --onnx m.onnx {MODULE} --no-fresh-export', LOADED,
     'proving.modules.proof.prove_module', dict(OF_MODULE, fresh=False)),
    ('kit', f'm.onnx --module m.py:f --out kit {MODULE}', LOADED, 'kit.modules.write_module_kit', OF_MODULE),
    ('kit', f'm.onnx c k --out kit {NORMAL}',
     ['families.model.read_config', 'proving.inputs.samples.Samples'],
     'families.model.build', OF_NORMAL),
    ('export', f'{MODELS} --test-img a --frames 3 --input-img b --verify', READ,
     '.Samples', dict(paths=['a'], frames=3, traced='b')),
    ('export', f'{MODELS} {NORMAL}', [*READ, '.Samples'], '.build', OF_NORMAL),
    ('export', f'{MODELS} --verify --strict --library installed {ENGINE}',
     [*READ, '.Samples', '.build', 'families.files.load_for', ('.export_detector', ([], 0.0)), '._title'],
     '.prove_on', dict(engine=SETTINGS, claims=dict(library='installed', strict=True, written=True))),
    ('verify', f'{MODELS} m.onnx {NORMAL} --eval bbox {ENGINE}', [*READ[:2], '.Samples'],
     '.prove_files', dict(OF_NORMAL, metrics=['bbox'], engine=SETTINGS)),
    ('verify', f'{MODELS} m.onnx --engine openvino --inference-precision fp16', [],
     '.shared.engine_settings', dict(engine='openvino', inference_precision='fp16')),
    ('export_scn', f'{MODELS} --output-file m --verify-only --edited --max-voxels 9 --order zyx',
     ['.read_config', '.Samples', READ[2]], '.prove_files', dict(claims=dict(
         max_voxels=9, node_list='', library=None, ranges=None, edited=True, asked=dict(order='zyx')))),
    ('scn_ptq', f'{MODELS} --calibrate D --unfolded a b --data-root R --no-fp16-ranges', SCN[:2],
     'quantize.sparse_calibration.Calibration', dict(unfolded=('a', 'b'), root='R', half=False)),
    ('scn_ptq', f'{MODELS} --fidelity F --target 0.9 --no-advice', [*SCN, '.ranges.find'],
     'quantize.fidelity.fidelity', dict(target=0.9, advise=False)),
    ('scn_ptq', f'{MODELS} --output r --weight-layout spconv1', [],
     'families.model.load', dict(weight_layout='spconv1')),
    ('parts', f'{MODELS} --parts p --opset-version 18 --exporter dynamo --precision fp16 --simplify',
     ['cutting.model.read_model', ('cutting.samples.samples_of', ([], ''))], 'cutting.export.export_folder',
     dict(options=dict(opset=18, exporter='dynamo', precision='fp16', simplify=True))),
    ('lint', f'{MODELS} --exporter dynamo --opset-version 18 --dynamic-export',
     [*LOADING, ('cli.lint_parts.parts_of', [MagicMock(exporters=())])],
     'lint.check', dict(exporters=('dynamo',), opset=18, dynamic=True)),
    ('graph', f'diff {MODEL} {MODEL} --seed 4 --rtol 0.02', [],
     'graph.diff.files.diff_files', dict(seed=4, rtol=0.02)),
    ('graph', f'simplify {MODEL} --output s.onnx --tolerance 0.5',
     ['graph.passes.simplify.simplify', 'graph.edits.record', 'graph.feeds.random_feeds'],
     'graph.output_comparison.compare_models', dict(rtol=0.5)),
    ('graph', f'fp16 {MODEL} --output h.onnx --io fp16', [], 'graph.passes.precision.half', dict(io='fp16')),
    ('synthetic', 'infos --root-path R --out-dir O --extra-tag T --version v1.0-mini --max-sweeps 2', [],
     'synthetic.nuscenes_infos.create_infos', dict(out_dir='O', tag='T', version='v1.0-mini', max_sweeps=2)),
    ('run', f'{MODEL} {PICTURE} {ENGINE}', [],
     'engines.onnxruntime.OnnxRuntimeBackend', dict(threads=3, providers=SETTINGS['providers'])),
    ('run', 'm.onnx a.pkl --data-root R --black-if-missing', RUN,
     'runtime.infos.read_frames', dict(root='R', missing=True)),
    ('test', f'{MODELS} --eval bbox --tmpdir T --gpu-collect', LOOP,
     'evaluate.loop.run_dataset', dict(tmpdir='T', gpu_collect=True)),
    ('test', f'{MODELS} --eval bbox --eval-options classwise=True', [*LOOP, 'evaluate.loop.run_dataset'],
     'evaluate.evaluation.evaluate', dict(options=dict(classwise=True))),
]  # fmt: skip


@pytest.mark.parametrize(('app', 'words', 'left_out', 'place', 'expected'), ROWS)
def test_an_option_reaches_its_function(app, words, left_out, place, expected, tmp_path, monkeypatch):
    module = importlib.import_module(f'mmdeploy_ext.cli.{app}_app')
    monkeypatch.chdir(tmp_path)

    def full(name):
        return f'{module.__name__}{name}' if name.startswith('.') else f'mmdeploy_ext.{name}'

    def record(*args, **kwargs):
        given.update(signature.bind(*args, **kwargs).arguments)
        raise UsageError('reached')

    given, (owner, _, function) = {}, full(place).rpartition('.')
    signature = inspect.signature(getattr(pkgutil.resolve_name(owner), function))
    for other in left_out:
        name, value = other if isinstance(other, tuple) else (other, MagicMock())
        result = None if name.endswith('__init__') else value
        monkeypatch.setattr(full(name), MagicMock(return_value=result))
    monkeypatch.setattr(full(place), record)
    module.main(words.split())
    assert {name: given.get(name) for name in expected} == expected


def test_options_of_a_graph_are_read_by_their_own_names():
    def values(words):
        return options.graph_values(export_app.build_parser().parse_args(['c', 'k', *words.split()]))

    shaped = dict(height=96, width=160, form='raw', opset=18, dynamic_batch=True)
    assert values('--shape 96 160 --skip-postprocess --opset-version 18 --dynamic-batch') == shaped
    assert values('--shape 96 --exporter dynamo') == dict(height=96, width=96, exporter='dynamo')
    with pytest.raises(UsageError, match='--dynamic-batch'):
        values('--dynamic-export --dynamic-batch')
