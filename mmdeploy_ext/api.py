"""Export and proof as functions: `mmdeploy_ext.export` and `prove`.

A model reads 'images', 'frames' (all cameras of a car at one moment), 'sweeps' (one LiDAR revolution)
or 'fused' (both). Errors are `Mm2OnnxError`s, before the weights load `UsageError`s.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import (
    CodeError,
    ConfigError,
    DataError,
    LoadError,
    Mm2OnnxError,
    UsageError,
    after_weights,
)
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.engines.registry import engine_settings
from mmdeploy_ext.families.base import DETECTOR, refuse
from mmdeploy_ext.families.detector import TRACED, Detector, fit, named_program, read_config
from mmdeploy_ext.proving.subject import Claims
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.spec.options import MADE_FOR, TARGETS, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.bench.precision.plan import Planner
    from mmdeploy_ext.exporting.precision_plan import KeptResults, Plan
    from mmdeploy_ext.proving.inputs.samples import ChosenSamples, Samples
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.verdict import Verdict


@dataclasses.dataclass
class ExportRequest:
    """The arguments of `export`, described there.

    Attributes:
        ignored_keys: prefixes of checkpoint keys that are left out.
        options: options of the graph that are not at their default.
    """

    config: str | Path
    checkpoint: str | Path
    output_file: str | Path = ''
    picture: str | Path = ''
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    cfg_options: Mapping[str, Any] | None = None
    device: str = 'cpu'
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ignored_keys: Sequence[str] = ()


@dataclasses.dataclass
class ProofRequest:
    """The arguments of `prove`, described there.

    Attributes:
        ignored_keys: prefixes of checkpoint keys that are left out.
        option: option of `samples`, for messages.
        recorded: folder of `record.py`, or ''.
        settings: `Claims.settings`.
    """

    config: str | Path
    checkpoint: str | Path
    onnx_file: str | Path
    samples: Sequence[str | Path] = ()
    frames: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    cfg_options: Mapping[str, Any] | None = None
    device: str = 'cpu'
    engine: str = 'onnxruntime'
    providers: Sequence[str] | None = None
    threads: int = 0
    inference_precision: str | None = None
    metrics: Sequence[str] = ()
    edited: bool = False
    asked: Mapping[str, Any] | None = None
    library: str | None = None
    strict: bool = False
    ignored_keys: Sequence[str] = ()
    option: str = '--images'
    recorded: str | Path = ''
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """Check what needs no config; raises UsageError."""
        check_normalisation(self.mean, self.std)
        self.build_settings()

    def build_settings(self) -> dict[str, Any]:
        """Return arguments of `build_backend` but the path."""
        return engine_settings(
            self.engine,
            threads=self.threads,
            providers=self.providers,
            inference_precision=self.inference_precision,
        )

    @property
    def claims(self) -> Claims:
        return Claims(
            self.edited,
            asked=dict(self.asked or {}),
            library=self.library,
            strict=self.strict,
            settings=self.settings,
        )


@dataclasses.dataclass(frozen=True)
class Exported:
    """The result of `export`.

    Attributes:
        files: graphs in the order of execution.
        options: of the export, resolved.
        seconds: to export and write.
        detector: the PyTorch model with weights.
        picture: traced image; '': the package's.
        samples: samples of a proof; None: the config's data set, or generated.
        plan: precision plan, with `keep_results`.
    """

    files: list[str]
    options: Options
    seconds: float
    detector: Detector
    picture: str | Path = ''
    samples: ChosenSamples | None = None
    plan: Plan | None = None

    def prove(self, engine: Mapping[str, Any] | None = None, **claims: Any) -> Verdict:
        """Prove the written files against the model in memory.

        `engine` is from `engine_settings`, `claims` are attributes of `Claims`. The verdict lists faults of
        files; see `prove`.
        """
        chosen = self.samples
        if chosen is None:
            kind = kind_of(self.detector.family)
            chosen = kind.samples(self.detector, traced=self.picture).of(self.detector)
        return prove_on(self.detector, self.files, chosen, engine or {}, Claims(written=True, **claims))


def check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise UsageError unless both are empty or three finite numbers, with `std` above 0."""
    for name, values in dict(mean=mean, std=std).items():
        numbers = [] if values is None else [*map(float, values)]
        kind = 'finite' if name == 'mean' else 'positive'
        fits = all(math.isfinite(number) and (number > 0 or name == 'mean') for number in numbers)
        if numbers and not (fits and len(numbers) == 3):
            raise UsageError(f'--{name} {" ".join(map(str, numbers))}: expected three {kind} numbers')


