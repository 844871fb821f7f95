"""The proof of a sparse backbone's file: structure, every layer and the dense map against spconv."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import one_line
from mmdeploy_ext.base.files import read_json, sha256_onnx
from mmdeploy_ext.engines.base import attempt
from mmdeploy_ext.exporting.sparse.libspconv import read, to_node_list
from mmdeploy_ext.exporting.sparse.trace import LayerSource, layer_sources
from mmdeploy_ext.families.backbone_files import has_precision
from mmdeploy_ext.proving import sparse_file
from mmdeploy_ext.proving.inputs.voxel_sets import in_order, proof_sets
from mmdeploy_ext.proving.preprocessing.voxels import compare_voxels
from mmdeploy_ext.proving.proof import check, compare_samples, finish
from mmdeploy_ext.proving.provenance import settings_check
from mmdeploy_ext.proving.subject import Sample, Step, Subject
from mmdeploy_ext.runtime.sparse import engine
from mmdeploy_ext.runtime.sparse.plan import plan_of
from mmdeploy_ext.runtime.sparse.rulebook import build
from mmdeploy_ext.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.spec.comparison import compare_named, failed_row
from mmdeploy_ext.spec.matching import total_reasons
from mmdeploy_ext.spec.results import Case, Pair

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from mmdeploy_ext.exporting.sparse.ranges import Ranges
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.proving.proof import Proof
    from mmdeploy_ext.proving.sparse_file import SparseFile
    from mmdeploy_ext.proving.subject import Claims
    from mmdeploy_ext.spec.results import TensorRow
    from mmdeploy_ext.spec.verdict import Verdict

DRAWN_VOXELS = 500
"""Fewest voxels of an input in the report."""
MAX_DRAWN = 16
"""Most inputs in the report."""
EXACT_RTOL = 1e-4
"""Tolerance of float32, relative to the largest reference value."""
HALF_RTOL = 5e-3
"""Tolerance of the file's fp16 weights, likewise relative."""
Layer = tuple[str, str, np.ndarray, np.ndarray | None]
"""Name and module path of a convolution, sites (M, 4) in the file's order, values (M, C) or None."""


def prove_backbone(
    detector: Detector,
    paths: Sequence[str],
    samples: Sequence[VoxelSet],
    engine: Mapping[str, Any],
    claims: Claims,
    **settings: Any,
) -> Verdict:
    """Prove one 'libspconv' or 'portable' file on synthetic and real voxels."""
    proof = check_backbone(detector, paths, samples, engine, claims, **settings)
    results, of_encoder = proof.results, detector.settings
    sets = [*proof_sets(of_encoder.spatial_shape, of_encoder.in_channels), *samples]
    subject = attempt(lambda: Backbone(proof.files[0], sets, int(proof.engine.get('threads', 0))))
    if isinstance(subject, Exception):
        results.reasons.append(f'ONNX Runtime cannot run the file: {one_line(subject)[:300]}')
        return finish(proof)
    clock = compare_samples(proof, subject)
    if claims.timed:
        medians = clock.medians('reference', 'file').values()
        proof.verdict.timing_ms = dict(
            zip(('spconv, one thread', subject.runner.timed), medians, strict=False)
        )
    if not results.reasons:
        results.reasons += total_reasons(results.cases, proof.verdict.bars)
    proof.verdict.pairs = subject.pairs[::-1][:MAX_DRAWN]
    return finish(proof)


class Backbone(Subject):
    """The unpatched encoder on spconv, which cannot run in float64, and its file."""

    all_outputs = 'dense map'

    def __init__(self, file: SparseFile, sets: Sequence[VoxelSet], threads: int) -> None:
        self.file, self.given, self.pairs = file, sets, []
        is_dialect = file.export_options.target == 'libspconv'
        self.runner = (DialectRunner if is_dialect else PortableRunner)(file, threads)
        self.rtol = self.runner.rtol

    def sample(self, entry: VoxelSet, index: int, mode: str) -> Sample:
        return Sample(entry.name, entry, 'x'.join(map(str, entry.features.shape)), entry.traced)

    def want(self, sample: Sample, state: Any) -> Step:
        """Run the model on spconv, on one thread, and keep the outputs of its layers."""
        family, model = self.file.detector.family, self.file.detector.model
        with watched_layers(family.encoder(model), layer_sources(self.file.traced)) as layers:
            dense = family.run_encoder(model, sample.data.features, sample.data.coordinates)
        return Step({'dense map': dense}, facts=layers)

    def got(self, sample: Sample, state: Any) -> Step:
        coordinates = in_order(sample.data.coordinates, self.file.same_order)
        return Step({'dense map': self.runner.run(sample.data.features, coordinates)})

    def align(self, sample: Sample, want: Step, got: Step) -> Any:
        """Add rows on the layers, site by site."""
        coordinates, rows = in_order(sample.data.coordinates, self.file.same_order), []
        for layer in self.runner.layers(coordinates) if len(coordinates) else ():
            rows += layer_rows(want.facts, layer, self.file.same_order, self.rtol)
        more = self.runner.more_rows(want.tensors['dense map'])
        return want, dataclasses.replace(got, rows=more), rows

    def judged(self, sample: Sample, want: Step, got: Step | Exception, case: Case) -> Case:
        voxels = len(sample.data.features)
        if voxels >= DRAWN_VOXELS and not isinstance(got, Exception):
            maps = (step.tensors['dense map'][0] for step in (want, got))
            self.pairs.append(Pair(f'{sample.name}, {voxels} voxels', None, *maps, self.runner.title))
        return case


