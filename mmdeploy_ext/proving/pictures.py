"""The proof of an image file: graph, tensors and results, on the traced input and others."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.base.errors import (
    ConfigError,
    FrozenWarning,
    LoadError,
    ModelFileError,
    ShapeError,
    one_line,
)
from mmdeploy_ext.base.files import sha256_onnx
from mmdeploy_ext.engines import build_backend, title_of
from mmdeploy_ext.engines.base import attempt
from mmdeploy_ext.engines.plugins import open_with_plugins
from mmdeploy_ext.engines.registry import CPU
from mmdeploy_ext.exporting.export import save
from mmdeploy_ext.exporting.precision_plan import before_plan
from mmdeploy_ext.exporting.substitution import (
    border_names,
    configs_in,
    observed,
    substituted,
)
from mmdeploy_ext.families.base import exported_options
from mmdeploy_ext.families.detector import TRACED, check_picture_options, rule_of
from mmdeploy_ext.families.detector_files import make_metadata
from mmdeploy_ext.proving import file_checks, loop
from mmdeploy_ext.proving.inputs import (
    BATCHES,
    plain_inputs,
    proof_inputs,
    smaller_size,
    with_plain_picture,
    zoomed_input,
)
from mmdeploy_ext.proving.metrics import compare_metrics
from mmdeploy_ext.proving.not_shown import Watch, counts_of_images, limits_of
from mmdeploy_ext.proving.preprocessing import compare_pictures
from mmdeploy_ext.proving.proof import (
    check,
    compare_samples,
    conclude,
    contents_of,
    engine_class,
    engine_options,
    judge_results,
    not_loaded,
    open_file,
)
from mmdeploy_ext.proving.provenance import normalisation_notes
from mmdeploy_ext.proving.recorded.calls import around
from mmdeploy_ext.proving.subject import PLAIN, Sample, Started, Step, Subject, Unread
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.runtime.detections import Rows, bounding_box, with_labels
from mmdeploy_ext.runtime.draw import visible
from mmdeploy_ext.runtime.panoptic import OFFSET, Segments
from mmdeploy_ext.spec.comparison import (
    count_rows,
    failed_row,
    order_rows,
    shape_rows,
)
from mmdeploy_ext.spec.matching import total_reasons
from mmdeploy_ext.spec.options import LIMITS
from mmdeploy_ext.spec.results import Case, Pair, bars_of
from mmdeploy_ext.spec.tensors import VALID

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    import onnx

    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.families.reference import ImageReference
    from mmdeploy_ext.proving.inputs import ChosenSamples, ProofInput
    from mmdeploy_ext.proving.proof import ExportedFile, Proof
    from mmdeploy_ext.proving.subject import Claims
    from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.results import GraphResult, MetricRow, PreprocessingResult, TensorRow
    from mmdeploy_ext.spec.verdict import Verdict


# Results of the unpatched model, and images derived from them.


SURE = 0.5
"""Smallest score of an object, relative to the image's best."""
LARGEST_OBJECT = 0.5
"""Largest share of the image of an object to zoom in on."""


