"""A table in Markdown of the graphs that build for each architecture, with the size of the engine."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from mmdeploy_ext.core.errors import Mm2OnnxError, UsageError
from mmdeploy_ext.engines.tensorrt import engine as tensorrt_engine
from mmdeploy_ext.engines.tensorrt.build import Built, build
from mmdeploy_ext.graph.feeds import random_feeds
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.graph.passes.for_tensorrt import engine_spec
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.proving.tensorrt import compare_outputs

PRECISIONS = ('fp32', 'fp16')
"""Values of `Row.precision`, in the order of the rows of a graph."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One graph in one precision.

    Attributes:
        name: names of its folder and file, without the suffix: 'FOLDER/STEM'.
        precision: 'fp32' (the file as it is) or 'fp16'.
        nodes: their number in the ONNX file.
        built: architectures that an engine was built for.
        nbytes: size of the engine in bytes; if several had to be built, of the one for most architectures; 0
            without one.
        halves: number of layers that convolve or multiply matrices in float16, and of all that do.
        cosine: worst of all float outputs that are not all zeros, the float16 graph against the file, both in
            ONNX Runtime on the same random inputs; None for fp32, without an engine or such outputs.
        refused: why there is no engine for some or all architectures, or ''.
    """

    name: str
    precision: str
    nodes: int
    built: tuple[int, ...]
    nbytes: int
    halves: tuple[int, int]
    cosine: float | None
    refused: str


def fitting_options(path: str, texts: Sequence[str]) -> list[str]:
    """Return those of the options `texts`, NAME or NAME=..., that name an input or an open axis of one.

    `path` is that of the ONNX file whose inputs these are.
    """
    model = files.load(path)
    spec = engine_spec(model)
    names = {value.name for value in model.graph.input}
    names |= {axis for tensor in spec.inputs for axis in tensor.dynamic_axes.values()}
    return [text for text in texts if text.partition('=')[0] in names]


def measure(
    paths: Sequence[str],
    architectures: Sequence[int],
    shapes: Sequence[str] = (),
    constants: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Row]:
    """Build every file in both precisions, for as many of the architectures as take it; nothing is written.

    An engine is built for all architectures; if that fails, one for the first, and for the rest by this rule.
    Return a row for each file and precision, file by file.

    Args:
        paths: ONNX files.
        architectures: 86 for SM 8.6.
        shapes: options of --shapes, `NAME=MIN/OPT/MAX`; used for the files that have such an input or axis.
        constants: options of --constant, `NAME` or `NAME=VALUES`; used likewise.
        progress: called before the builds of each row with a text, 'FOLDER/STEM PRECISION', the number of
            finished files and that of all; with None nothing is called.
    """
    rows = []
    for finished, path in enumerate(paths):
        for precision in PRECISIONS:
            if progress is not None:
                progress(f'{_name(path)} {precision}', finished, len(paths))
            rows.append(_row(path, precision, architectures, shapes, constants))
    return rows


def _name(path: str) -> str:
    return f'{Path(path).parent.name}/{Path(path).stem}'


def _row(
    path: str, precision: str, architectures: Sequence[int], shapes: Sequence[str], constants: Sequence[str]
) -> Row:
    name, nodes = _name(path), len(files.read(path).graph.node)
    reasons: dict[str, list[int]] = {}
    engines: list[tuple[tuple[int, ...], Built, tensorrt_engine.Job]] = []
    groups = [tuple(architectures)]  # one engine for all; if that fails, for the first and for the rest
    while groups:
        group = groups.pop(0)
        try:
            job = tensorrt_engine.prepare(
                path,
                fp16=precision == 'fp16',
                shapes=fitting_options(path, shapes),
                constants=fitting_options(path, constants),
                package='tensorrt-rtx',
                architectures=group,
            )
            engines.append((group, build(job.model, job.package, group, job.profiles), job))
        except Mm2OnnxError as error:
            if len(group) > 1:
                groups += [group[:1], group[1:]]
            else:
                reasons.setdefault(str(error).removeprefix(f'{path}: '), []).extend(group)
    refused = '; '.join(
        reason if len(refusing) == len(architectures) else f'SM {" ".join(map(str, refusing))}: {reason}'
        for reason, refusing in reasons.items()
    )
    if not engines:
        return Row(name, precision, nodes, (), 0, (0, 0), None, refused)
    _, built, job = max(engines, key=lambda entry: len(entry[0]))
    taking = tuple(sorted(architecture for group, _, _ in engines for architecture in group))
    dtypes = built.dtypes()
    products = [dtypes.get(kind, {}) for kind in ('CONVOLUTION', 'DECONVOLUTION', 'MATRIX_MULTIPLY')]
    halves = sum(counts.get('float16', 0) for counts in products)
    total = sum(sum(counts.values()) for counts in products)
    cosine = _cosine(path, job) if precision == 'fp16' else None
    return Row(name, precision, nodes, taking, len(built.data), (halves, total), cosine, refused)


def _cosine(path: str, job: tensorrt_engine.Job) -> float | None:
    """Return the worst cosine; None if all float outputs are zeros on random inputs."""
    single = tensorrt_engine.prepare(path, constants=job.constants, only_check=True).model
    usual_shapes = {name: shapes[1] for name, shapes in job.profiles.items()}
    feeds = random_feeds(single, 0, usual_shapes)
    reference, candidate = Runner(single).run(feeds), Runner(job.model).run(feeds)
    floats = {name: array for name, array in reference.items() if array.dtype.kind == 'f' and array.any()}
    rows = compare_outputs(floats, {name: candidate[name] for name in floats}, half=True)
    return min((row.cosine or 0.0 for row in rows), default=None)


def markdown(rows: Sequence[Row], architectures: Sequence[int], version: str) -> str:
    """Return the table as Markdown, with the version of tensorrt-rtx above it and refused graphs below.

    It has a line for each of `rows` with an engine, and a column for each of the architectures (86 for SM
    8.6).
    """
    heads = ['graph', 'nodes', 'precision', *(f'SM {number}' for number in architectures)]
    heads += ['MB', 'products in float16', 'cosine of fp16']
    intro = f'tensorrt-rtx {version}; the size is that of one engine for all architectures of the row.'
    lines = [intro, '', _line(heads), _line(['---'] * len(heads))]
    refused: dict[str, list[str]] = {}
    for row in rows:
        if row.refused:
            refused.setdefault(row.refused, []).append(f'`{row.name}` {row.precision}')
        if not row.built:
            continue
        marks = ['builds' if number in row.built else 'refused' for number in architectures]
        size = f'{row.nbytes / 1e6:.1f}'
        half = f'{row.halves[0]} of {row.halves[1]}'
        cosine = '-' if row.precision == 'fp16' else ''
        if row.cosine is not None:
            cosine = f'{row.cosine:.5f}'
        lines.append(_line([row.name, str(row.nodes), row.precision, *marks, size, half, cosine]))
    if refused:
        lines += ['', 'Refused, with the reason:', '']
        lines += [f'- {", ".join(names)}: {reason}' for reason, names in refused.items()]
    return '\n'.join(lines) + '\n'


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def insert_table(text: str, table: str, mark: str = 'table') -> str:
    """Return the page `text` with the table between its marks, `<!-- table -->` and `<!-- /table -->`.

    `table` ends with a line end; `mark` is the word in the marks. What was between the first pair of them is
    replaced; the table follows the line of the first mark. An empty page becomes the marks and the table.
    UsageError: another page without the marks, in this order, the first one at the end of a line.
    """
    start, end = f'<!-- {mark} -->\n', f'<!-- /{mark} -->'
    if not text.strip():
        return f'{start}{table}{end}\n'
    before, _, rest = text.partition(start)
    _, end_mark, after = rest.partition(end)
    if not end_mark:
        raise UsageError(
            f'the page has no lines {start.strip()} and {end}, between which the table goes; add them'
        )
    return f'{before}{start}{table}{end}{after}'
