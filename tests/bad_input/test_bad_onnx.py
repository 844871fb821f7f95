"""ONNX files that are corrupt, somebody else's, of another family, or not what they say."""

import itertools
import json
from pathlib import Path

import onnx
import pytest

from marking import in_suite
from mmdeploy_ext.contract.metadata import read_props
from mmdeploy_ext.core.errors import LoadError, ModelFileError
from mmdeploy_ext.core.files import external_locations
from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
from mmdeploy_ext.families.solo.facts import SoloFacts
from mmdeploy_ext.graph.io import files

REPOSITORY = Path(__file__).resolve().parents[2]
YOLOX = '../shared/data/weights/yolox_nano/yolox_nano.onnx'


def changed(source: Path, target: Path, **props: str) -> None:
    """Write `source` with other `metadata_props`; no props, no metadata."""
    model = onnx.load(source)
    kept = {entry.key: entry.value for entry in model.metadata_props} if props else {}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**kept, **{f'mm2onnx.{key}': text for key, text in props.items()}})
    onnx.save(model, target)


def unknown_operator(source: Path, target: Path) -> None:
    """Write `source` with an operator that no engine has; its metadata stays as it is."""
    model = onnx.load(source)
    model.graph.node[0].op_type = 'NoSuchOperator'
    onnx.save(model, target)


def weights_outside(source: Path, target: Path) -> None:
    """Write `source` with its weights in a file that is then lost."""
    model = onnx.load(source)
    onnx.save(model, target, save_as_external_data=True, location='lost.data', size_threshold=64)
    target.with_name('lost.data').unlink()


UNREADABLE = 'is not a readable ONNX file'
SOLO = json.dumps(
    SoloFacts(
        score_thr=0.1,
        mask_thr=0.5,
        filter_thr=0.05,
        nms_pre=500,
        max_per_img=100,
        kernel='gaussian',
        sigma=2.0,
        head='SOLOHead',
        num_classes=80,
        num_grids=[40],
        strides=[8],
        mask_stride=4,
    ).to_json()
)
CASES = {
    'missing': (lambda source, path: None, ['no such ONNX file'], ['no such ONNX file']),
    'a folder': (lambda source, path: path.mkdir(), ['no .onnx file in this folder'], ['no such ONNX file']),
    'zero bytes': (lambda source, path: path.touch(), ['is empty, expected an ONNX file'], []),
    'a checkpoint': (
        lambda source, path: path.write_bytes((REPOSITORY / 'demo/checkpoints/atss_toy.pth').read_bytes()),
        ['is not a readable ONNX file: it is a ZIP archive, as checkpoints of PyTorch are'],
        [],
    ),
    'truncated': (lambda source, path: path.write_bytes(source.read_bytes()[:9000]), [UNREADABLE], []),
    'a text': (lambda source, path: path.write_text('no model'), [UNREADABLE], []),
    'without metadata': (changed, ['has no mm2onnx metadata', 'export it with'], ['has no mm2onnx metadata']),
    'damaged metadata': (
        lambda source, path: changed(source, path, spec='{"name": "dense'),
        ['its mm2onnx metadata is damaged', 'export it again'],
        ['its mm2onnx metadata is damaged'],
    ),
    'weights not there': (weights_outside, ['lost.data', 'which is not there'], []),
    'of another family': (
        lambda source, path: changed(source, path, family='"solo"', postprocess=SOLO),
        ["is a model of family 'solo', expected 'dense'"],
        ["is a model of family 'solo'"],
    ),
    'of another form': (
        lambda source, path: changed(source, path, form='"half"'),
        ["its post-processing form is 'half', expected full or decode or raw"],
        ["its post-processing form is 'half'"],
    ),
}


@pytest.mark.parametrize(('make', 'words'), [(make, words) for make, words, _ in CASES.values()], ids=CASES)
def test_verify_refuses_a_file_that_it_cannot_prove_before_the_weights_load(make, words, bench):
    path = bench.folder / 'bad.onnx'
    make(bench.onnx_file, path)
    bench.refuses('verify', 'bad.onnx: ', *words, onnx=path)