class InputReference:
    """Results of the unpatched model for one input, computed on demand.

    Attributes:
        code: the user's code, see `ImageFamily.reference`.
        images: the input's images; omitted optional inputs get defaults.
        feeds: name -> input of a file, or post-processing fact; forms may need fewer.
        seconds: time of the model's test path.
        sums: `output_sums` of that run.
        watch: thresholds and clips of that run.
        borders: path of a method -> its results, one per call.
        engine_seconds: time of the last file's last run.
    """

    def __init__(self, detector: Detector, proof_input: ProofInput) -> None:
        self.detector, self.input, self.seconds = detector, proof_input, 0.0
        self.code = detector.family.reference(detector.model)
        self.engine_seconds: list[float] = []
        self.watch = Watch()
        self.sums: dict[str, np.ndarray] = {}
        left_out = proof_input.left_out
        self.images = tuple(_as_fed(image, self.code, detector, left_out) for image in proof_input.images)
        feeds = detector.family.feeds(self.images, proof_input.rescale)
        self.feeds = {name: array for name, array in feeds.items() if name not in left_out}
        self._computed: dict[Hashable, Any] = {}
        self.borders: dict[str, list[Any]] = {}

    @functools.cached_property
    def results(self) -> list[Any]:
        model = self.detector.model
        with (
            observed(model, self.code.borders()) as self.borders,
            output_sums(model) as self.sums,
            around(self.detector, self.input.name),
            self.watch,
        ):
            start = time.perf_counter()
            results = self.run()
            self.seconds = time.perf_counter() - start
        return results

    def run(self) -> list[Any]:
        results = self.code.results(self.images, self.input.rescale)
        method = f'{type(self.code).__name__}.results of family {self.detector.family.name!r}'
        if len(results) != len(self.images):
            raise ConfigError(
                f'{method} returned results of {len(results)} images, expected {len(self.images)}'
            )
        foreign_types = [type(entry).__name__ for entry in results if not isinstance(entry, Rows)]
        if foreign_types:
            raise ConfigError(
                f'{method} returned {foreign_types[0]}, expected a Scored of mmdeploy_ext.runtime.detections'
            )
        return results

    def compute(self, method: Callable[..., Any], *arguments: Hashable, **options: Hashable) -> Any:
        """Return the result of a `code` method, cached by arguments."""
        key = method, arguments, tuple(options.items())
        if key not in self._computed:
            self._computed[key] = method(self.feeds, *arguments, **options)
        return self._computed[key]

    def feeds_of(self, metadata: Metadata) -> dict[str, np.ndarray]:
        """Return name -> input of a file."""
        self.feeds |= self.compute(self.code.inner_inputs, metadata.form)
        return {name: self.feeds[name] for name in metadata.spec.input_names if name in self.feeds}

    def forget(self) -> None:
        """Free the cached results and `borders`."""
        self._computed.clear()
        self.borders = {}


@contextlib.contextmanager
def output_sums(model: torch.nn.Module) -> Iterator[dict[str, np.ndarray]]:
    """Collect the sums of absolute values of the results of a model's children, one by one."""
    sums: dict[str, np.ndarray] = {}
    counts: collections.Counter[str] = collections.Counter()

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
            for value in tree_leaves(outputs):
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    counts[name] += 1
                    total = float(value.abs().sum(dtype=torch.float64))
                    sums[f'{name} [{counts[name]}]' if counts[name] > 1 else name] = np.array([total])

        return hook

    hooks = [child.register_forward_hook(hook_of(name)) for name, child in model.named_children()]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def options_besides_form(detector: Detector, metadata: Metadata) -> dict[str, Any]:
    options = exported_options(detector.family, metadata.options)
    return {name: value for name, value in options.items() if name != 'form'}


def _as_fed(
    image: PreparedImage, code: ImageReference, detector: Detector, left_out: Sequence[str]
) -> PreparedImage:
    size = code.full_size(image)
    defaults = dict(img_shape=size, ori_shape=size, scale_factor=np.ones(4, np.float32), border=(0, 0))
    values = {name: defaults[name] for name in left_out}
    return dataclasses.replace(image, collected=image.collected or detector.collected, **values)


def references(
    detector: Detector, options: Options, images: Sequence[tuple[str, np.ndarray]]
) -> list[InputReference]:
    inputs = proof_inputs(detector, options, images)
    return [InputReference(detector, proof_input) for proof_input in inputs]


def empty_reference(detector: Detector, options: Options) -> tuple[InputReference | None, str]:
    """Return the reference of a plain image where PyTorch finds nothing, or None and the reason."""
    counts, limit = {}, getattr(detector.family.facts(detector.model), 'max_per_img', None)
    inputs = plain_inputs(detector, options)
    for plain in inputs:
        reference, (title, _) = InputReference(detector, plain), plain.sources[0]
        try:
            counts[title] = sum(map(len, reference.results))
        except Exception as error:  # the user's code may need a candidate, as guided anchors do
            said = one_line(error)[:200]
            return None, f'PyTorch fails on a {title} image ({said}): an empty list was not compared'
        if not counts[title]:
            return reference, ''
        if counts[title] == limit:
            break
    listed = ', '.join(f'{count} in a {title} one' for title, count in counts.items())
    return None, f'PyTorch detects objects in plain images ({listed}): an empty list was not compared'