def read_detector(request: ExportRequest | ProofRequest, file: str = '') -> Detector:
    """Read the config of a request; `file` as in `read_config`."""
    check_normalisation(request.mean, request.std)
    whole = getattr(request, 'options', {}).get('whole', '')
    detector = read_config(
        request.config, request.checkpoint, request.cfg_options, request.device, file=file, whole=whole
    )
    detector.ignored_keys = tuple(request.ignored_keys)
    return detector


def chosen_options(detector: Detector, request: ExportRequest) -> Options:
    """Return the options of an export, with those of `--for`; UsageError: unknown option or wrong value.

    See `detector.fit`, which may change the config.
    """
    family, name = detector.family, request.options.get(MADE_FOR.name, '')
    target = TARGETS.get(name, Target())
    chosen = {**target.needs, **request.options}
    with named_program(name if target.needs else ''):
        options = family.choose(**{'opset': 0, **chosen})
        options.check(names=chosen)
    effective = {
        option.name
        for option in options.declared
        if option.has_effect(options) and option.name not in {*chosen, *options.fixed}
    }
    preferred = {name: value for name, value in target.prefers.items() if name in effective}
    return fit(detector, options.replace(**preferred))


def output_of(detector: Detector, options: Options, request: ExportRequest) -> str:
    """Return the user's or the default output path."""
    family, stem = detector.family, Path(request.config).stem
    return str(request.output_file) or kind_of(family).default_output(family, stem, options)


def export_read(
    detector: Detector, options: Options, request: ExportRequest, inputs: Samples, proves: bool = False
) -> Exported:
    """Build a detector of `read_detector`, load its weights and export it.

    `inputs` are from `Kind.samples`; the first image is traced. `proves`: read all before the export.
    """
    detector, options = built(detector, options, request)
    output, kind = output_of(detector, options, request), kind_of(detector.family)
    options, plan = kind.load(detector, options, output), None
    chosen = inputs.of(detector) if proves or options.keep_results else None
    with after_weights():
        if options.keep_results:
            plan = plan_of_export(detector, options, output, inputs, chosen)
            options = options.replace(keep_fp32=tuple(plan.patterns))
        files, seconds = kind.export(detector, options, output, inputs)
    return Exported(files, options, seconds, detector, request.picture, chosen, plan)


def built(detector: Detector, options: Options, request: ExportRequest) -> tuple[Detector, Options]:
    """Build a read detector and check its options; a head that its family refuses is traced whole instead.

    The new detector has the refusal in `refused`. Raises what `Kind.build` and `Kind.check` raise.
    """
    try:
        kind_of(detector.family).build(detector, request.mean, request.std)
    except ConfigError as error:
        if detector.family.name != TRACED or request.options.get('whole'):
            raise
        try:
            refuse(detector.cfg, DETECTOR)
        except ConfigError as refusal:
            untraceable = str(error).removeprefix(f'{detector.cfg.filename}: ')
            raise ConfigError(f'{refusal}; its test path cannot be traced: {untraceable}') from error
    if not kind_of(detector.family).traces or detector.family.name == TRACED or options.form != 'full':
        return detector, options
    try:
        kind_of(detector.family).check(detector, options)
    except CodeError as refusal:
        try:
            traced = read_detector(dataclasses.replace(request, options={'whole': TRACED}))
            chosen = chosen_options(traced, request)
            kind_of(traced.family).build(traced, request.mean, request.std)
            kind_of(traced.family).check(traced, chosen)
        except Mm2OnnxError:
            raise refusal from None
        traced.refused = str(refusal)
        return traced, chosen
    return detector, options


