"""The contract of the loop of all proofs: of a subject of twenty lines, and of every adapter."""

import contextlib
import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mmdeploy_ext
import toy_atss
import toy_centerpoint
import toy_parts
import toy_scn_family
from marking import in_suite
from mmdeploy_ext.base.dump import save_dump
from mmdeploy_ext.base.errors import ShapeError
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.bench.kit.judge import Kit
from mmdeploy_ext.bench.kit.runners import run_onnxruntime
from mmdeploy_ext.families import backbone_files
from mmdeploy_ext.families.base import exported_options
from mmdeploy_ext.families.synthetic.drive import SyntheticDrive
from mmdeploy_ext.proving import frames
from mmdeploy_ext.proving.against_dump import FrameDump, ImageDump
from mmdeploy_ext.proving.backbone import Backbone, read_sparse_file
from mmdeploy_ext.proving.drive_run import DriveLength, Drives
from mmdeploy_ext.proving.inputs import plain_inputs, proof_sets
from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.modules import ModuleProof
from mmdeploy_ext.proving.parts.export import export_folder
from mmdeploy_ext.proving.parts.proof import Calls, Whole
from mmdeploy_ext.proving.parts.swap import open_sessions
from mmdeploy_ext.proving.pictures import InputReference, Pictures, open_backend
from mmdeploy_ext.proving.proof import open_file
from mmdeploy_ext.proving.recorded.calls import Heads
from mmdeploy_ext.proving.subject import Sample, Step, Subject
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.spec.matching import total_reasons
from mmdeploy_ext.spec.results import FLOAT32
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL
from toy_stepper import MEMORY, SPEC, ToyStepper


class Sums(Subject):
    """y = x + memory, on both sides.

    Attributes:
        states: side -> the memories that it started from.
    """

    def __init__(self, modes=(('',),)):
        self.modes, self.states = modes, dict(want=[], got=[])
        self.given = [np.float32([i, 2 * i + 1]) for i in range(3)]

    def sample(self, entry, index, mode):
        return Sample(f'frame {index} {mode}', entry)

    def run(self, side, sample, state):
        self.states[side].append(state)
        y = sample.data + (0 if state is None else state)
        return Step({'y': y}, state=y, probe={'y': y})

    def want(self, sample, state):
        return self.run('want', sample, state)

    def got(self, sample, state):
        return self.run('got', sample, state)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 5)

    def forward(self, x):
        return self.head(x)


def module(folder):
    torch.manual_seed(0)
    net, samples = Net().eval(), [torch.rand(2, 4) + place for place in range(3)]
    torch.onnx.export(net, (samples[0],), str(folder / 'm.onnx'), input_names=['x'], dynamo=False)
    return ModuleProof(net, folder / 'm.onnx', samples)


def drive(folder):
    candidates = {mode: ToyStepper() for mode in ('teacher', 'free')}
    frames = list(SyntheticDrive(frames=12, size=(8, 24), cameras=2))
    return Drives(ToyStepper(), candidates, SPEC, memory=MEMORY, length=DriveLength(12), frames=frames)


def pictures(folder):
    detector, file = toy_atss.load_toy(), open_file(toy_atss.toy_file('raw'))
    plain = plain_inputs(detector, exported_options(detector.family, file.options))[0]
    given = [InputReference(detector, dataclasses.replace(plain, name=name)) for name in ('a', 'b', 'c')]
    return Pictures(detector, open_backend({}, file).__enter__(), None, given)


def dump(folder):
    of_pictures = pictures(folder)
    subject = ImageDump(of_pictures.backend, of_pictures.detector)
    subject.given = [folder / name for name in ('a', 'b', 'c')]
    for index, path in enumerate(subject.given):
        feeds = of_pictures.sample(of_pictures.given[index], index, '').data.feeds
        inputs = {name: feeds[name] for name in subject.spec.input_names if name in feeds}
        save_dump(path, {**feeds, **subject.backend.infer(inputs)}, {})
    return subject


def sweeps(folder):
    detector, files, *_ = toy_centerpoint.exported()
    read, options = frames.read_files(detector, toy_centerpoint.paths_of(files))
    sides = frames.open_sides(detector, read, options, toy_centerpoint.ENGINE, contextlib.ExitStack())
    return frames.Sweeps(sides, sides.reference, toy_centerpoint.sweeps(3))


def frame_dump(folder):
    sides = sweeps(folder).sides
    subject = FrameDump(sides.runner, [sides.metadata], sides.detector)
    subject.given = [folder / name for name in ('a', 'b', 'c')]
    for path, sweep in zip(subject.given, toy_centerpoint.sweeps(3), strict=True):
        save_dump(path, dict(sides.runner.step(sweep).outputs, points=sweep.points), {})
    return subject


def parts(folder):
    """Return arguments of both subjects of a folder of parts."""
    factory, samples = toy_parts.ToyDeployment(), toy_parts.samples()
    cut, called, recording = export_folder(factory, ['extract_feat()'], samples, folder / 'cut')
    sides = open_sessions(cut), factory.make(), FLOAT32
    return (called, *sides), (factory, [*zip(samples, recording.results, strict=True)], *sides)