def reference_with_empty_image(
    detector: Detector, inputs: Sequence[ProofInput], plain: ProofInput
) -> tuple[int, InputReference] | None:
    """Return the index of a batch of three, and its reference with a plain second image, or None."""
    for index, case in enumerate(inputs):
        if len(case.images) != BATCHES[-1] or case.traced:
            continue
        changed = with_plain_picture(detector, case, plain)
        if changed is case:
            continue
        reference = InputReference(detector, changed)
        if not len(reference.results[1]):
            return index, reference
    return None


def zoomed_on_object(detector: Detector, options: Options, traced: InputReference) -> ProofInput | None:
    """Return an input filled by the traced image's largest object, or None."""
    if not any(hasattr(part, 'map_roi_levels') for part in detector.model.modules()):
        return None
    source = traced.input.sources[0]
    height, width = source[1].shape[:2]
    boxes = object_boxes(traced.results[0], traced.input.images[0].img_shape)
    fitting = [box for box in boxes if _area(box) <= LARGEST_OBJECT]
    if not fitting:
        return None
    view = max(fitting, key=_area) * (width, height, width, height)
    return zoomed_input(detector, options, source, view)


def object_boxes(results: Any, size: tuple[int, int]) -> np.ndarray:
    """Return objects' boxes (n, 4) xyxy as shares of the image; `size` is (h, w) in pixels."""
    if isinstance(results, Segments):
        results = results[results.ids >= OFFSET]
    results = results[results.scores >= SURE * results.scores.max(initial=0.0)]
    if hasattr(results, 'masks'):
        size = results.masks.shape[1:]
    boxes = getattr(results, 'bboxes_xyxy', None)
    if boxes is None:
        boxes = np.array([bounding_box(mask) for mask in getattr(results, 'masks', ())]).reshape(-1, 4)
    height, width = size
    return boxes / (width, height, width, height)


def _area(box_xyxy: np.ndarray) -> float:
    return float(np.prod(np.maximum(box_xyxy[2:] - box_xyxy[:2], 0)))


MAX_DRAWN = 8
"""Maximum of images in the report."""
UNPASSED = 'a threshold that nothing passes'
NEVER = 2.0
"""A threshold above all scores."""
TIMED_RUNS = 3
TIMED_S = 3.0


def prove(
    detector: Detector,
    paths: Sequence[str],
    samples: Sequence[tuple[str, np.ndarray]],
    engine: Mapping[str, Any],
    claims: Claims,
) -> Verdict:
    """Prove one file on (title, BGR image); the first is traced."""
    pictures = list(samples)
    proof = check_pictures(detector, paths, pictures, engine, claims)
    (file,), results, verdict = proof.files, proof.results, proof.verdict
    with contextlib.ExitStack() as stack:
        try:
            backend = stack.enter_context(open_backend(proof.engine, file))
        except LoadError as error:
            return not_loaded(proof, error)
        verdict.subject['precision'] = backend.computes_in or file.metadata.precision
        beside = None
        if verdict.bars.is_float32 and not shows_inner(proof.engine):
            with contextlib.suppress(LoadError):  # ONNX Runtime may lack an operator of another engine
                beside = stack.enter_context(open_backend({}, file))

        inputs, notes = picture_inputs(detector, file, proof.options, pictures)
        verdict.notes += notes
        subject = Pictures(detector, backend, beside, inputs)
        subject.bars = verdict.bars  # the metadata of an INT8 file by another tool say float32
        compare_samples(proof, subject)
        first = subject.first
        results.cases += without_result(proof, pictures[0][1], first)
        judge_results(proof)
        if claims.timed and all(case.passed for case in results.cases):
            verdict.timing_ms = timing(first, backend)
    if not results.reasons:
        results.reasons += total_reasons(results.cases, verdict.bars)
    verdict.notes += normalisation_notes(detector)
    if verdict.bars.is_float32:
        verdict.notes += substitution_notes(first.code, results.cases)
    if left_out := first.code.results_left_out(file.options):
        verdict.notes.append(left_out)
        subject.unread.names = []
    limits = limits_of(file.metadata.postprocess.to_json(), file.options)
    results.reasons += subject.watch.other_epsilons(file.model) if claims.edited else []
    subject.pairs = subject.pairs[:MAX_DRAWN]
    return conclude(proof, subject, limits, '--images')


