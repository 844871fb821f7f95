"""Verdicts of right and broken files, finding by finding, as they were recorded.

Run this file to write them again (names of subjects as arguments); a change of a verdict is a decision.
"""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

if __name__ == '__main__':
    ROOT = Path(__file__).resolve().parents[2]
    support = 'tests/support', 'tools/demo', 'projects/driving/tests/support', 'projects/driving', ''
    sys.path[:0] = [str(ROOT / folder) for folder in (*support, 'projects/driving/tests/bevfusion')]

import mmdeploy_ext
import proofs
import toy_atss
from marking import in_suite
from mmdeploy_ext.base.errors import one_line
from mmdeploy_ext.runtime.preprocess.pictures import read_image

GOLDENS = Path(__file__).resolve().parents[1] / 'goldens/verdicts'
PICTURES = [('toy.jpg', read_image(toy_atss.PICTURE)[::2, ::2])]
FIXED = dict(dynamic=False, height=128, width=160)
NUMBER = re.compile(r'(?<![\w.])-?\d+\.?\d*(?:e[+-]?\d+)?(?![\w.]*\w)')
SMALLEST = 1e-3
"""Smaller numbers are rounding, which depends on the machine."""


def cut(text):
    """Return a text with numbers of two digits, and without folders."""

    def shortened(match):
        value = float(match[0])
        return match[0] if value.is_integer() and 'e' not in match[0] else short(value)

    text = re.sub(r'(/[\w.-]+)+/', '', one_line(text))
    return NUMBER.sub(shortened, re.sub(r'\d+ of (?=\d+ values)', 'some of ', text))


def short(value):
    return '0' if abs(value) < SMALLEST else f'{value:.2g}'


def lines_of(verdict):
    """Return the title, and a line per finding."""
    words = {True: 'passed', False: 'FAILED', None: 'open'}
    rows = [
        f'{one.level} | {one.subject} | {words[one.passed]} | {cut(one.text)}' for one in verdict.findings
    ]
    return [verdict.title, *rows]


def changed(path, out, part, change):
    """Write a file with another initializer: the first whose name has `part`."""
    model = onnx.load(str(path))
    value = next(one for one in model.graph.initializer if part in one.name)
    array = change(numpy_helper.to_array(value))
    value.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), value.name))
    onnx.save(model, str(out))
    return str(out)


def changed_files(paths, folder, name, part, change):
    """Copy files, one of which gets another initializer."""
    folder.mkdir()
    for path in paths:
        shutil.copy(path, folder)
    changed(folder / name, folder / name, part, change)
    return [str(folder / Path(path).name) for path in paths]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Linear(4, 5)

    def forward(self, x):
        features = self.conv(x).relu()
        return features, self.head(features.mean((2, 3))).softmax(-1)


class Memory(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.new, self.old = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x, memory):
        memory = torch.tanh(self.new(x) + self.old(memory))
        return memory.sum(1), memory


class Best(torch.nn.Module):
    def forward(self, scores, boxes):
        values, indices = scores.topk(5)
        return values, boxes[indices]


def drawn(*shape):
    return torch.from_numpy(np.random.default_rng(shape).random(shape, np.float32))


def module(folder, kind, part='', factor=1.0):
    """Prove a module of torch's own, with a scaled initializer."""
    torch.manual_seed(0)
    net = dict(net=Net, memory=Memory, best=Best)[kind]().eval()
    axes = {0: 'n', 2: 'h', 3: 'w'}
    samples, names, dynamic, settings = dict(
        net=(
            [drawn(1, 3, 8, 8), drawn(2, 3, 10, 12)],
            (['x'], ['f', 'p']),
            dict(x=axes, f=axes, p={0: 'n'}),
            {},
        ),
        memory=(
            [dict(x=drawn(1, 4) * place, memory=torch.zeros(1, 4)) for place in range(1, 5)],
            (['x', 'memory'], ['y', 'next']),
            None,
            dict(state={'memory': 'next'}),
        ),
        best=(
            [(drawn(20), drawn(20, 4)), (drawn(20) / 2, drawn(20, 4))],
            (['s', 'b'], ['v', 'o']),
            None,
            dict(rows=['v', 'o']),
        ),
    )[kind]
    first, path = samples[0], folder / 'm.onnx'
    args = tuple(first.values()) if isinstance(first, dict) else first
    inputs, outputs = names
    torch.onnx.export(
        net, args, str(path), input_names=inputs, output_names=outputs, dynamic_axes=dynamic, dynamo=False
    )
    if part:
        changed(path, path, part, lambda array: array * np.float32(factor))
    return mmdeploy_ext.prove_module(net, path, samples, **settings)


