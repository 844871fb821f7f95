"""Cases of a model of several files: the inputs of each file in a frame, and PyTorch's tensors."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.cli import tracked
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.base.files import sha256_file
from mmdeploy_ext.bench.kit.contents import LIBSPCONV, ArrayFolder, ChainedFrame, KitCase, KitGraph, Step
from mmdeploy_ext.bench.kit.writer import check_facts, copy_model
from mmdeploy_ext.engines.base import record_runs
from mmdeploy_ext.exporting.sparse import libspconv
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.graphs.io.files import is_sparse
from mmdeploy_ext.proving.backbone import HALF_RTOL, read_sparse_file
from mmdeploy_ext.proving.drive_run import snapshot
from mmdeploy_ext.proving.frames import NearOrigin, open_sides, read_files
from mmdeploy_ext.proving.inputs import in_order, proof_sets
from mmdeploy_ext.proving.proof import engine_class, engine_options
from mmdeploy_ext.runtime.sparse import engine
from mmdeploy_ext.spec.digest import check_whole
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.frames import Sides
    from mmdeploy_ext.proving.inputs import VoxelSet
    from mmdeploy_ext.proving.proof import ExportedFile
    from mmdeploy_ext.runtime.frames import Frame, Sweep
    from mmdeploy_ext.runtime.sparse.ir import SparseGraph
    from mmdeploy_ext.spec.options import Options


# Cases of a sparse backbone for NVIDIA's libspconv: voxels, and spconv's dense map of each.


def write_voxels(
    detector: Detector, path: str, samples: Collection[VoxelSet], folder: Path
) -> dict[str, Any]:
    """Write file and cases into a kit; return the manifest's entries.

    `path` is read, not run. `samples` are real voxels, coordinates in the model's order of axes. A float16
    file also gets the proof's synthetic voxels; INT8 ranges hold for real voxels only.
    """
    file = read_sparse_file(detector, path, None)
    if not is_sparse(file.model):
        raise UsageError(
            f'{path}: is a sparse backbone in the portable form; a kit needs a detector or a backbone for '
            'libspconv'
        )
    settings, sets = detector.settings, list(samples)
    if file.precision == 'fp16':
        synthetic = proof_sets(settings.spatial_shape, settings.in_channels)
        sets = [voxels for voxels in synthetic if len(voxels.features)] + sets
    if not sets:
        raise UsageError(
            f'{path}: is INT8 with ranges for real sweeps; pass some with --samples (.bin, .npz)'
        )
    arrays, family = ArrayFolder(folder), detector.family
    network = libspconv.read(path)
    graph = KitGraph('backbone', f'lidar.backbone.{network.order}.onnx', None, _spec(network))
    check_whole(path)
    shutil.copyfile(path, folder / graph.file)
    cases = []
    for index, voxels in enumerate(sets):
        features = voxels.features.astype(np.float16)
        inputs = dict(
            features=features,
            coordinates=in_order(voxels.coordinates, file.same_order).astype(np.int32),
            grid=np.array(network.spatial_shape, np.int32),
        )
        dense = family.run_encoder(detector.model, features.astype(np.float32), voxels.coordinates)
        case = KitCase(f'{index:03}', graph.name, voxels.name, (), inputs, {}, dict(dense=dense), [])
        cases.append(case.write(arrays, dict(dense=dense)))
    return dict(
        graphs=[graph.to_json() | dict(source_sha256=sha256_file(path))],
        cases=cases,
        frames=[],
        engine=LIBSPCONV,
        precision=file.precision,
    )


def _spec(network: SparseGraph) -> GraphSpec:
    group = ColumnGroup(rtol=HALF_RTOL)
    return GraphSpec(
        'backbone',
        (
            TensorSpec('features', 'float16', ('N', network.in_channels)),
            TensorSpec('coordinates', 'int32', ('N', 4)),
            TensorSpec('grid', 'int32', (3,)),
        ),
        (TensorSpec('dense', 'float16', network.output_shape, groups=(group,)),),
    )


def open_interpreted(path: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return a function from a case's inputs to `dense` in float16, which interprets the file in numpy."""
    network = libspconv.read(path)

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(dense=engine.run(network, inputs['coordinates'], inputs['features']).astype(np.float16))

    return run


BEFORE = 'prev_'
"""Prefix of inputs that another file gave for the frame before."""


def write_frames(
    detector: Detector, paths: Sequence[str], samples: Collection[Any], folder: Path
) -> dict[str, Any]:
    """Write files and cases into a kit; return the manifest's entries.

    Args:
        detector: PyTorch model of a family of frames or sweeps.
        paths: exported files in the order of a frame.
        samples: `Frame`s of a drive in order, or `Sweep`s.
        folder: folder of the kit.
    """
    family = detector.family
    files, options = read_files(detector, paths)
    if between := contract_of(family, options).runner_outputs(detector.model, options):
        names = ', '.join(tensor.name for tensor in between)
        raise UsageError(
            f'{Path(paths[0]).parent}: the runner computes {names} between the files, and a kit contains '
            'only files; export the model without --contract'
        )
    for file in files:
        check_facts(detector, file.path, file.metadata, detector.rule)
    with contextlib.ExitStack() as stack:
        engine = engine_options(files, engine_class({}), {})
        sides = open_sides(detector, files, options, engine, stack)
        writer = _FramesWriter(sides, files, options, folder)
        frames = NearOrigin(samples)
        for index, sample in enumerate(tracked(frames, len(frames), 'PyTorch')):
            writer.add(index, sample)
    judged = {case['graph'] for case in writer.cases}
    if unused := [graph.file for graph in writer.graphs.values() if graph.name not in judged]:
        raise UsageError(
            f'{len(samples)} frames: {", ".join(unused)} did not run; use more frames (--frames)'
        )
    contents = dict(graphs=writer.entries, cases=writer.cases, frames=writer.frames, teacher_forced=False)
    memory = family.memory_spec(sides.metadata.postprocess)
    if writer.keeps_memory:
        contents['memory'] = memory.to_json()
    else:
        contents['teacher_forced'] = bool(memory.tensors)
    return contents