def without_result(proof: Proof, picture: np.ndarray, first: InputReference) -> list[Case]:
    """Compare a file of the same traced code with a threshold that nothing passes, unless an input was empty.

    A trace takes the branches where something is selected; this shows what its graph does where nothing is,
    for the first input: in plain pictures scores of regions tie.
    """
    detector, options = proof.detector, proof.options
    thresholds = [config for config in configs_in(detector.model) if 'score_thr' in config]
    was_empty = any(row.reference == 0 for case in proof.results.cases for row in case.detections)
    if detector.family.name != TRACED or not thresholds or was_empty:
        return []
    if detector.family.reference(detector.model).results_left_out(proof.files[0].options):
        return []
    usual, unpassed = first.results, dataclasses.replace(first.input, name=UNPASSED, traced=False)
    with contextlib.ExitStack() as stack:
        for config in thresholds:
            stack.enter_context(replaced_entry(config, 'score_thr', NEVER))
        reference = InputReference(detector, unpassed)
        pairs = zip(usual, reference.results, strict=True)
        if all(len(one) and np.array_equal(one.scores, other.scores) for one, other in pairs):
            return []  # the code has no such threshold
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='mm2onnx-'))
        size = smaller_size(detector, options)
        model = file_checks.of_images(detector, options, picture, size)()
        path = str(Path(folder, 'empty.onnx'))
        save(model, path, make_metadata(detector, options))
        backend = stack.enter_context(open_backend({}, open_file(path)))
        return [run_case(reference, backend)]


def ask(detector: Detector, paths: Sequence[str], chosen: ChosenSamples) -> None:
    """Run PyTorch on the proof's inputs, for `detector.recording`."""
    (file, options), pictures = read_picture_file(detector, paths[0]), list(chosen.samples)
    compare_preparation(detector, file.metadata, chosen.files, pictures[0][1])
    inputs, _ = picture_inputs(detector, file, options, pictures)
    with open_backend({}, file) as backend:
        loop.ask(Pictures(detector, backend, None, inputs))


def metrics(
    detector: Detector,
    paths: Sequence[str],
    names: Sequence[str],
    engine: Mapping[str, Any],
    half: int | None = None,
) -> list[MetricRow]:
    """Return metrics of the data set, or of a `half` of it, by both engines."""
    from mmdeploy_ext.families.evaluate.detector import BackendDetector, TorchDetector

    with build_backend(path=paths[0], **engine) as backend:
        candidate = BackendDetector(backend, detector.family, backend.metadata)
        reference = TorchDetector(detector.family.reference(detector.model), candidate)
        precision = backend.computes_in or backend.metadata.precision
        return compare_metrics(detector.cfg, reference, candidate, names, precision, half)


def check_pictures(
    detector: Detector,
    paths: Sequence[str],
    pictures: Sequence[tuple[str, np.ndarray]],
    engine: Mapping[str, Any],
    claims: Claims,
) -> Proof:
    file, options = read_picture_file(detector, paths[0])
    picture_files = claims.settings.get('picture_files', ())
    metadata, kind = file.metadata, engine_class(engine)
    shape = 'dynamic' if file.options['dynamic'] else 'fixed'
    if shape == 'fixed' and file.options.get('dynamic_batch'):
        shape = 'dynamic batch, fixed size'
    facts = dict(
        file_sha256=sha256_onnx(file.path),
        form=file.metadata.form,
        inputs=list(file.metadata.spec.input_names),
        shape=shape,
        engine=kind,
        **file.facts,
    )
    rule, contract = rule_of(detector, options), make_metadata(detector, options).spec
    return check(
        detector,
        [file],
        options,
        engine_options([file], kind, engine),
        claims,
        facts,
        level_1=lambda file: (
            *contents_of(detector, claims, file, rule, contract),
            lambda: compare_graph(detector, file.model, options, pictures[0][1], file.edits),
        ),
        prepared=lambda: compare_preparation(detector, metadata, picture_files, pictures[0][1]),
    )


def compare_graph(
    detector: Detector,
    model: onnx.ModelProto,
    options: Options,
    picture: np.ndarray,
    edits: Sequence[str] = (),
) -> GraphResult:
    """Compare a file with a fresh export; a dynamic one is first traced at a smaller size."""
    options, size = before_plan(options, edits), (options.height, options.width)
    for traced in dict.fromkeys([smaller_size(detector, options), size]):
        export = file_checks.of_images(detector, options, picture, traced)
        result = file_checks.compare_with_fresh_export(model, export, edits=edits)
        if result.equal:
            break
    return result