def backbone(folder, net, part='', **chosen):
    import toy_scn_family
    from mmdeploy_ext.families import backbone_files as detectors

    detector, path = detectors.load(*toy_scn_family.write_model(folder, net)), str(folder / 'lidar.onnx')
    detectors.export_file(detector, detector.family.choose(**chosen), path)
    if part:
        changed(path, path, part, lambda array: array[:, ::-1])
    return proofs.prove(detector, path, timed=False)


def atss(folder, part='', change=None, form='full', engine=None, demo='atss', **chosen):
    detector = toy_atss.load_demo(demo)
    path = toy_atss.export_toy(detector, folder / 'm.onnx', form=form, **{**FIXED, **chosen})
    if part:
        changed(path, path, part, change)
    return proofs.prove_outputs(detector, path, PICTURES, engine)


def sweeps(folder, toy, name='', part=''):
    import toy_anchor3d
    import toy_centerpoint

    detector, files, *_ = dict(centerpoint=toy_centerpoint, pointpillars=toy_anchor3d)[toy].exported()
    paths = toy_centerpoint.paths_of(files)
    if name:
        paths = changed_files(paths, folder / 'x', name, part, lambda array: array + np.float32(0.05))
    return proofs.prove(detector, paths, toy_centerpoint.sweeps(2), toy_centerpoint.ENGINE, timed=False)


def streampetr(folder, name='', part='', **chosen):
    import toy_streampetr_deploy as toy

    paths = toy.files(**chosen)
    if name:
        paths = changed_files(paths, folder / 'x', name, part, lambda array: array + np.float32(0.02))
    prove = proofs.prove_outputs if part else proofs.prove
    return prove(toy.detector(), paths, toy.drive(4, scenes=2), dict(threads=1))


def drive(folder, toy, part='', factor=1.0, prove=proofs.prove):
    import toy_frames
    from mmdeploy_ext.families.synthetic.drive import synthetic_drive

    chosen = getattr(toy_frames, toy)
    detector = chosen.load(folder)
    paths = chosen.export(detector, folder)
    if part:
        changed(paths[-1], paths[-1], part, lambda array: array * np.float32(factor))
    return prove(detector, paths, synthetic_drive(4, detector.rule, scenes=2))


def bevfusion(folder):
    import toy_bevfusion

    detector, frames = toy_bevfusion.whole()
    return proofs.prove(detector, toy_bevfusion.export(detector, folder / 'files'), frames, timed=False)


def parts(folder, broken=False):
    from mmdeploy_ext.proving.parts.folder import CutFolder
    from mmdeploy_ext.proving.parts.proof import export_parts, prove_folder

    made = export_parts(toy_atss.CONFIG, toy_atss.CHECKPOINT, ['backbone+neck', 'bbox_head'], folder / 'cut')
    cut_folder = made.folder
    if broken:
        path = cut_folder.file(cut_folder.entries[-1])
        changed(path, path, 'atss_reg.bias', lambda array: array + np.float32(0.05))
        cut_folder = CutFolder.read(folder / 'cut')
    return prove_folder(made.factory, cut_folder, made.samples[:2])


def kit(folder, of, change=None):
    from mmdeploy_ext.bench.kinds import kind_of
    from mmdeploy_ext.bench.kit.judge import judge
    from mmdeploy_ext.bench.kit.runners import run_onnxruntime

    generated = [dict(name='generated', licence='Apache-2.0')]
    if of == 'streampetr':
        import toy_streampetr_deploy as toy

        detector, samples = toy.detector(), toy.drive(4, scenes=2)
        (folder / 'deploy').mkdir()
        for path in toy.files():
            shutil.copy(path, folder / 'deploy')
        files = str(folder / 'deploy')
    else:
        detector, samples = toy_atss.load_toy(), PICTURES
        files = toy_atss.export_toy(detector, folder / 'm.onnx', **FIXED)
    kind_of(detector.family).kit(detector, files, samples, folder / 'kit', generated)
    outputs = folder / 'outputs'
    run_onnxruntime.main(str(outputs), kit=folder / 'kit')
    if change:
        path = sorted(outputs.glob('*.npz'))[0]
        arrays = {name: np.array(array) for name, array in np.load(path).items()}
        np.savez(path.with_suffix(''), **change(arrays))
    return judge(folder / 'kit', outputs)


