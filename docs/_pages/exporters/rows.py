"""Every family through both exporters: does it export, is it proven, how many nodes, how fast it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import Mm2OnnxError, UsageError
from mmdeploy_ext.engines.registry import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.preprocess.pictures import PreparedImage

EXPORTERS = ('torchscript', 'dynamo')
ENGINE = DEFAULT.runner_options(threads=1)
FRAMES = 6
WARMUP = 2


@dataclasses.dataclass(frozen=True)
class Model:
    """A small model of a family.

    Attributes:
        title: of its rows.
        config: path.
        forms: of the post-processing; of a streaming model its contracts.
    """

    title: str
    config: str
    forms: tuple[str, ...]

    @property
    def checkpoint(self) -> str:
        """Path of its trained weights."""
        return f'demo/checkpoints/{Path(self.config).stem}.pth'


MODELS = {
    'atss': Model('ATSS', 'configs/demo/atss_toy.py', ('raw', 'decode', 'full')),
    'solov2': Model('SOLOv2', 'configs/demo/solov2_toy.py', ('raw', 'full')),
    'decoupled_solo': Model('Decoupled SOLO', 'configs/demo/decoupled_solo_toy.py', ('raw', 'full')),
    'rtdetr': Model('RT-DETR', 'configs/demo/rtdetr_toy.py', ('raw', 'full')),
    'streampetr': Model('StreamPETR', 'projects/configs/StreamPETR/stream_petr_toy.py', ('deploy', 'fork')),
}


@dataclasses.dataclass
class Row:
    """One export.

    Attributes:
        model: title.
        form: of the post-processing, or the contract.
        exporter: 'torchscript' or 'dynamo'.
        opset: of the file.
        reason: why it does not export or is not proven; '' when it is.
        exported: whether a file was written.
        proven: whether the ladder proved it.
        nodes: of all graphs of the export.
        export_s: seconds of the export.
        latency_ms: median of interleaved runs on one thread.
        ratio: latency through that of the TorchScript file of the same form and opset.
    """

    model: str
    form: str
    exporter: str
    opset: int
    reason: str = ''
    exported: bool = False
    proven: bool = False
    nodes: int | None = None
    export_s: float | None = None
    latency_ms: float | None = None
    ratio: float | None = None


class Export:
    """One model with its weights, and how its files are exported, proven and run."""

    def __init__(self, model: Model, root: Path, picture: Path) -> None:
        """Load a model.

        Args:
            model: whose paths are below `root`.
            root: of the repository.
            picture: what models of single images are traced and run with.
        """
        from mmdeploy_ext.families.model import load
        from mmdeploy_ext.preprocess.pictures import read_image
        from mmdeploy_ext.synthetic.drive import synthetic_drive

        self.deployment = load(str(root / model.config), str(root / model.checkpoint))
        self.of_images = self.deployment.family.samples == 'images'
        rule = self.deployment.rule
        self.samples: list[Any] = (
            [(picture.name, read_image(picture))] if self.of_images else list(synthetic_drive(FRAMES, rule))
        )

    def write(self, form: str, exporter: str, opset: int, folder: Path) -> list[str]:
        """Export, with dynamic axes where the family has them; return the files."""
        from mmdeploy_ext.families.files import export_files
        from mmdeploy_ext.families.model import resolve

        deployment, name = self.deployment, f'{form}-{exporter}-{opset}'
        choose = functools.partial(deployment.family.choose, exporter=exporter, opset=opset)
        if not self.of_images:
            options = choose(contract=form)
            deployment.family.check(deployment.cfg, options)
            path = str(folder / (f'{name}.onnx' if form == 'fork' else name))
            return export_files(deployment, options, path)[0]
        path = str(folder / f'{name}.onnx')
        options = resolve(choose(form=form, dynamic=True), deployment.model, deployment.rule)
        deployment.family.check(deployment.cfg, options)
        export_files(deployment, options, path, [self._prepared(options)])
        return [path]

    def _prepared(self, options: Options) -> PreparedImage:
        """Return the picture in the size of an export."""
        from mmdeploy_ext.families.model import prepare_fixed

        return prepare_fixed(self.deployment.rule, self.samples[0][1], options.height, options.width)

    def prove(self, paths: Sequence[str]) -> Any:
        """Return the verdict of the ladder, which feeds inputs that the export never saw."""
        from mmdeploy_ext.proving.ladder import prove

        return prove(self.deployment, paths, self.samples, ENGINE)[0]

    @contextlib.contextmanager
    def runner(self, paths: Sequence[str]) -> Iterator[Callable[[Any], object]]:
        """Yield a function that runs the files once, on the same sample again and again."""
        family = self.deployment.family
        if not self.of_images:
            stepper, frame = family.runner(paths, ENGINE), self.samples[0]
            yield lambda _: stepper.step(frame)
            return
        with DEFAULT.open(paths[0], ENGINE['threads']) as backend:
            image = self._prepared(family.exported_options(backend.metadata.options))
            feeds = backend.select_inputs(family.feeds([image], True))
            yield lambda _: backend.infer(feeds)


def measure(
    export: Export, title: str, form: str, opset: int, exporters: Sequence[str], folder: Path, rounds: int
) -> list[Row]:
    """Export one form with each exporter, prove each file, and run them in turns.

    Args:
        export: the model.
        title: of the rows.
        form: of the post-processing.
        opset: of all files; each exporter has to write it.
        exporters: in the order of the rows.
        folder: for the files.
        rounds: runs of each file that count.
    """
    rows, files_of_rows = [], []
    for exporter in exporters:
        row = Row(title, form, exporter, opset)
        rows.append(row)
        paths = _export(export, row, folder)
        if paths:
            _prove(export, row, paths)
            files_of_rows.append((row, paths))
    _time(export, files_of_rows, rounds)
    return rows


def _export(export: Export, row: Row, folder: Path) -> list[str]:
    start = time.perf_counter()
    try:
        paths = export.write(row.form, row.exporter, row.opset, folder)
    except Mm2OnnxError as error:
        row.reason = str(error)
        return []
    row.exported, row.export_s = True, time.perf_counter() - start
    row.nodes = sum(map(count_nodes, paths))
    return paths


def count_nodes(path: str) -> int:
    """Return the nodes of a file, those of sub-graphs included."""
    import onnx

    def count(graph: onnx.GraphProto) -> int:
        inner = (a.g for node in graph.node for a in node.attribute if a.HasField('g'))
        return len(graph.node) + sum(map(count, inner))

    return count(onnx.load(path).graph)


def _prove(export: Export, row: Row, paths: Sequence[str]) -> None:
    verdict = export.prove(paths)
    row.proven = verdict.proven
    row.reason = '; '.join(verdict.failures)


def _time(export: Export, files_of_rows: Sequence[tuple[Row, Sequence[str]]], rounds: int) -> None:
    """Run all files in turns, so that a machine that becomes slower does so for all."""
    from mmdeploy_ext.benchmark.measure import Contender, interleave, timed

    with contextlib.ExitStack() as stack:
        contenders = [
            Contender(row.exporter, DEFAULT.name, row.form, timed(stack.enter_context(export.runner(paths))))
            for row, paths in files_of_rows
        ]
        runs = interleave(contenders, [None], rounds, WARMUP) if files_of_rows else {}
    base = None
    for row, _ in files_of_rows:
        row.latency_ms = 1000 * statistics.median(run.total_s for run in runs[row.exporter])
        base = row.latency_ms if row.exporter == EXPORTERS[0] else base
        row.ratio = row.latency_ms / base if base else None


def chosen_forms(names: Sequence[str], forms: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Return model -> forms to measure.

    Raises:
        UsageError: a form that none of the models has.
    """
    known_forms = {form for name in names for form in MODELS[name].forms}
    unknown = [form for form in forms if form not in known_forms]
    if unknown:
        raise UsageError(f'--forms {" ".join(unknown)}: these models have {", ".join(sorted(known_forms))}')
    return {name: tuple(form for form in MODELS[name].forms if not forms or form in forms) for name in names}
