"""Export and proof as functions: `mmdeploy_ext.export` and `prove`.

A model reads 'images', 'frames' (all cameras of a car at one moment), 'sweeps' (one LiDAR revolution)
or 'fused' (both). Errors are `Mm2OnnxError`s, before the weights load `UsageError`s.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.cli import option, takes
from mmdeploy_ext.base.errors import (
    ConfigError,
    ExportError,
    LoadError,
    Mm2OnnxError,
    UsageError,
    after_weights,
)
from mmdeploy_ext.base.source_code import files_of_users_classes
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.engines.registry import engine_settings, file_engines
from mmdeploy_ext.families.base import DETECTOR, refuse
from mmdeploy_ext.families.detector import TRACED, Detector, fit, named_program, read_config
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.spec.options import MADE_FOR, PRECISIONS, TARGETS, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mmdeploy_ext.bench.precision.plan import Planner
    from mmdeploy_ext.exporting.precision_plan import KeptResults, Plan
    from mmdeploy_ext.proving.inputs import ChosenSamples, Samples
    from mmdeploy_ext.proving.subject import Claims
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.verdict import Verdict


@dataclasses.dataclass
class ModelRequest:
    """The model of a command, and how to load it."""

    config: str | Path = option('config', 'config file')
    checkpoint: str | Path = option('checkpoint', 'checkpoint file')
    cfg_options: Mapping[str, Any] | None = option(
        '--cfg-options KEY=VALUE...',
        'override the config: key=value pairs, nested keys with dots, e.g. model.test_cfg.score_thr=0.3',
        None,
    )
    device: str = option(
        '--device DEVICE', "where PyTorch runs: 'cpu', 'cuda', 'cuda:1' (default: %(default)s)", 'cpu'
    )
    mean: Sequence[float] | None = option(
        '--mean MEAN', 'per-channel mean (default: from the config)', None, type=float, nargs=3
    )
    std: Sequence[float] | None = option(
        '--std STD', 'per-channel standard deviation (default: from the config)', None, type=float, nargs=3
    )
    ignored_keys: Sequence[str] = option(
        '--ignore-keys PREFIX...',
        'ignore checkpoint keys with these prefixes, e.g. roi_head.mask_head. to load a Mask R-CNN '
        'checkpoint into a Faster R-CNN; the verdict lists them',
        (),
    )


@dataclasses.dataclass
class ExportRequest(ModelRequest):
    """An export; `options` of the graph that are not at their default."""

    output_file: str | Path = option(
        '--out --output-file FILE',
        "file to write (default: tmp.onnx); a folder for models of several graphs (default: the config's "
        'name)',
        '',
        kw_only=False,
    )
    picture: str | Path = option('--input-img INPUT_IMG', 'image to trace (default: demo/toy.jpg)', '')
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)


@dataclasses.dataclass
class ProofRequest(ModelRequest):
    """A proof of files.

    Attributes:
        option: option of `samples`, for messages.
        settings: `Claims.settings`.
    """

    onnx_file: str | Path = option('onnx_file m.onnx', 'file, or folder of graphs, that mm2onnx exported')
    samples: Sequence[str | Path] = option(
        '--images --input PATH...',
        'samples to compare on: images or folders (default: demo/toy.jpg and, if present, 3 of '
        'data.test); LiDAR sweeps (.bin, .npy; for sparse backbones also voxels, .npz), folders of them '
        'or info files (.pkl); for models with a memory, an info file (.pkl)',
        (),
    )
    metrics: Sequence[str] = option(
        '--eval METRIC...', "also compare the data set's metrics of both engines, e.g. bbox", ()
    )
    recorded: str | Path = option(
        '--recorded FOLDER',
        'compare with the results of record.py in the environment of the training (mm2onnx record)',
        '',
    )
    edited: bool = option(
        '--edited', 'the file was edited on purpose: compare only its results, not the graph', False
    )
    asked: Mapping[str, Any] | None = option(
        '', 'option of the export -> value that the file must have', None, kw_only=True
    )
    strict: bool = option('--strict', "treat any 'untraced' line of the verdict as a failure", False)
    frames: int | None = option(
        '--frames N',
        "number of frames or sweeps, from the config's data.test if present, else generated (default: 12)",
        None,
        type=int,
    )
    engine: str = option(
        '--engine',
        'engine that runs the ONNX file (default: onnxruntime); tensorrt builds an engine for this '
        "machine's GPU beside the file",
        'onnxruntime',
        choices=tuple(file_engines()),
    )
    providers: Sequence[str] | None = option(
        '--providers EP...',
        'execution providers of ONNX Runtime in order, e.g. CUDAExecutionProvider; a missing one is an error',
        None,
    )
    threads: int = option('--threads THREADS', 'threads within an operator (default: the engine decides)', 0)
    inference_precision: str | None = option(
        '--inference-precision',
        'precision in which OpenVINO computes (default: fp32)',
        None,
        choices=PRECISIONS,
    )
    library: str | None = option(
        '--library',
        "if the repository's own copy of the library does not run, prove against the installed one",
        None,
        choices=('installed',),
    )
    option: str = dataclasses.field(default='--images', kw_only=True)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    def check(self) -> None:
        """Check what needs no config; raises UsageError."""
        check_normalisation(self.mean, self.std)
        engine_of(self)

    @property
    def claims(self) -> Claims:
        from mmdeploy_ext.proving.subject import Claims  # needs numpy; the help of a command does not

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
        from mmdeploy_ext.proving.subject import Claims

        chosen = self.samples
        if chosen is None:
            kind = kind_of(self.detector.family)
            chosen = kind.samples(self.detector, traced=self.picture).of(self.detector)
        return prove_on(self.detector, self.files, chosen, engine or {}, Claims(written=True, **claims))


def engine_of(chosen: Any) -> dict[str, Any]:
    """Return arguments of `build_backend` but the path, of a request or parsed arguments."""
    names = 'threads', 'providers', 'inference_precision'
    return engine_settings(chosen.engine, **{name: getattr(chosen, name) for name in names})


def check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise UsageError unless both are empty or three finite numbers, with `std` above 0."""
    for name, values in dict(mean=mean, std=std).items():
        numbers = [] if values is None else [*map(float, values)]
        kind = 'finite' if name == 'mean' else 'positive'
        fits = all(math.isfinite(number) and (number > 0 or name == 'mean') for number in numbers)
        if numbers and not (fits and len(numbers) == 3):
            raise UsageError(f'--{name} {" ".join(map(str, numbers))}: expected three {kind} numbers')


