"""`onnx2tensorrt.py`: build a TensorRT engine, describe it, and compare it on a GPU."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import numpy_helper

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import ModelFileError, UsageError, one_line
from mmdeploy_ext.base.files import check_writable, sha256_onnx, write_json
from mmdeploy_ext.engines.tensorrt.backend import TensorRtBackend
from mmdeploy_ext.engines.tensorrt.package import BuildRequest
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.passes.for_tensorrt import fix_inputs, for_tensorrt, parse_constants
from mmdeploy_ext.graphs.run import Runner, random_feeds
from mmdeploy_ext.spec.comparison import compare_named
from mmdeploy_ext.spec.results import FLOAT32, HALF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import onnx

    from mmdeploy_ext.engines.tensorrt.engine import Job
    from mmdeploy_ext.engines.tensorrt.record import Record
    from mmdeploy_ext.spec.results import TensorRow


# Compares a TensorRT engine with ONNX Runtime on the same random feeds.


LARGEST_DIFFERENCE = 1e-3
"""Tolerance of float32, relative to an output's largest value: GPUs sum in other orders."""


def compare(engine: str, source: str, seed: int = 0) -> list[TensorRow]:
    backend = TensorRtBackend(engine)
    backend.open_session()
    if backend.record.onnx_sha256 != sha256_onnx(source):
        raise ModelFileError(f'{engine}: was not built from {source} (the SHA-256 differs); build it again')
    model = fix_inputs(files.load(source), parse_constants(backend.record.constants))
    feeds = proof_feeds(model, backend.record, seed)
    got = backend.session.run(feeds)
    backend.deactivate()
    return compare_outputs(Runner(model).run(feeds), got, half=holds_float16(backend.record))


def holds_float16(record: Record) -> bool:
    return any('float16' in counts for counts in record.layers.values())


def proof_feeds(model: onnx.ModelProto, record: Record, seed: int = 0) -> dict[str, np.ndarray]:
    usual = {name: shapes[1] for name, shapes in record.profiles.items()}
    feeds = random_feeds(for_tensorrt(model), seed, usual)
    for tensor in model.graph.initializer:
        if tensor.name in feeds:
            array = np.broadcast_to(numpy_helper.to_array(tensor), feeds[tensor.name].shape)
            feeds[tensor.name] = np.ascontiguousarray(array)
    return feeds


def compare_outputs(
    reference: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], *, half: bool
) -> list[TensorRow]:
    """Compare outputs by name in the reference's dtype: TensorRT narrows float64 and int64."""
    outputs = {name: array.astype(reference.get(name, array).dtype) for name, array in got.items()}
    bars = HALF if half else FLOAT32
    return compare_named(reference, outputs, LARGEST_DIFFERENCE, 'the ONNX file', bars=bars)


def row_text(row: TensorRow) -> str:
    if row.cosine is None or (row.max_rel is None and not row.passed):  # no figure shows it
        return f'{row.tensor}: FAILED: {row.reason}'
    verdict = 'ok' if row.passed else 'FAILED'
    relative = 0.0 if row.max_rel is None else row.max_rel
    return f'{row.tensor}: {relative:.2e} of its largest value, cosine {row.cosine:.6f}: {verdict}'


PRODUCTS = ('CONVOLUTION', 'DECONVOLUTION', 'MATRIX_MULTIPLY')
"""Kinds of layers that convolve or multiply matrices."""
NO_GPU = 'NOT COMPARED: no GPU was found'


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        description="Build a TensorRT engine from an ONNX file, in the file's dtypes or, with --fp16, in "
        'float16. tensorrt-rtx can build without a GPU for a chosen architecture.'
    )
    cli.add_fields(parser, BuildRequest, 'source')
    add = cli.adder(parser)
    add('--out FILE', 'engine to write (default: ONNX with .engine)', writes=('{}', '{}.json'))
    names = 'architectures package fp16 keep_fp32 shapes constants tf32'
    cli.add_fields(parser, BuildRequest, names)
    add('--layers JSON', 'write the dtype of every layer', writes='{}')
    cli.add_fields(parser, BuildRequest, 'only_check')
    add('--verify', 'compare the engine with ONNX Runtime on a GPU; exit status 1 if outputs differ')
    return parser