def backbone(folder):
    detector = backbone_files.load(*toy_scn_family.write_model(folder, 'second'))
    path = str(folder / 'lidar.onnx')
    backbone_files.export_file(detector, detector.family.choose(order='xyz', target='portable'), path)
    sets = proof_sets(detector.settings.spatial_shape, detector.settings.in_channels)
    return Backbone(read_sparse_file(detector, path, None), sets[-3:], 1)


def kit(folder):
    detector, generated = toy_atss.load_toy(), [dict(name='generated', licence='Apache-2.0')]
    samples = [('toy.jpg', read_image(toy_atss.PICTURE)[::2, ::2])]
    kind_of(detector.family).kit(detector, toy_atss.toy_file('raw'), samples, folder / 'kit', generated)
    run_onnxruntime.main(str(folder / 'outputs'), kit=folder / 'kit')
    subject = Kit(folder / 'kit', folder / 'outputs', None)
    subject.given = [(name, name) for name in subject.cases][:1] * 3
    return subject


def heads(folder):
    """Outputs of a module here and equal recorded ones."""
    head = torch.nn.Linear(4, 5)

    def run(x):
        return {'head[0]': head(x).detach().numpy()}

    inputs = [torch.rand(2, 4) + place for place in range(3)]
    kept = [
        Sample(f'picture {place}', (run(x), run(x), lambda x=x: run(x))) for place, x in enumerate(inputs)
    ]
    return Heads(SimpleNamespace(heads=kept, rtol=DEFAULT_RTOL, has_memory=False), head)


ADAPTERS = dict(
    sums=lambda folder: Sums(),
    module=module,
    drive=drive,
    pictures=pictures,
    sweeps=sweeps,
    backbone=backbone,
    kit=kit,
    dump=dump,
    frame_dump=frame_dump,
    heads=heads,
    calls=lambda folder: Calls(*parts(folder)[0]),
    whole=lambda folder: Whole(*parts(folder)[1]),
)
"""Name -> function from an empty folder to a subject of three samples (a drive: of twelve)."""
STORED = 'kit', 'dump', 'frame_dump', 'heads', 'calls', 'whole'


@pytest.fixture(params=in_suite(ADAPTERS, 'sums', 'module', 'drive', 'backbone', 'heads', 'calls', 'whole'))
def adapter(request, tmp_path):
    return request.param, ADAPTERS[request.param](tmp_path)


def failures(subject):
    cases, reasons, _ = compare(subject)
    lines = [line for case in cases for line in case.failures] + reasons
    rows = subject.finish().values() if isinstance(subject, Drives) else ()
    return lines + [reason for row in rows for reason in row.reasons]


def altered(subject, side, change, calls):
    """Change what a side returns at some of its calls, from 1; return the list of its samples."""
    run, ran = getattr(subject, side), []

    def changed(sample, state):
        ran.append(sample)
        step = run(sample, state)
        return change(step) if len(ran) in calls else step

    setattr(subject, side, changed)
    return ran


def arrays_of(step):
    return step.tensors or step.probe or step.facts['result']


def with_a_wrong_value(step):
    arrays = arrays_of(step)
    name = next(name for name, array in arrays.items() if np.asarray(array).dtype.kind == 'f')
    array = np.array(arrays[name])
    array.reshape(-1)[0] += 0.5 * np.abs(array).max() + 1
    if 'result' in step.facts:
        return dataclasses.replace(step, facts=dict(result={name: array}))
    probe = {**step.probe, name: array} if name in step.probe else step.probe
    return dataclasses.replace(step, tensors={**step.tensors, name: array}, probe=probe)


def refused(step):
    raise ShapeError('too wide')


def test_equal_sides_pass_and_each_sample_runs_once_and_one_again(adapter):
    name, subject = adapter
    ran = altered(subject, 'got', lambda step: step, ())
    assert not failures(subject)
    names = [sample.name for sample in ran]
    assert len(names) == {'drive': 25}.get(name, 3 if name in STORED else 4)


def test_one_changed_value_fails_its_case_and_is_named(adapter):
    _, subject = adapter
    altered(subject, 'got', with_a_wrong_value, (3,))
    lines = failures(subject)
    output = next(
        iter(subject.spec.output_names if subject.spec else arrays_of(subject.got(*first(subject))))
    )
    assert lines and output in lines[0]


def first(subject):
    mode = subject.modes[0][0]
    entry = next(iter(subject.entries(mode)))
    return dataclasses.replace(subject.sample(entry, 0, mode), mode=mode), None


def test_a_side_that_raises_fails_its_case_alone(adapter):
    name, subject = adapter
    altered(subject, 'got', refused, (2,))
    cases, reasons, _ = compare(subject)
    if name == 'drive':
        assert 'too wide' in subject.finish()['free'].reasons[0]
        assert subject.finish()['teacher'].frames == 12
    else:
        assert [case.passed for case in cases] == [True, False, True] and not reasons
        assert any('too wide' in line for line in cases[1].failures)


