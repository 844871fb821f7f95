"""Whether a mutant is equivalent to the right files: a reason that follows from its text, and equal results.

The reason comes from a comparison of its own, by values that are numbered by what computes them: it shares no
code with the proof that it judges.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from mmdeploy_ext.contract.metadata import PREFIX, read_metadata
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.exporting import model as deploy
from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.proving.inputs.samples import proof_samples
from mmdeploy_ext.proving.inputs.sizes import fits
from mmdeploy_ext.proving.levels import sparse_layers
from mmdeploy_ext.proving.levels.sparse_file import read_sparse_file
from mmdeploy_ext.synthetic.scene import make_scene
from mutation_metadata import NOTED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mmdeploy_ext.exporting.model import Model
    from mutation_toys import Toy
    from mutations import Export, Mutant

COMMUTATIVE = ('Add', 'Mul', 'Max', 'Min', 'And', 'Or', 'Xor', 'Equal', 'Sum', 'Mean')
REASONS = (
    ('', 'the same graph, written in another way: names, order of nodes, storage of constants, texts'),
    ('defaults', 'an attribute has the value that it has by default'),
    ('dead', 'what was changed reaches no output'),
    ('commutative', 'the operands of a commutative operator changed places'),
)
"""What a comparison leaves aside besides those before, and what that means where graphs are equal then."""


def reason_of(export: Export, mutant: Mutant) -> str:
    """Return why a mutant computes and tells the same as the right files; '' where no reason is known."""
    reasons = []
    for name, content in mutant.changes.items():
        if content is None or not (name in export.models or name.endswith('.data')):
            return ''
        if name.endswith('.data'):  # weights beside a graph that changed with them
            continue
        reason = _reason(export.models[name], _with_weights(name, mutant.changes))
        if not reason:
            return ''
        reasons.append(reason)
    return '; '.join(dict.fromkeys(reasons))


def _with_weights(name: str, files: Mapping[str, bytes | None]) -> onnx.ModelProto:
    """Return a graph with the weights that are beside it."""
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            Path(folder, file).write_bytes(content or b'')
        return onnx.load(str(Path(folder, name)))


def _reason(right: onnx.ModelProto, mutant: onnx.ModelProto) -> str:
    keys = differing_keys(right, mutant)
    if keys is None or not set(keys) <= {*NOTED, 'edits'}:
        return ''
    noted = f'only noted in a verdict: {", ".join(keys)}' if keys else ''
    if 'edits' in keys:
        noted = 'the command that is recorded changes nothing in this graph'
    aside: tuple[str, ...] = ()
    for leaves_aside, reason in REASONS:
        aside = (*aside, leaves_aside)
        if canonical(right, aside) == canonical(mutant, aside):
            return noted or reason
    return ''


def differing_keys(right: onnx.ModelProto, mutant: onnx.ModelProto) -> list[str] | None:
    """Return the keys of ours whose values differ; None where a key is there twice, or there are others."""
    sides = []
    for model in (right, mutant):
        props = [(entry.key, entry.value) for entry in model.metadata_props]
        if len({key for key, _ in props}) < len(props):
            return None
        sides.append({key.removeprefix(PREFIX): value for key, value in props if key.startswith(PREFIX)})
    if sides[0].keys() != sides[1].keys():
        return None
    return [key for key, value in sides[0].items() if _plain(sides[1][key]) != _plain(value)]


def _plain(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def canonical(model: onnx.ModelProto, aside: tuple[str, ...]) -> str:
    """Return the hash of all that decides what a graph computes, but for what is left `aside`."""
    numbering = Numbering(model, aside)
    known = {value.name: f'input {value.name}' for value in model.graph.input}
    keys = numbering.graph(model.graph, known)
    defaults = {tensor.name: _constant(tensor) for tensor in model.graph.initializer}
    parts = [_ends(value, defaults.get(value.name, '')) for value in model.graph.input]
    parts += [_ends(value, known.get(value.name, 'unknown')) for value in model.graph.output]
    parts += sorted(f'{entry.domain or "ai.onnx"} {entry.version}' for entry in model.opset_import)
    if 'dead' not in aside:
        parts += sorted(keys)
    return _hash(*parts)


def _ends(value: onnx.ValueInfoProto, key: str) -> str:
    return f'{value.name} {value.type.SerializeToString(deterministic=True).hex()} {key}'


class Numbering:
    """Numbers the values of a graph by what computes them, down to inputs and constants."""

    def __init__(self, model: onnx.ModelProto, aside: tuple[str, ...]) -> None:
        self.aside = aside
        self.opsets = {entry.domain or 'ai.onnx': entry.version for entry in model.opset_import}
        self.functions = [
            function.SerializeToString(deterministic=True).hex() for function in model.functions
        ]

    def graph(self, graph: onnx.GraphProto, known: dict[str, str]) -> list[str]:
        """Number the values of a graph into `known`; return a key of each node."""
        inputs = {value.name for value in graph.input}
        for tensor in graph.initializer:
            if tensor.name not in inputs:
                known[tensor.name] = _constant(tensor)
        for sparse in graph.sparse_initializer:
            known[sparse.values.name] = _hash('sparse', sparse.SerializeToString(deterministic=True).hex())
        return [key for node in graph.node if (key := self.node(node, known))]

    def node(self, node: onnx.NodeProto, known: dict[str, str]) -> str:
        """Number what a node writes; return its key, '' of a constant."""
        if node.op_type == 'Constant' and node.attribute[0].HasField('t'):
            known[node.output[0]] = _constant(node.attribute[0].t)
            return ''
        read = [known.get(name, f'unknown {name}') if name else '' for name in node.input]
        while read and not read[-1]:
            read.pop()
        if 'commutative' in self.aside and node.op_type in COMMUTATIVE:
            read.sort()
        attributes = sorted(self.attribute(node, entry, known) for entry in node.attribute)
        parts = [node.domain or 'ai.onnx', node.op_type, node.overload, *filter(None, attributes)]
        key = _hash(*parts, 'reads', *read, 'functions', *self.functions)
        known.update((name, _hash(key, str(place))) for place, name in enumerate(node.output) if name)
        return key

    def attribute(self, node: onnx.NodeProto, entry: onnx.AttributeProto, known: dict[str, str]) -> str:
        """Return the key of an attribute; '' where it is left aside."""
        if entry.HasField('g'):
            inner = dict(known)
            inner.update((value.name, f'argument {place}') for place, value in enumerate(entry.g.input))
            keys = self.graph(entry.g, inner)
            given = [inner.get(value.name, f'unknown {value.name}') for value in entry.g.output]
            return _hash(entry.name, *given, *(sorted(keys) if 'dead' not in self.aside else ()))
        if entry.HasField('t'):
            return f'{entry.name} {_constant(entry.t)}'
        if 'defaults' in self.aside and self._is_default(node, entry):
            return ''
        plain = onnx.AttributeProto()
        plain.CopyFrom(entry)
        plain.ClearField('doc_string')
        return plain.SerializeToString(deterministic=True).hex()

    def _is_default(self, node: onnx.NodeProto, entry: onnx.AttributeProto) -> bool:
        version = self.opsets.get(node.domain or 'ai.onnx', 0)
        if not onnx.defs.has(node.op_type, version, node.domain):
            return False
        attributes = onnx.defs.get_schema(node.op_type, version, node.domain).attributes
        if entry.name not in attributes:
            return False
        default = attributes[entry.name].default_value
        values = [onnx.helper.get_attribute_value(one) for one in (entry, default) if one.type]
        return len(values) == 2 and values[0] == values[1]


def _constant(tensor: onnx.TensorProto) -> str:
    array = numpy_helper.to_array(tensor)
    raw = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
    return _hash('constant', str(array.dtype), str(array.shape), hashlib.sha256(raw).hexdigest())


def _hash(*parts: str) -> str:
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def same_results(toy: Toy, right: Path, mutant: Path, count: int) -> bool:
    """Return whether two exports of a toy give the same bits on as many inputs."""
    deployment = toy.load()
    results = RESULTS[_kind(deployment)]
    try:
        pairs = zip(*(results(deployment, path, count) for path in (right, mutant)), strict=True)
        compared = [_bits(one) == _bits(other) for one, other in pairs]
    except Exception:
        return False
    return len(compared) == count and all(compared)


def _kind(deployment: Model) -> str:
    if deployment.family.product == BACKBONE:
        return 'voxels'
    return 'images' if deployment.family.samples == 'images' else 'frames'


def _bits(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[Any, ...]]:
    listed = {name: np.asarray(array) for name, array in arrays.items()}
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in listed.items()}


def _of_images(deployment: Model, path: Path, count: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield outputs of generated pictures of several sizes."""
    family, random = deployment.family, np.random.default_rng(0)
    options = family.exported_options(read_metadata(str(path)).options)
    sizes = [(32 * height, 32 * width) for height in range(4, 11) for width in range(4, 11)]
    sizes = [size for size in sizes if fits(deployment, options, size)]
    with build_backend('OnnxRuntimeBackend', str(path), threads=1) as backend:
        for _ in range(count):
            size = sizes[random.integers(len(sizes))]
            picture, _ = make_scene(random, *size, 12)
            image = deploy.prepare_fixed(deployment.rule, picture, *size)
            feeds = family.feeds([image], True)
            yield backend.infer({name: feeds[name] for name in backend.spec.input_names if name in feeds})