def plan_of_export(
    detector: Detector, options: Options, output: str, inputs: Samples, chosen: ChosenSamples
) -> Plan:
    """Export in float32 and plan the requested precision."""
    single = options.replace(precision='fp32', fp16_io=False, keep_fp32=(), keep_results=0.0)
    with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
        files, _ = kind_of(detector.family).export(
            detector, single, str(Path(folder, Path(output).name)), inputs
        )
        planner, before = planner_of(detector, files, chosen, options.keep_fp32)
        return planner.plan([options.precision], options.keep_results, before)


def planner_of(
    detector: Detector,
    files: Sequence[str],
    chosen: ChosenSamples,
    keep: Sequence[str] = (),
    metric: str = '',
    **quantiser: Any,
) -> tuple[Planner, KeptResults]:
    """Return a planner for float32 files, and the results they keep.

    Args:
        detector: with weights.
        files: of one export, in the order of use.
        chosen: samples with results to keep.
        keep: patterns of nodes that stay float32.
        metric: of the config's data set, such as 'bbox_mAP', instead of results.
        quantiser: arguments of `Planner` for INT8.
    """
    from mmdeploy_ext.bench.precision.plan import Planner, check_single
    from mmdeploy_ext.bench.precision.results_kept import metric_kept, on_files, results_kept
    from mmdeploy_ext.engines.base import record_runs
    from mmdeploy_ext.graphs.io.files import load

    kind, models = kind_of(detector.family), {path: load(path) for path in files}
    check_single(models)
    engine = engine_settings('onnxruntime') | dict(graph_optimization='basic', round_fp16=True)

    def metric_of(paths: Sequence[str], half: int) -> KeptResults:
        return metric_kept(kind.metrics(detector, paths, [metric.split('_')[0]], engine, half), metric)

    seen = quantiser['quantiser'].seen if quantiser else ()
    judges = [functools.partial(metric_of, half=half) for half in (0, 1)]
    if not metric:
        judges = results_kept(detector, kind.rows_kept(), files, chosen.samples, engine, seen)

    def runs_of(judge: Callable[[Sequence[str]], KeptResults]) -> Callable[[dict[str, Any]], KeptResults]:
        return functools.partial(on_files, files, judge=judge)

    search, *count = map(runs_of, judges)
    with record_runs() as runs:
        before = search(models)
    feeds = {path: [run.inputs for run in runs if Path(run.path).name == Path(path).name] for path in files}
    if not all(kept.matched for kept in (before, *(one(models) for one in count))):
        raise DataError(
            f'{detector.config}: model and file find nothing in common on half of these samples: a '
            f'criterion by results needs some; name pictures or sweeps with objects (--images) or train the '
            f'checkpoint'
        )
    return Planner(models, search, feeds, keep, count=next(iter(count), None), **quantiser), before


def plan_read(
    detector: Detector, request: ProofRequest, metric: str, keep: Sequence[str], **quantiser: Any
) -> tuple[Planner, KeptResults]:
    """Load a request's model and return its precision planner; see `planner_of`."""
    kind = kind_of(detector.family)
    inputs = kind.samples(detector, [*map(str, request.samples)], request.frames, request.option)
    files, _ = kind.read(str(request.onnx_file))
    kind.build(detector, request.mean, request.std)
    kind.check_provable(detector.family)
    kind.load_weights(detector)
    chosen = inputs.of(detector)
    return planner_of(detector, files, chosen, keep, metric, **quantiser)