def compare_preparation(
    detector: Detector, metadata: Metadata, picture_files: Sequence[str | Path], picture: np.ndarray
) -> PreprocessingResult:
    """Compare with the user's test pipeline, and keep its collected entries."""

    def feeds(image: PreparedImage, batch: int) -> Mapping[str, np.ndarray]:
        return detector.family.feeds([image] * batch, rescale=True)

    result, by_pipeline = compare_pictures(
        detector.cfg, metadata, picture_files, picture, detector.normalisation, feeds
    )
    if by_pipeline:
        detector.collected = dict(by_pipeline[0].collected)
    return result


def read_picture_file(detector: Detector, path: str) -> tuple[ExportedFile, Options]:
    file, family = open_file(path), detector.family
    metadata = file.metadata
    metadata.require(path, family.name, family.forms)
    options = exported_options(family, metadata.options, path)
    if options.form != metadata.form:
        raise ModelFileError(
            f'{path}: its form is {metadata.form!r}, but its options say {options.form!r}; export it again'
        )
    with file_checks.option_errors(path):
        options.check()
        check_picture_options(options, detector.cfg, family, detector.model)
    return file, options


def open_backend(engine: Mapping[str, Any], file: ExportedFile) -> Backend:
    """Return the inactive engine of a file.

    ONNX Runtime on the CPU in float32 also returns tensors between stages.
    """
    kind, options = engine_class(engine), {key: value for key, value in engine.items() if key != 'engine'}
    if file.metadata.options.get('nms_plugin'):
        return open_with_plugins(kind, file.path, **options)
    if shows_inner(engine) and file.metadata.precision == 'fp32':
        options['inner_tensors'] = border_names(file.model)
    return build_backend(kind, file.path, **options)


def shows_inner(engine: Mapping[str, Any]) -> bool:
    """Whether an engine returns tensors between stages: ONNX Runtime on the CPU."""
    on_cpu = engine.get('providers') in (None, CPU, [CPU], (CPU,))
    return engine_class(engine) == 'OnnxRuntimeBackend' and on_cpu


def picture_inputs(
    detector: Detector,
    file: ExportedFile,
    options: Options,
    pictures: Sequence[tuple[str, np.ndarray]],
) -> tuple[list[ProofInput | InputReference], list[str]]:
    inputs = list(proof_inputs(detector, options, pictures))
    traced = InputReference(detector, inputs[0])
    if traced.code.results_left_out(file.options):
        return [traced, *inputs[1:]], []
    if zoomed := zoomed_on_object(detector, options, traced):
        inputs.append(zoomed)
    empty, note = empty_reference(detector, options)
    if empty is None:
        return [traced, *inputs[1:]], [note]
    run = {0: traced}
    if batch := reference_with_empty_image(detector, inputs, empty.input):
        index, reference = batch
        run[index] = reference
    return [*(run.get(index, one) for index, one in enumerate(inputs)), empty], []


def input_of(entry: ProofInput | InputReference) -> ProofInput:
    return entry.input if isinstance(entry, InputReference) else entry


def smallest(inputs: Sequence[ProofInput | InputReference]) -> int:
    """Return the index of the input with the fewest pixels, which runs again at the end."""
    sizes = [sum(image.tensor.size for image in entry.images) for entry in inputs]
    return sizes.index(min(sizes))


def substitution_notes(code: ImageReference, cases: Sequence[Case]) -> list[str]:
    """Note missing substitution of tensors, and choices among equal results."""
    notes = list(dict.fromkeys(note for case in cases for note in case.notes))
    if any(case.engines for case in cases):
        notes.append('tensors inside the file are from ONNX Runtime, which also ran the file')
    if unjudged := code.unjudged():
        notes.append(unjudged)
    if any(case.substituted for case in cases):
        return notes
    return ["your code did not run on the file's tensors: the end-to-end results decide", *notes]


def run_case(given: InputReference, backend: Backend, beside: Backend | None = None) -> Case:
    """Judge an engine on one input; `beside`: ONNX Runtime with the same file, for inner tensors."""
    subject = Pictures(given.detector, backend, beside, [given])
    sample = subject.sample(given.input, 0, '')
    return loop.judge(subject, sample, subject.want(sample, None), attempt(lambda: subject.got(sample, None)))