@pytest.mark.parametrize('side', ['want', 'got'])
def test_hidden_state_of_either_side_shows_when_a_sample_runs_again(adapter, side):
    name, subject = adapter
    last = dict(drive=dict(want=13, got=25), module=dict(want=7, got=4))
    count = last.get(name, dict(want=4, got=4))[side]
    altered(subject, side, with_a_wrong_value, (count,))
    lines = failures(subject)
    assert not lines if name in STORED else 'runs again' in lines[0]


def test_nothing_compared_never_passes(adapter):
    name, subject = adapter
    subject.given, subject.entries = [], lambda mode: []
    cases, _, _ = compare(subject)
    if name == 'drive':
        assert not any(row.passed for row in subject.finish().values())
    else:
        assert total_reasons(cases, subject.bars)


def test_what_is_computed_from_the_files_tensors_never_changes_the_next_step(adapter):
    _, subject = adapter
    sample, state = first(subject)
    want, got = subject.want(sample, state), subject.got(sample, state)
    expected = {**want.tensors, **want.probe}
    started = subject.on(sample, got)
    if started is not None:
        started.again(), started.between()
        if started.results is not None:
            started.results()
    again = subject.want(first(subject)[0], state)
    again = {**again.tensors, **again.probe}
    assert all(np.array_equal(expected[name], again[name], equal_nan=True) for name in expected)


def test_every_mode_is_a_pass_over_the_samples():
    cases, reasons, clock = compare(Sums((('forced',), ('free',))))
    assert [case.name for case in cases] == [
        f'frame {i} {mode}' for mode in ('forced', 'free') for i in range(3)
    ]
    assert all(case.passed for case in cases) and not reasons and len(clock.seconds['free']) == 3


def test_a_forced_file_gets_the_memory_of_pytorch_and_a_free_one_its_own():
    subject = Sums((('forced',), ('free',)))

    def drifting(step):
        y = step.state + np.float32(1e-3)
        return dataclasses.replace(step, tensors={'y': y}, state=y)

    altered(subject, 'got', drifting, range(1, 9))
    errors = [row.max_abs for case in compare(subject)[0] for row in case.tensors]
    forced, free = subject.states['got'][:3], subject.states['got'][3:]
    assert np.array_equal(forced[1], [0, 1]) and np.allclose(free[1], [1e-3, 1.001])
    assert np.allclose(errors, [1e-3, 1e-3, 1e-3, 1e-3, 2e-3, 3e-3], rtol=0.01)  # drift adds up


class Renamed(Sums):
    """Compares y as z, and keeps the step of the file with which PyTorch runs in float64."""

    module = torch.nn.Identity()

    def align(self, sample, want, got):
        return *(dataclasses.replace(step, tensors={'z': step.tensors['y']}) for step in (want, got)), ()

    def tensors(self, sample, state, got):
        self.given_step = got
        return {'z': self.want(sample, state).tensors['y']}


def test_pytorch_in_float64_gets_the_files_own_tensors_not_the_compared_ones():
    subject = Renamed()
    altered(
        subject,
        'got',
        lambda step: dataclasses.replace(step, tensors={'y': step.tensors['y'] * 1.0002}),
        (3,),
    )
    (line,) = failures(subject)
    assert 'z' in line and [*subject.given_step.tensors] == ['y']


def test_an_output_in_another_order_is_named_so():
    subject = Sums()
    altered(
        subject, 'got', lambda step: dataclasses.replace(step, tensors={'y': step.tensors['y'][::-1]}), (3,)
    )
    (line,) = failures(subject)
    assert line.endswith('the images of the batch are in another order: 1, 0')


SUBJECTS = dict(
    module='ModuleProof',
    drive='Drives',
    pictures='Pictures',
    sweeps='Sweeps',
    backbone='Backbone',
    kit='Kit',
    dump='ImageDump',
    frame_dump='FrameDump',
    heads='Heads',
    calls='Calls',
    whole='Whole',
)
"""Adapter -> its class."""


def test_every_subject_of_the_package_keeps_the_contract():
    texts = (path.read_text(encoding='utf-8') for path in Path(mmdeploy_ext.__file__).parent.rglob('*.py'))
    found = {name for text in texts for name in re.findall(r'^class (\w+)\(Subject\)', text, re.MULTILINE)}
    assert ADAPTERS.keys() - {'sums'} == SUBJECTS.keys()
    assert found == {*SUBJECTS.values(), 'Kept'}  # it counts results and judges none


def test_a_missing_tensor_fails():
    subject = Sums()
    altered(subject, 'got', lambda step: dataclasses.replace(step, tensors={}), (1, 2, 3))
    assert len(failures(subject)) == 3


def test_a_sample_alone_starts_from_an_empty_memory():
    subject = Sums()
    subject.sample = lambda *given: dataclasses.replace(Sums.sample(subject, *given), alone=True)
    assert not failures(subject)
    assert all(state is None for state in (*subject.states['got'], *subject.states['want']))