def export(
    config: str | Path,
    checkpoint: str | Path,
    output_file: str | Path = '',
    *,
    picture: str | Path = '',
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    device: str = 'cpu',
    **options: Any,
) -> Exported:
    """Export a detector to ONNX, as `mm2onnx export`. Call `prove` to compare.

    Args:
        config: mmcv 1.x config; its `custom_imports` are imported.
        checkpoint: the weights.
        output_file: `.onnx` file, or folder for several graphs, replaced as a whole. '': `tmp.onnx`, a folder
            named after the config, or `<config>_fork.onnx`, in the current folder.
        picture: traced image; '': the package's.
        mean: per channel in the network's order (R G B with `to_rgb=True`), 0..255; None: the config's.
            2D models only.
        std: likewise.
        cfg_options: dotted key -> value that overrides the config.
        device: 'cpu', 'cuda' or 'cuda:N'.
        options: of the graph. All models have `opset`, `precision` ('fp32', 'fp16'), `fp16_io`,
            `keep_fp32`, `exporter` ('torchscript', 'dynamo') and `simplify`; 2D models also `form` ('full':
            results, 'decode': boxes and scores before NMS, 'raw': head outputs; two-stage also 'proposals',
            'regions'), `height`, `width` (pixels), `batch` and `dynamic`; frames and sweeps may have
            `contract`. See `spec.options` and a family's `options.py`.

    Returns:
        The files, the options and the model.

    Raises:
        UsageError: before the weights load, such as an unreadable config or unknown option. Also if your
            backbone or neck fixes sizes under 'torchscript' with `dynamic`, or a `keep_fp32` pattern
            matches no node.
        ExportError: the exporter failed, or the file contradicts the options.
    """
    request = ExportRequest(config, checkpoint, output_file, picture, mean, std, cfg_options, device, options)
    detector = read_detector(request)
    chosen = chosen_options(detector, request)
    inputs = kind_of(detector.family).samples(detector, traced=picture or DEFAULT_PICTURE)
    return export_read(detector, chosen, request, inputs)


def prove_read(detector: Detector, request: ProofRequest) -> Verdict:
    """Prove the files of a request with a detector of `read_detector`; see `prove`."""
    from mmdeploy_ext.families.evaluate import evaluation
    from mmdeploy_ext.proving.metrics import near_zero_notes
    from mmdeploy_ext.proving.recorded.proof import judge_recording, open_recording
    from mmdeploy_ext.spec.verdict import metric_finding

    recording = open_recording(request.recorded, detector) if request.recorded else None
    family, kind, engine = detector.family, kind_of(detector.family), request.build_settings()
    kind.check_engine(engine)
    inputs = kind.samples(detector, [*map(str, request.samples)], request.frames, request.option)
    path, metrics = str(request.onnx_file), request.metrics
    files, metadata = kind.read(path)
    kind.build(detector, request.mean, request.std)
    kind.check_provable(family)
    if metadata is not None:
        metadata.require(path, family.name, getattr(family, 'forms', ()))
    if metrics:
        cfg = detector.unbuilt_cfg
        evaluation.check_evaluation(cfg, evaluation.build_dataset(cfg), metrics)
    kind.load_weights(detector)
    chosen, rows = inputs.of(detector), []
    with after_weights(), contextlib.suppress(LoadError):  # the proof reports a file that cannot be loaded
        rows = kind.metrics(detector, files, metrics, engine) if metrics else []
    detector.recording = recording
    verdict = prove_on(detector, files, chosen, engine, request.claims)
    verdict.findings.extend(map(metric_finding, rows))
    verdict.notes += near_zero_notes(rows)
    if recording is not None:
        sweeps = [path for path in map(Path, request.samples) if path.is_file()]
        judge_recording(verdict, detector, chosen.files or sweeps)
    return verdict


def ask_read(detector: Detector, request: ProofRequest, out: str | Path) -> int:
    """Write the inputs of a proof for `record.py`; return their number. See `ask`."""
    from mmdeploy_ext.base.files import replaced_folder
    from mmdeploy_ext.proving.recorded.calls import Ask

    kind = kind_of(detector.family)
    inputs = kind.samples(detector, [*map(str, request.samples)], request.frames, request.option)
    files, _ = kind.read(str(request.onnx_file))
    kind.build(detector, request.mean, request.std)
    kind.load_weights(detector)
    chosen = inputs.of(detector)
    with after_weights(), replaced_folder(out, ()) as folder:
        detector.recording = Ask(folder)
        kind.ask(detector, files, chosen)
        detector.recording.finish(detector.checkpoint_sha256)
    return len(detector.recording.calls)