class Pictures(Subject):
    """The user's test path, and a file on an engine.

    Attributes:
        runtime: ONNX Runtime with the same file, for an engine without inner tensors.
        computed: inputs that were chosen by PyTorch's results, which it gives once.
        first: the first input.
    """

    def __init__(
        self,
        detector: Detector,
        backend: Backend,
        runtime: Backend | None = None,
        inputs: Sequence[ProofInput | InputReference] = (),
    ) -> None:
        metadata = self.metadata = backend.metadata
        self.detector, self.backend, self.runtime = detector, backend, runtime
        self.spec, self.settings = metadata.spec, metadata.postprocess.to_json()
        self.task, self.module = detector.family.task, detector.model
        self.bars = bars_of(backend.computes_in or metadata.precision)
        self.given = [input_of(entry) for entry in inputs]
        self.again = smallest(self.given) if inputs else 0
        self.is_foreign = runtime is not None
        self.computed = {id(one.input): one for one in inputs if isinstance(one, InputReference)}
        self.compares_values = any(tensor.compare == 'values' for tensor in metadata.spec.outputs)
        self.unread, self.watch, self.pairs = Unread(metadata.spec), Watch(), []
        self.first: InputReference | None = None

    def sample(self, entry: ProofInput, index: int, mode: str) -> Sample:
        given = self.computed.pop(id(entry), None) or InputReference(self.detector, entry)
        shape = 'x'.join(map(str, given.feeds[self.spec.input_names[0]].shape))
        return Sample(entry.name, given, shape, entry.traced, [title for title, _ in entry.sources])

    def want(self, sample: Sample, state: Any) -> Step:
        return Step(results=sample.data.results, probe=sample.data.sums)

    def got(self, sample: Sample, state: Any) -> Step:
        step = self._step(sample.data, self.backend)
        if self.runtime is None:
            return step
        return dataclasses.replace(step, beside=attempt(lambda: self._step(sample.data, self.runtime)))

    def _step(self, given: InputReference, backend: Backend) -> Step:
        feeds, start = given.feeds_of(self.metadata), time.perf_counter()
        outputs = dict(backend.infer(feeds))
        given.engine_seconds = [time.perf_counter() - start]
        inner, labelled = dict(getattr(backend, 'inner', {})), with_labels(outputs)
        rows = [*shape_rows(outputs, self.spec), *self._contract_rows(given, labelled)]
        if given.code.results_left_out(self.metadata.options):
            return Step(outputs, inner=inner, rows=rows)
        results = attempt(lambda: results_of_file(given, self.metadata, labelled))
        counts = {**counts_of_images(given.results, labelled), **given.code.counts({**outputs, **inner})}
        return Step(outputs, results, inner=inner, rows=rows, counts=counts)

    def _contract_rows(self, given: InputReference, outputs: Mapping[str, np.ndarray]) -> list[TensorRow]:
        options, classes = self.metadata.options, self.detector.family.num_classes(self.module)
        rows = order_rows(outputs, classes, self.spec.score_columns())
        if limits := {name: options[name] for name in LIMITS if options.get(name)}:
            rows += count_rows(outputs, given.compute(given.code.candidate_bounds, self.bars.score, **limits))
        if np.any(outputs.get(VALID, True) != 1):
            rows.append(failed_row(VALID, 'is false: the graph holds a fact that is not true of this input'))
        return rows

    def align(self, sample: Sample, want: Step, got: Step) -> Any:
        """Return the tensors of a form without results; rows of a top-k in one order."""
        expected, outputs = {}, {}
        if self.compares_values:
            expected = self.tensors(sample, None, got)
            outputs = {name: got.tensors[name] for name in self.spec.output_names if name in got.tensors}
            outputs = sample.data.code.in_order(outputs)
        return dataclasses.replace(want, tensors=expected), dataclasses.replace(got, tensors=outputs), ()

    def tensors(self, sample: Sample, state: Any, got: Step) -> Mapping[str, np.ndarray]:
        given, code, sides = sample.data, sample.data.code, {**got.tensors, **got.inner}
        options = options_besides_form(self.detector, self.metadata)
        return code.in_order(code.tensors(given.feeds, self.metadata.form, given=sides, **options))

    def results(self, sample: Sample, state: Any, seed: int | None = PLAIN) -> Sequence[Any]:
        return sample.data.run()

    def on(self, sample: Sample, got: Step) -> Started:
        """Put the file's tensors in place of the results of the user's methods."""
        given, code, model = sample.data, sample.data.code, self.module
        tensors = {**with_labels(got.tensors), **got.inner}
        own = code.substitutes(tensors)

        def results(instead: Mapping[str, Any] = own) -> Sequence[Any]:
            with substituted(model, instead):
                return given.run()

        def at_borders(calls: Mapping[str, list[Any]]) -> dict[str, np.ndarray]:
            named = [of(calls[path]) for path, of in code.borders().items() if calls.get(path)]
            found = {name: tensor for one in named for name, tensor in one.items() if name in got.inner}
            return {name: tensor.detach().cpu().numpy() for name, tensor in found.items()}

        def again() -> dict[str, np.ndarray]:
            with observed(model, code.borders()) as calls, contextlib.suppress(Exception):
                given.run()  # code after the borders may refuse float64
            return {**at_borders(calls), **code.inner_tensors(tensors)[0]}

        def between() -> list[tuple[str, str, Any, Any]]:
            pairs = zip(sample.titles, code.inner_results(tensors, given.images), strict=False)
            return [('bbox2d', f'proposals of {title}', *sides) for title, sides in pairs]

        borders, behind = at_borders(given.borders), code.inner_tensors(tensors)
        sides = {**borders, **behind[0]}, {**{name: got.inner[name] for name in borders}, **behind[1]}
        return Started(
            results if own else None,
            sides,
            again,
            between,
            whole=(bool(sides[0]) or self.compares_values) and not code.unjudged(),
        )

    def judged(self, sample: Sample, want: Step, got: Step | Exception, case: Case) -> Case:
        given = sample.data
        self.first = self.first or given
        if not isinstance(got, Exception):
            self.unread.look(got.tensors, functools.partial(self._compared, given))
            self.pairs += self.drawn(given, got) if isinstance(got.results, list | tuple) else []
        self.watch.add(given.watch)
        given.forget()
        return case

    def _compared(self, given: InputReference, outputs: Mapping[str, np.ndarray]) -> Any:
        """Return what is compared of outputs, other than their values."""
        outputs = with_labels(outputs)
        results, rows = results_of_file(given, self.metadata, outputs), self._contract_rows(given, outputs)
        return results, rows, given.code.inner_results(outputs, given.images)

    def drawn(self, given: InputReference, got: Step) -> list[Pair]:
        """Return the pictures with both sides' results."""
        if given.input.left_out:
            return []
        pairs, engine = [], title_of(type(self.backend).__name__)
        columns = given.input.sources, given.input.images, given.results, got.results
        for (title, picture), image, *sides in zip(*columns, strict=True):
            if not given.input.rescale:
                sides = [side.scaled(image.scale_factor) for side in sides]
            size = f'input {image.tensor.shape[1]}x{image.tensor.shape[2]}'
            pairs.append(Pair(f'{title}, {size}', visible(picture), *sides, engine))
        return pairs