def scaled(arrays):
    return {
        name: array * array.dtype.type(1.01) if array.dtype.kind == 'f' else array
        for name, array in arrays.items()
    }


def without_first(arrays):
    return dict(list(arrays.items())[1:])


ALONE = dict(prove=proofs.prove_outputs)
"""On the frames alone: failed ones run in float64 many times."""
SUBJECTS = {
    'module': (module, ('net',)),
    'module, another convolution': (module, ('net', 'conv.weight', 1.01)),
    'module, another last bias': (module, ('net', 'head.bias', -1.0)),
    'module with a memory': (module, ('memory',)),
    'module with another memory': (module, ('memory', 'old.bias', 1.2)),
    'module with a top-k': (module, ('best',)),
    'backbone, portable': (backbone, ('second',), dict(order='xyz', target='portable')),
    'backbone, libspconv': (backbone, ('bevfusion',), dict(order='xyz')),
    'backbone, mirrored kernel': (backbone, ('bevfusion', 'spconv3.weight'), dict(order='xyz')),
    'atss': (atss, ()),
    'atss, another box': (atss, ('atss_reg.bias', lambda array: array * np.float32(1.1))),
    'atss, two classes exchanged': (atss, ('atss_cls.bias', lambda array: array[::-1] + np.float32(0.1))),
    'atss, raw': (atss, (), dict(form='raw')),
    'atss, raw, another box': (atss, ('atss_reg.bias', lambda array: array * np.float32(1.1), 'raw')),
    'atss, fp16': (atss, (), dict(precision='fp16')),
    'mask rcnn': (atss, (), dict(demo='mask_rcnn', height=128, width=160)),
    'mask rcnn, two classes exchanged': (
        atss,
        ('fc_cls.bias', lambda array: array[::-1]),
        dict(demo='mask_rcnn'),
    ),
    'centerpoint': (sweeps, ('centerpoint',)),
    'pointpillars': (sweeps, ('pointpillars',)),
    'bevfusion': (bevfusion, ()),
    'streampetr': (streampetr, ()),
    'streampetr, another head': (
        streampetr,
        ('pts_head_memory.onnx', 'decoder.layers.0.ffns.0.layers.0.0.bias'),
    ),
    'streampetr, fp16': (streampetr, (), dict(precision='fp16')),
    'bevformer': (drive, ('BEVFORMER',)),
    'sparse4d': (drive, ('SPARSE4D_SHORT',)),
    'sparse4d, another refinement': (drive, ('SPARSE4D_SHORT', 'layers.10.layers.11.scale', 1.05), ALONE),
    'sparsedrive': (drive, ('SPARSEDRIVE_SHORT',), ALONE),
    'parts': (parts, ()),
    'parts, another box': (parts, (True,)),
    'kit of atss': (kit, ('atss',)),
    'kit of atss, scaled': (kit, ('atss', scaled)),
    'kit of streampetr': (kit, ('streampetr',)),
    'kit of streampetr, scaled': (kit, ('streampetr', scaled)),
    'kit of streampetr, an output lost': (kit, ('streampetr', without_first)),
}
"""Name -> the function that returns a verdict, its arguments and options."""


def verdict_of(name, folder):
    make, arguments, *options = SUBJECTS[name]
    return make(folder, *arguments, **(options[0] if options else {}))


@pytest.mark.parametrize(
    'name', in_suite(SUBJECTS, 'module, another convolution', 'module with a memory', 'backbone, portable')
)
def test_a_verdict_is_the_recorded_one(name, tmp_path):
    recorded = json.loads((GOLDENS / f'{name.replace(", ", "_").replace(" ", "_")}.json').read_text())
    assert lines_of(verdict_of(name, tmp_path)) == recorded


if __name__ == '__main__':
    import os
    import time

    from mmdeploy_ext.upstream import compat

    compat.apply()
    out = Path(os.environ.get('OUT', GOLDENS))
    out.mkdir(exist_ok=True, parents=True)
    for name in sys.argv[1:] or SUBJECTS:
        start, stem = time.time(), name.replace(', ', '_').replace(' ', '_')
        with tempfile.TemporaryDirectory() as folder:
            verdict = verdict_of(name, Path(folder))
        (out / f'{stem}.json').write_text(json.dumps(lines_of(verdict), indent=1) + '\n')
        if os.environ.get('FULL'):
            Path(os.environ['FULL'], f'{stem}.json').write_text(json.dumps(verdict.to_json(), indent=1))
        print(
            f'{name}: {verdict.title}, {len(verdict.findings)} findings, {time.time() - start:.0f} s',
            flush=True,
        )