@pytest.mark.parametrize(('make', 'words'), [(make, words) for make, _, words in CASES.values()], ids=CASES)
def test_a_runner_refuses_a_file_that_it_cannot_run(make, words, bench):
    path = bench.folder / 'bad.onnx'
    make(bench.onnx_file, path)
    bench.refuses('run', 'bad.onnx: ', *words, onnx=path)


def test_an_operator_that_the_engine_does_not_have_is_one_line(bench):
    path = bench.folder / 'bad.onnx'
    unknown_operator(bench.onnx_file, path)
    bench.refuses('run', 'bad.onnx: ', 'cannot load it', 'NoSuchOperator', onnx=path)


def attribute_out_of_range(source: Path, target: Path) -> None:
    """Write `source` with an axis that no tensor has, which only an engine or shape inference finds."""
    model = onnx.load(source)
    node = next(node for node in model.graph.node if node.op_type == 'Concat')
    node.attribute[0].i = 99
    onnx.save(model, target)


@pytest.mark.parametrize(
    ('change', 'more'),
    in_suite(
        itertools.product([unknown_operator, attribute_out_of_range], ['', '--edited', '--eval bbox']),
        (unknown_operator, ''),
        (attribute_out_of_range, '--edited'),
    ),
)
def test_a_file_that_the_engine_does_not_load_is_not_proven(change, more, bench):
    if more == '--eval bbox' and change is unknown_operator:
        pytest.skip('one of both is enough')
    path = bench.folder / 'bad.onnx'
    change(bench.onnx_file, path)
    if more == '--eval bbox':
        bench.data()
        more += f' --cfg-options {bench.data_options()}'
    done = bench.call('verify', onnx=path, more=more)
    (line,) = [line for line in done.out.splitlines() if line.startswith('NOT PROVEN: ')]
    assert done.status == 1 and 'error: ' not in done.err
    assert 'bad.onnx: ONNX Runtime cannot load it: ' in line
    assert ('NoSuchOperator' if change is unknown_operator else 'axis') in line


def test_an_export_that_the_engine_does_not_load_is_not_proven(bench, monkeypatch):
    message = 'm.onnx: ONNX Runtime cannot load it: [ShapeInferenceError] axis 99'

    def refuse(backend):
        raise LoadError(message)

    monkeypatch.setattr(OnnxRuntimeBackend, 'open_session', refuse)
    done = bench.call('export', more='--verify --shape 128')
    assert done.status == 1 and f'NOT PROVEN: {message}; ' in done.out and 'error: ' not in done.err


@pytest.mark.parametrize('tool', ['verify', 'run'])
def test_a_real_model_of_another_project_is_refused(tool, bench):
    if not (REPOSITORY / YOLOX).is_file():
        pytest.skip(f'{YOLOX} not found')
    bench.refuses(tool, 'yolox_nano.onnx: has no mm2onnx metadata', onnx=REPOSITORY / YOLOX)


def test_the_test_loop_does_not_overwrite_a_file_that_is_none_of_ours(bench):
    bench.data()
    path = bench.folder / 'bad.onnx'
    changed(bench.onnx_file, path)
    config, option = REPOSITORY / 'configs/demo/atss_toy_onnx.py', f'backend_config.onnx_file={path}'
    words = 'bad.onnx: has no mm2onnx metadata', 'delete it to have it exported'
    bench.refuses('test', *words, status=1, config=config, more=option)


def test_a_file_that_is_larger_than_any_model_is_refused_by_its_size(tmp_path, monkeypatch):
    path = tmp_path / 'm.onnx'
    with path.open('wb') as stream:
        stream.truncate(16 << 30)
    monkeypatch.setattr(onnx, 'load', lambda *words, **more: pytest.fail('the file is read'))
    readers = files.read, read_props, lambda path: OnnxRuntimeBackend(str(path)).open_session()
    for reader in readers:
        with pytest.raises(ModelFileError, match=r'm\.onnx.*17179869184.*ONNX'):
            reader(path)
    assert external_locations(path) == set()