def check_backbone(
    detector: Detector,
    paths: Sequence[str],
    samples: Sequence[VoxelSet],
    engine: Mapping[str, Any],
    claims: Claims,
    *,
    ranges: Ranges | None = None,
    max_voxels: int | None = None,
    node_list: str = '',
) -> Proof:
    """Read the file, make its expected graphs, check it."""
    file = sparse_file.read_sparse_file(detector, paths[0], ranges)
    options = file.export_options
    facts = dict(
        file_sha256=sha256_onnx(file.path),
        form=options.target,
        options=dict(options.to_json(), cfg_options=detector.cfg_options),
        order=options.order,
        precision=file.precision,
        grid='x'.join(map(str, file.expected.spatial_shape)),
        output='x'.join(map(str, file.expected.output_shape)),
    )
    checks, notes = [], []
    if options.target == 'libspconv':
        checks, notes = sparse_file.check_dialect(file.path, file.model, max_voxels)
    else:
        checks = sparse_file.check_portable(file.model)
    if has_precision(options):
        notes.append(
            f'layers are compared in float32; to measure the effect of int8, use {tool("calibrate")}'
        )
    overrides = file.options.get('cfg_options') or {}
    checks += [
        settings_check(detector.unbuilt_cfg or detector.cfg, overrides),
        sparse_file.metadata_check(file),
        *([] if file.ranges is None else [file.ranges]),
    ]
    if node_list:
        expected, name = read_json(node_list), Path(node_list).name
        checks += sparse_file.compare_node_lists(to_node_list(file.model), expected, name)
    rule, settings = sparse_file.read_fact(file.model, file.path, 'voxels'), detector.settings
    layer = detector.family.voxel_layer(detector.model)
    return check(
        detector,
        [file],
        options,
        engine,
        claims,
        facts,
        contents=lambda file: (checks, notes),
        compare=sparse_file.compare_graph,
        prepared=lambda: compare_voxels(layer, settings.order, settings.in_channels, rule.to_json()),
    )


@dataclasses.dataclass
class LayerOutput:
    """The output of one folded convolution in the model.

    Attributes:
        coordinates: (M, 4) int32: sample, then the axes in the module's order.
        features: (M, C) float32.
    """

    coordinates: np.ndarray
    features: np.ndarray