class _FramesWriter:
    def __init__(self, sides: Sides, files: Sequence[ExportedFile], options: Options, folder: Path) -> None:
        self.sides, self.folder = sides, ArrayFolder(folder)
        graphs = contract_of(sides.detector.family, options).graphs(sides.detector.model, options)
        self._modules = {graph.name: graph.module for graph in graphs}
        self.graphs: dict[str, KitGraph] = {}
        self.entries: list[dict[str, Any]] = []
        for file in files:
            name = Path(file.path).name
            self.graphs[name] = KitGraph(file.name, name, file.metadata, file.metadata.spec)
            self.entries.append(
                self.graphs[name].to_json() | copy_model(file.path, folder, self.graphs[name])
            )
        self.keeps_memory = bool(sides.metadata.spec.state)
        self.cases: list[dict[str, Any]] = []
        self.frames: list[dict[str, Any]] = []
        self._outputs: dict[str, np.ndarray] = {}
        self._by_modules: dict[str, np.ndarray] = {}
        self._memory: Any = None

    def add(self, index: int, sample: Frame | Sweep) -> None:
        sides = self.sides
        sides.runner.state = snapshot(self._memory)
        expected = sides.reference.step(sample)
        with record_runs() as runs:
            result = sides.runner.step(sample)
        self._memory = snapshot(sides.reference.state)
        title = sample.name or f'frame {index}'
        steps, reference = [], {**self._by_modules, **expected.outputs}
        number_of_runs: collections.Counter[str] = collections.Counter()
        for run in runs:
            graph = self.graphs[Path(run.path).name]
            fed = self._fed(run.inputs)
            inputs = {}
            for name, array in run.inputs.items():  # PyTorch's tensor in place of one that a file gave
                tensor = reference.get(name, reference.get(fed.get(name, '')))
                is_replaced = tensor is not None and tensor.shape == array.shape
                inputs[name] = tensor.astype(array.dtype) if is_replaced else array
            tensors = reference
            is_of_frame_before = any(
                name in result.outputs
                and result.outputs[name].shape == array.shape
                and not np.array_equal(result.outputs[name], array)
                for name, array in run.outputs.items()
            )
            if is_of_frame_before:
                tensors = self._by_module(graph, inputs)
                reference |= {f'{BEFORE}{name}': array for name, array in tensors.items()}
            elif any(name not in expected.outputs for name in graph.spec.output_names):
                computed = self._by_module(graph, inputs)
                self._by_modules |= {n: a for n, a in computed.items() if n not in expected.outputs}
                reference |= self._by_modules
            number_of_runs[graph.name] += 1
            again = f'_{number_of_runs[graph.name]}' if number_of_runs[graph.name] > 1 else ''
            case = _case(f'{graph.name}_{index:03}{again}', graph, title, inputs, tensors)
            if run is runs[-1]:
                of_frame = dict(results=[expected.detections], family=sides.detector.family.name)
                case = dataclasses.replace(case, images=(title,), **of_frame)
            self.cases.append(case.write(self.folder, run.outputs))
            state = {name: source for source, name in graph.spec.state if not expected.was_reset}
            steps.append(Step(case.name, fed | state))
            memory = {source for source, _ in graph.spec.state}
            self._outputs |= {name: array for name, array in run.outputs.items() if name not in memory}
        if len(self.graphs) == 1 and not self.keeps_memory:
            return
        frame = ChainedFrame(
            f'{index:03}',
            title,
            tuple(steps),
            bool(expected.was_reset) if self.keeps_memory else True,
            str(sample.scene_token or ''),
            float(sample.timestamp_s),
            np.asarray(sample.ego_pose, np.float64).tolist() if self.keeps_memory else None,
        )
        self.frames.append(frame.to_json())

    def _fed(self, inputs: Mapping[str, np.ndarray]) -> dict[str, str]:
        sources = {name: name if name in self._outputs else name.removeprefix(BEFORE) for name in inputs}
        return {
            name: source
            for name, source in sources.items()
            if source in self._outputs and np.array_equal(self._outputs[source], inputs[name])
        }

    def _by_module(self, graph: KitGraph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        module = self._modules[graph.name]
        if module is None:
            return {}
        arguments = (inputs[name] for name in graph.spec.input_names)
        device = next(self.sides.detector.model.parameters()).device
        tensors = (
            torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array).to(device)
            for array in arguments
        )
        with torch.no_grad():
            results = module(*tensors)
        results = results if isinstance(results, list | tuple) else (results,)
        return {
            name: result.cpu().numpy() for name, result in zip(graph.spec.output_names, results, strict=True)
        }


def _case(
    name: str,
    graph: KitGraph,
    title: str,
    inputs: dict[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
) -> KitCase:
    tensors = {}
    for tensor in graph.spec.outputs:
        if tensor.compare != 'values':
            continue
        array, axes = reference[tensor.name], tensor.axes
        if axes[:1] == (1,) and array.ndim == len(axes) and len(array) > 1:
            array = array[-1:]  # of the decoder's layers the graph gives the last one alone
        tensors[tensor.name] = array
    return KitCase(name, graph.name, title, (), inputs, {}, tensors, [])