def results_of_file(
    reference: InputReference, metadata: Metadata, outputs: Mapping[str, np.ndarray]
) -> Sequence[Any]:
    inputs = reference.feeds, reference.images, reference.input.rescale
    results = reference.code.file_results(metadata, outputs, *inputs)
    if results is None:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', FrozenWarning)  # of which `VALID` has a row
            results = results_of(metadata.family, metadata, outputs, reference.feeds)
    if len(results) != len(reference.results):
        raise ShapeError(f'got results of {len(results)} images, expected {len(reference.results)}')
    return results


def timing(reference: InputReference, backend: Backend) -> dict[str, float]:
    feeds = {name: array for name, array in reference.feeds.items() if name in backend.spec.input_names}
    runs = (
        lambda: reference.code.results(reference.images, rescale=False),
        lambda: backend.infer(feeds),
    )
    measured = [reference.seconds] if reference.seconds else [], list(reference.engine_seconds)
    begin = time.perf_counter() - sum(map(sum, measured))
    while min(map(len, measured)) < TIMED_RUNS:
        if all(measured) and time.perf_counter() - begin > TIMED_S:
            break
        for seconds, run in zip(measured, runs, strict=True):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    medians = [round(statistics.median(seconds) * 1e3, 2) for seconds in measured]
    return {'PyTorch (network and post-processing)': medians[0], f'{backend.engine} (graph)': medians[1]}