def run(args: argparse.Namespace) -> int:
    from mmdeploy_ext.engines.precision_rules import rule_lines
    from mmdeploy_ext.engines.tensorrt import engine

    if args.source.endswith('.engine'):
        return _describe(args)
    if args.keep_fp32 and not args.fp16:
        raise UsageError('--keep-fp32 requires --fp16')
    output = args.out or f'{args.source.removesuffix(".onnx")}.engine'
    job = engine.prepare(BuildRequest(**cli.given_of(BuildRequest, args)))
    if args.only_check:
        print(f'{args.source}: {len(job.model.graph.node)} nodes, all supported by {job.title}')
        for line in rule_lines(job.model, 'TensorRT'):
            print(f'  {line}')
        return 0
    return _build(args, job, output)


def _build(args: argparse.Namespace, job: Job, output: str) -> int:
    from mmdeploy_ext.engines.tensorrt import engine

    for target in filter(None, (output, args.layers)):
        check_writable(target)
    with _progress() as progress:
        record, built = engine.build_file(job, output, progress)
    if args.layers:
        write_json(args.layers, dict(network=built.layers_json(), inspector=_inspect(output)))
    layers = f'{len(built.layers)} layers, built in {built.seconds:.1f} s'
    print(f'{output}: {_title(record)}, {record.precision}, {layers}')
    _print_layers(record.layers)
    for warning in built.warnings[:5]:
        print(f'  TensorRT: {one_line(warning)[:200]}')
    if args.verify:
        return _verify(output, args.source)
    return 0


def _title(record: Record) -> str:
    architectures = ', '.join(f'SM {number}' for number in record.architectures)
    return f'{record.package} {record.version}, {architectures}, {record.nbytes / 1e6:.1f} MB'


def _inspect(engine_path: str) -> Any:
    import json

    from mmdeploy_ext.engines.tensorrt.backend import TensorRtBackend
    from mmdeploy_ext.engines.tensorrt.binding import find_gpu
    from mmdeploy_ext.engines.tensorrt.record import read_record

    gpu = find_gpu()
    if gpu is None or gpu.architecture not in read_record(engine_path).architectures:
        return None
    backend = TensorRtBackend(engine_path)
    backend.open_session()
    return json.loads(backend.layers())


def _print_layers(layers: dict[str, dict[str, int]]) -> None:
    for kind in PRODUCTS:
        words = ', '.join(f'{count} {dtype}' for dtype, count in layers.get(kind, {}).items())
        if words:
            print(f'  {kind.lower().replace("_", " ")}: {words}')


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    with cli.progress('building') as update:
        yield lambda phase, done, steps: update(description=phase, completed=done, total=steps or None)


def _describe(args: argparse.Namespace) -> int:
    from mmdeploy_ext.engines.tensorrt.record import check_source, read_record

    record = read_record(args.source)
    check_source(record, args.source)
    print(f'{args.source}: {_title(record)}')
    print(f'  of {record.onnx} ({record.onnx_sha256[:12]}), {record.precision}')
    for side, ports in (('input', record.inputs), ('output', record.outputs)):
        for port in ports:
            print(f'  {side} {port.name}: {port.dtype} {"x".join(map(str, port.shape))}')
    _print_layers(record.layers)
    return _verify(args.source, None) if args.verify else 0


def _verify(engine_path: str, onnx_path: str | None) -> int:
    from mmdeploy_ext.engines.tensorrt.binding import find_gpu
    from mmdeploy_ext.engines.tensorrt.record import read_record
    from mmdeploy_ext.spec.comparison import equality_claim, is_equal

    if onnx_path is None:
        raise UsageError('--verify: pass the ONNX file, which the engine is compared with')
    if find_gpu() is None:
        print(NO_GPU)
        return 1
    rows = compare(engine_path, onnx_path)
    for row in rows:
        print(f'  {row_text(row)}')
    is_half = holds_float16(read_record(engine_path))
    print(equality_claim(rows, 1, 'WITHIN FP16 BARS' if is_half else 'EQUAL'))
    return 0 if is_equal(rows) else 1


main = cli.program(run, build_parser)