@contextlib.contextmanager
def watched_layers(
    encoder: torch.nn.Module, sources: dict[str, LayerSource]
) -> Iterator[dict[str, LayerOutput]]:
    """Yield a dict, path of a convolution -> output, filled by a forward pass."""
    outputs: dict[str, LayerOutput] = {}

    def values(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().cpu().float().numpy().copy()  # an in-place ReLU may follow

    def on_convolution(path: str, _module: object, _args: object, result: Any) -> None:
        coordinates = result.indices.detach().cpu().numpy().astype(np.int32)
        outputs[path] = LayerOutput(coordinates, values(result.features))

    def on_norm(path: str, _module: object, _args: object, result: torch.Tensor) -> None:
        outputs[path].features = values(result)

    with contextlib.ExitStack() as hooks:
        for path, source in sources.items():
            for name, hook in ((path, on_convolution), (source.norm, on_norm)):
                if name:
                    module = encoder.get_submodule(name)
                    hooks.enter_context(module.register_forward_hook(functools.partial(hook, path)))
        yield outputs
        for path, output in outputs.items():
            if sources[path].relu:
                np.maximum(output.features, 0, out=output.features)


class DialectRunner:
    """A libspconv file, interpreted in numpy: the engine itself needs a GPU.

    Attributes:
        graph, plan: of the file.
        title: name of the engine in pictures.
        timed: name of the engine in the table of times.
        rtol: tolerance, relative to the largest reference value.
    """

    title, timed = 'the file, interpreted', 'numpy interpreter'
    rtol = HALF_RTOL

    def __init__(self, file: SparseFile, threads: int) -> None:
        self.file = file
        self.graph = read(file.path)
        self.plan = plan_of(self.graph)

    def run(self, features: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        self.voxels = features, coordinates
        self.layer_values: dict[str, np.ndarray] = {}
        self.rulebook = build(self.plan, coordinates)
        keep = self.layer_values.__setitem__
        return engine.run(self.graph, coordinates, features, keep, rulebook=self.rulebook)

    def layers(self, coordinates: np.ndarray) -> Iterator[Layer]:
        """Yield every layer of the last run, which had `coordinates`."""
        expected = self.file.expected.convolutions()
        for node, model_node in zip(self.graph.convolutions(), expected, strict=True):
            sites = self.rulebook.level(node.output).coordinates
            yield node.name, model_node.module, sites, self.layer_values[node.name]

    def more_rows(self, expected: np.ndarray) -> list[TensorRow]:
        """Compare the dense map with float32 weights, for the last run."""
        features, coordinates = self.voxels
        name, exact = 'dense map, weights before rounding', self.file.exact
        dense = engine.run(exact, coordinates, features)
        return compare_named({name: expected}, {name: dense}, EXACT_RTOL, 'scn')


class PortableRunner:
    """A portable file on ONNX Runtime.

    `layer_engine` also has the convolutions' outputs. These prevent fusion, so the dense map comes from the
    first session.
    """

    title, timed = 'ONNX Runtime', 'rulebook and ONNX Runtime'
    rtol = EXACT_RTOL

    def __init__(self, file: SparseFile, threads: int) -> None:
        self.file = file
        self.engine = ScnOnnx(file.path, threads=threads)
        model = onnx.ModelProto()
        model.CopyFrom(file.model)
        names = {name for node in model.graph.node for name in node.output}
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(f'{node.name}.out', onnx.TensorProto.FLOAT, None)
            for node in file.expected.convolutions()
            if f'{node.name}.out' in names
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'layers.onnx'
            path.write_bytes(model.SerializeToString())
            self.layer_engine = ScnOnnx(path, threads=self.engine.threads)

    def run(self, features: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        self.features = features
        return self.engine.step(voxels=(features, coordinates))

    def layers(self, coordinates: np.ndarray) -> Iterator[Layer]:
        """Yield every layer of the last run, without the last row (zeros) of the form 'buckets'."""
        outputs = self.layer_engine.session.run(self.engine.feeds(self.features, coordinates))
        level_of, levels = self.engine.plan.level_of, build(self.engine.plan, coordinates).levels
        for node in self.file.expected.convolutions():
            values = outputs.get(f'{node.name}.out')
            if values is None or node.output not in level_of:
                yield node.name, node.module, coordinates, None
                continue
            values = values[:-1] if self.engine.form == 'buckets' else values
            yield node.name, node.module, levels[level_of[node.output]].coordinates, values

    def more_rows(self, expected: np.ndarray) -> list[TensorRow]:
        """[], since every row has float32's tolerance."""
        return []


def layer_rows(
    outputs: Mapping[str, LayerOutput], layer: Layer, same_order: bool, rtol: float
) -> list[TensorRow]:
    """Compare a layer site by site, in any order of sites."""
    node, module, sites, features = layer
    name, expected = f'{node} {module}', outputs.get(module)
    if features is None:
        return [failed_row(name, 'the file has no such layer')]
    if expected is None:
        return [failed_row(name, 'missing in the reference, where this convolution did not run')]
    sites = in_order(sites, same_order)
    expected_order, order = (np.lexsort(array.T[::-1]) for array in (expected.coordinates, sites))
    if not np.array_equal(expected.coordinates[expected_order], sites[order]):
        unpaired = len({*map(tuple, expected.coordinates.tolist())} ^ {*map(tuple, sites.tolist())})
        reason = (
            f'active sites: {len(sites)}, expected {len(expected_order)}; {unpaired} are on one side only'
        )
        return [failed_row(name, reason, expected.features)]
    if len(features) != len(sites):
        return [failed_row(name, f'{len(features)} rows, expected {len(sites)}', expected.features)]
    sides = {name: expected.features[expected_order]}, {name: features[order]}
    return compare_named(*sides, rtol, 'scn')