def _of_frames(deployment: Model, path: Path, count: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield outputs and results of generated frames or sweeps."""
    from mmdeploy_ext.exporting.files import read_files

    with redirect_stdout(io.StringIO()):
        samples, _ = proof_samples(deployment, count)
    with ExitStack() as stack:
        runner = deployment.family.runner(read_files(str(path)).paths, dict(threads=1))
        owner = getattr(runner, 'runtime', runner)
        if hasattr(owner, 'close'):
            stack.callback(owner.close)
        for sample in samples:
            step = runner.step(sample)
            yield {**step.outputs, **vars(step.detections)}


def _of_voxels(deployment: Model, path: Path, count: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield the dense maps of random voxels."""
    subject, random = read_sparse_file(deployment, str(path), None), np.random.default_rng(0)
    dialect = subject.export_options.target == 'libspconv'
    kind = sparse_layers.DialectRunner if dialect else sparse_layers.PortableRunner
    candidate, settings = kind(subject, 1), deployment.settings
    for _ in range(count):
        rows = int(random.integers(1, 400))
        sites = np.stack([random.integers(0, size, rows) for size in settings.spatial_shape], 1)
        sites = np.unique(sites, axis=0)
        coordinates = np.pad(sites, ((0, 0), (1, 0))).astype(np.int32)
        features = random.standard_normal((len(sites), settings.in_channels)).astype(np.float32)
        yield dict(dense=candidate.run(features, coordinates))


RESULTS = dict(images=_of_images, frames=_of_frames, voxels=_of_voxels)
"""What a model takes -> what yields the results of its files, by name."""