def read_detector(request: ExportRequest | ProofRequest) -> Detector:
    """Read the config of a request."""
    check_normalisation(request.mean, request.std)
    whole, file = getattr(request, 'options', {}).get('whole', ''), getattr(request, 'onnx_file', '')
    detector = read_config(
        request.config, request.checkpoint, request.cfg_options, request.device, file=str(file), whole=whole
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
    with after_weights(), traced_instead(detector):
        if options.keep_results:
            plan = plan_of_export(detector, options, output, inputs, chosen)
            options = options.replace(keep_fp32=tuple(plan.patterns))
        files, seconds = kind.export(detector, options, output, inputs)
    return Exported(files, options, seconds, detector, request.picture, chosen, plan)


def built(detector: Detector, options: Options, request: ExportRequest) -> tuple[Detector, Options]:
    """Build a read detector and check its options; a user's model that its family refuses is traced instead.

    The new detector has the refusal in `refused`. Raises what `Kind.build` and `Kind.check` raise.
    """
    kind, is_traced = kind_of(detector.family), detector.family.name == TRACED
    try:
        kind.build(detector, request.mean, request.std)
        if kind.traces and not is_traced and options.form == 'full':
            kind.check(detector, options)
        return detector, options
    except ConfigError as error:
        refusal = error
    if is_traced and not request.options.get('whole'):
        try:
            refuse(detector.cfg, DETECTOR)
        except ConfigError as unclaimed:
            raise ConfigError(untraceable(unclaimed, refusal)) from refusal
    if is_traced or not kind.traces or options.form != 'full':
        raise refusal
    try:
        traced = read_detector(dataclasses.replace(request, options={'whole': TRACED}))
        chosen = chosen_options(traced, request)
        kind_of(traced.family).build(traced, request.mean, request.std)
        is_users = bool(files_of_users_classes(traced.model))  # else a setting is wrong
        if is_users:
            kind_of(traced.family).check(traced, chosen)
    except Mm2OnnxError as error:
        raise ConfigError(untraceable(refusal, error)) from error
    if not is_users:
        raise refusal
    traced.refused = str(refusal)
    return traced, chosen


def untraceable(refusal: str | ConfigError, error: Mm2OnnxError) -> str:
    """Return the refusal of a model by its family, with the reason why its test path is not traced."""
    if str(error) == str(refusal):
        return str(refusal)
    reason = re.sub(r'^[^ ]+\.py: ', '', str(error))
    return f'{refusal}; its test path cannot be traced: {reason}'


@contextlib.contextmanager
def traced_instead(detector: Detector) -> Iterator[None]:
    """Begin an error of a trace with the refusal of the detector's own family."""
    try:
        yield
    except (ConfigError, ExportError) as error:
        if not detector.refused:
            raise
        raise type(error)(untraceable(detector.refused, error)) from error


def plan_of_export(
    detector: Detector, options: Options, output: str, inputs: Samples, chosen: ChosenSamples
) -> Plan:
    """Export in float32 and plan the requested precision."""
    from mmdeploy_ext.bench.precision.plan import planner_of

    single = options.replace(precision='fp32', fp16_io=False, keep_fp32=(), keep_results=0.0)
    with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
        files, _ = kind_of(detector.family).export(
            detector, single, str(Path(folder, Path(output).name)), inputs
        )
        planner, before = planner_of(detector, files, chosen, options.keep_fp32)
        return planner.plan([options.precision], options.keep_results, before)


def plan_read(
    detector: Detector, request: ProofRequest, metric: str, keep: Sequence[str], **quantiser: Any
) -> tuple[Planner, KeptResults]:
    """Load a request's model and return its precision planner; see `bench.precision.plan.planner_of`."""
    from mmdeploy_ext.bench.precision.plan import planner_of

    kind = kind_of(detector.family)
    inputs = kind.samples(detector, [*map(str, request.samples)], request.frames, request.option)
    files, _ = kind.read(str(request.onnx_file))
    kind.build(detector, request.mean, request.std)
    kind.check_provable(detector.family)
    kind.load_weights(detector)
    chosen = inputs.of(detector)
    return planner_of(detector, files, chosen, keep, metric, **quantiser)


@takes(ExportRequest, 'options')
def export(request: ExportRequest) -> Exported:
    """Export a detector to ONNX, as `mm2onnx export`. Call `prove` to compare.

    `options` are of the graph. All models have `opset`, `precision` ('fp32', 'fp16'), `fp16_io`, `keep_fp32`,
    `exporter` ('torchscript', 'dynamo') and `simplify`; 2D models also `form` ('full': results, 'decode':
    boxes and scores before NMS, 'raw': head outputs; two-stage also 'proposals', 'regions'), `height`,
    `width` (pixels), `batch` and `dynamic`; frames and sweeps may have `contract`. See `spec.options` and a
    family's `options.py`. `mean` and `std` are in the network's order (R G B with `to_rgb=True`), 0..255,
    for 2D models only.

    Returns the files, the options and the model. UsageError: before the weights load, such as an unreadable
    config or unknown option. Also if your backbone or neck fixes sizes under 'torchscript' with `dynamic`, or
    a `keep_fp32` pattern matches no node. ExportError: the exporter failed, or the file contradicts the
    options.
    """
    detector = read_detector(request)
    chosen = chosen_options(detector, request)
    inputs = kind_of(detector.family).samples(detector, traced=request.picture or DEFAULT_PICTURE)
    return export_read(detector, chosen, request, inputs)


def prove_read(detector: Detector, request: ProofRequest) -> Verdict:
    """Prove the files of a request with a detector of `read_detector`; see `prove`."""
    from mmdeploy_ext.families.evaluate import evaluation
    from mmdeploy_ext.proving.metrics import near_zero_notes
    from mmdeploy_ext.proving.recorded.calls import Recording, judge_recording
    from mmdeploy_ext.spec.verdict import metric_finding

    family, kind, engine = detector.family, kind_of(detector.family), engine_of(request)
    recording = Recording(request.recorded, family.memory) if request.recorded else None
    for name, reason in kind.refused('verify', family).items():
        value, field = getattr(request, name), request.__dataclass_fields__[name]
        is_list = hasattr(value, '__len__') and not isinstance(value, str)
        if len(value) if is_list else value != field.default:
            raise UsageError(f'{field.metadata["names"].split()[0]}: {reason}')
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
        rows = kind.subject().metrics(detector, files, metrics, engine) if metrics else []
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
        kind.subject().ask(detector, files, chosen)
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
        verdict = kind_of(detector.family).subject().prove(detector, files, chosen.samples, engine, claims)
    if chosen.origin:
        kind = 'pictures' if chosen.files else 'frames'
        verdict.notes.append(f'{kind}: {chosen.origin}')
    return verdict


@takes(ProofRequest)
def prove(request: ProofRequest) -> Verdict:
    """Prove that a file matches its config and checkpoint, as `mm2onnx verify`.

    Returns the verdict: `passed`, whether graph, tensors and results agree within the bars of docs/proof.md;
    `proven`, the same for float32 files and engines only; `title`; `to_json()`; `pairs`, a few samples with
    both sides' results to draw. UsageError: before the weights load, such as a missing file. Mm2OnnxError: a
    sample cannot be read or run, or the file is one of several graphs; exits 1.
    """
    return prove_read(read_detector(request), request)