def prove_on(
    detector: Detector,
    files: Sequence[str],
    chosen: ChosenSamples,
    engine: Mapping[str, Any],
    claims: Claims,
) -> Verdict:
    """Prove a loaded model's files on samples; errors exit with 1."""
    if chosen.files:
        claims = dataclasses.replace(claims, settings=dict(claims.settings, picture_files=chosen.files))
    with after_weights():
        verdict = kind_of(detector.family).prove(detector, files, chosen.samples, engine, claims)
    if chosen.origin:
        kind = 'pictures' if chosen.files else 'frames'
        verdict.notes.append(f'{kind}: {chosen.origin}')
    return verdict


def prove(
    config: str | Path,
    checkpoint: str | Path,
    onnx_file: str | Path,
    *,
    samples: Sequence[str | Path] = (),
    frames: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    device: str = 'cpu',
    engine: str = 'onnxruntime',
    providers: Sequence[str] | None = None,
    threads: int = 0,
    inference_precision: str | None = None,
    metrics: Sequence[str] = (),
    edited: bool = False,
    asked: Mapping[str, Any] | None = None,
    library: str | None = None,
    strict: bool = False,
    recorded: str | Path = '',
) -> Verdict:
    """Prove that a file matches its config and checkpoint, as `mm2onnx verify`.

    Args:
        config: mmcv 1.x config.
        checkpoint: the weights.
        onnx_file: file, or folder of one model's graphs.
        samples: pictures; LiDAR sweeps (`.bin`, `.npy`), for backbones also voxels (`.npz`); or one info file
            of mmdet3d's `create_data.py` (`.pkl`, for sweeps also `.json`). (): the config's data set, for
            images also the package's; else generated samples.
        frames: maximum of frames, or sweeps per sample; None: 12. Images: the first 8.
        mean: of the export; None: the config's.
        std: of the export; None: the config's.
        cfg_options: of the export.
        device: of PyTorch: 'cpu', 'cuda' or 'cuda:N'.
        engine: 'onnxruntime', 'openvino' or, for images, 'tensorrt'.
        providers: ONNX Runtime's execution providers in order; None: the CPU's.
        threads: of the engine; 0: it decides. TensorRT allows only 0.
        inference_precision: OpenVINO's 'fp32', 'bf16' or 'fp16'; None: 'fp32'. Frames and sweeps: 'fp32'.
        metrics: data set metrics, such as 'bbox', on both sides.
        edited: the file was edited on purpose; skip comparing its graph.
        asked: option of `export` -> value required of the file.
        library: 'installed': prove against the installed mmdet, mmdet3d, mmseg or mmcv if the repository's
            own copy did not run; None: such a file is not proven.
        strict: treat any `verdict.untraced` entry as a failure.
        recorded: folder written by `record.py` in the training environment: its results decide.

    Returns:
        The verdict: `passed`, whether graph, tensors and results agree within the bars of docs/proof.md;
        `proven`, the same for float32 files and engines only; `title`; `to_json()`; `pairs`, a few samples
        with both sides' results to draw.

    Raises:
        UsageError: before the weights load, such as a missing file.
        Mm2OnnxError: a sample cannot be read or run, or the file is one of several graphs; exits 1.
    """
    request = ProofRequest(**locals())
    for name, value in dict(samples=samples, metrics=metrics).items():
        if isinstance(value, str | Path):  # each letter would be an entry
            raise UsageError(f'{name}={str(value)!r}: expected a list, [{str(value)!r}]')
    detector = read_detector(request, str(onnx_file))
    reasons = kind_of(detector.family).refused('prove', detector.family)
    defaults = {field.name: field.default for field in dataclasses.fields(ProofRequest)}
    given = {name: value for name in reasons if (value := getattr(request, name)) and value != defaults[name]}
    if given:
        listed = ', '.join(f'{name}={value!r}' for name, value in given.items())
        raise UsageError(f'{listed}: {reasons[next(iter(given))]}')
    return prove_read(detector, request)
