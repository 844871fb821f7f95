"""Export and proof as functions: `mmdeploy_ext.export` and `prove`.

A model's samples are 'images', 'frames' (all cameras of a car at one moment), 'sweeps' (one LiDAR revolution)
or 'fused' (both). Errors are `Mm2OnnxError`s; refusals before the weights load are `UsageError`s.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.detector import Detector, build, load_weights, prepare_fixed, read_config
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.engines.registry import check_engine_kind, engine_settings
from mmdeploy_ext.families.base import BACKBONE, DETECTOR, Family
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.proving.inputs.samples import ChosenSamples, Samples, read_picture
from mmdeploy_ext.tasks import task_module
from mmdeploy_ext.util.errors import LoadError, UsageError, after_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.verdict.results import MetricRow
    from mmdeploy_ext.verdict.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class Exported:
    """The result of `export`.

    Attributes:
        files: graphs in the order of execution.
        options: options of the export, all decided.
        seconds: exporting and writing.
        detector: the PyTorch model with weights.
        picture: traced picture; '': the package's.
    """

    files: list[str]
    options: Options
    seconds: float
    detector: Detector
    picture: str | Path = ''

    def prove(self, engine: Mapping[str, Any] | None = None, **claims: Any) -> Verdict:
        """Prove the written files against the model in memory.

        `engine` is from `engine_settings`, `claims` are of `proving.ladder.prove`. Faults of files are in the
        verdict; see `prove`.
        """
        inputs = Samples(self.detector, (), traced=self.picture).of(self.detector)
        return prove_on(self.detector, self.files, inputs, engine or {}, written=True, **claims)


def check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise UsageError unless both are empty or three finite numbers, with `std` above 0."""
    for name, values in dict(mean=mean, std=std).items():
        numbers = [] if values is None else [*map(float, values)]
        kind = 'finite' if name == 'mean' else 'positive'
        fits = all(math.isfinite(number) and (number > 0 or name == 'mean') for number in numbers)
        if numbers and not (fits and len(numbers) == 3):
            raise UsageError(f'--{name} {" ".join(map(str, numbers))}: expected three {kind} numbers')


def check_provable(family: Family) -> None:
    """Raise ConfigError if a family lacks its task, or for pictures its runtime."""
    from mmdeploy_ext.families.images import ImageFamily
    from mmdeploy_ext.runtime.detect import runtime_of

    if family.product == DETECTOR:
        task_module(family.task)
    if isinstance(family, ImageFamily):
        runtime_of(family.name)


def export_detector(
    detector: Detector, options: Options, output: str, image_bgr: np.ndarray | None
) -> tuple[list[str], float]:
    """Export a loaded model; return the paths of its graphs and the seconds.

    `image_bgr` is the traced picture, (h, w, 3) uint8; None for frames and sweeps.
    """
    from mmdeploy_ext.detector_files import export_files
    from mmdeploy_ext.families.images import picture_of
    from mmdeploy_ext.lint.dynamic_sizes import check_dynamic_parts

    images = []
    if image_bgr is not None:
        images = [prepare_fixed(detector.rule, image_bgr, options.height, options.width)]
        if options.dynamic and options.exporter == 'torchscript':
            picture = picture_of(detector.family, detector.model, options)
            check_dynamic_parts(detector.model, picture.multiple, picture.smallest)
    return export_files(detector, options, output, images)


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
    """Export a detector to ONNX, as `mm2onnx export`; nothing is compared, see `prove`.

    Args:
        config: mmcv 1.x config; its `custom_imports` are imported.
        checkpoint: the weights.
        output_file: `.onnx` file, or folder for several graphs, replaced as a whole. '': `tmp.onnx`, a folder
            with the config's name, or `<config>_fork.onnx`, in the current folder.
        picture: traced picture; '': the package's.
        mean: per channel in the network's order (R G B with `to_rgb=True`), 0..255; None: the config's.
            Pictures alone.
        std: likewise.
        cfg_options: dotted key -> value that replaces the config's.
        device: 'cpu', 'cuda' or 'cuda:N'.
        options: options of the graph. All models have `opset`, `precision` ('fp32', 'fp16'), `fp16_io`,
            `keep_fp32`, `exporter` ('torchscript', 'dynamo') and `simplify`; pictures also `form` ('full':
            results, 'decode': boxes and scores before NMS, 'raw': head outputs; two-stage also 'proposals',
            'regions'), `height`, `width` (pixels), `batch` and `dynamic`; frames and sweeps may have
            `contract`. See `contract.options` and a family's `options.py`.

    Returns:
        The files, the options and the model.

    Raises:
        UsageError: refused before the weights load, such as an unreadable config or unknown option. Also a
            backbone or neck of the user's that fixes sizes under 'torchscript' with `dynamic`, or a
            `keep_fp32` pattern that fits no node.
        ExportError: the exporter failed, or the file differs from the options.
    """
    from mmdeploy_ext.detector_files import default_output, load_for

    check_normalisation(mean, std)
    detector = read_config(config, checkpoint, cfg_options, device)
    family = detector.family
    export_options = family.choose(**{'opset': 0, **options})
    export_options.check(names=options)
    output = str(output_file) or default_output(family, Path(config).stem, export_options)
    build(detector, mean, std)
    image_bgr = None
    if family.samples == 'images':
        image_bgr = read_picture(picture or DEFAULT_PICTURE, detector.rule)
    export_options = load_for(detector, export_options, output)
    with after_weights():
        files, seconds = export_detector(detector, export_options, output, image_bgr)
    return Exported(files, export_options, seconds, detector, picture)


def prove_files(
    detector: Detector,
    onnx_file: str,
    inputs: Samples,
    engine: dict[str, Any],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    metrics: Sequence[str] = (),
    **claims: Any,
) -> Verdict:
    """Load a model from `read_config`, and prove files that were exported earlier; see `prove`."""
    from mmdeploy_ext.evaluate import evaluation
    from mmdeploy_ext.verdict.verdict import metric_finding

    family = detector.family
    files, metadata = _read(family, onnx_file)
    build(detector, mean, std)
    check_provable(family)
    if metadata is not None:
        metadata.require(onnx_file, family.name, getattr(family, 'forms', ()))
    if metrics:
        cfg = detector.unbuilt_cfg
        evaluation.check_evaluation(cfg, evaluation.build_dataset(cfg), metrics)
    load_weights(detector)
    chosen, rows = inputs.of(detector), []
    with after_weights(), contextlib.suppress(LoadError):  # the proof reports a file that cannot be loaded
        rows = _metrics(detector, files, metadata, metrics, engine) if metrics else []
    verdict = prove_on(detector, files, chosen, engine, **claims)
    verdict.findings.extend(map(metric_finding, rows))
    return verdict


def prove_on(
    detector: Detector, files: Sequence[str], chosen: ChosenSamples, engine: Mapping[str, Any], **claims: Any
) -> Verdict:
    """Prove a loaded model's files on samples; errors have exit status 1."""
    from mmdeploy_ext.proving import ladder

    if chosen.files:
        claims['picture_files'] = chosen.files
    with after_weights():
        verdict = ladder.prove(detector, files, chosen.samples, engine, **claims)
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
) -> Verdict:
    """Prove that a file is the model of a config and checkpoint, as `mm2onnx verify`.

    Args:
        config: mmcv 1.x config.
        checkpoint: the weights.
        onnx_file: file, or folder of one model's graphs.
        samples: pictures; LiDAR sweeps (`.bin`, `.npy`), for backbones also voxels (`.npz`); or one info file
            of mmdet3d's `create_data.py` (`.pkl`, for sweeps also `.json`). (): the config's data set, for
            pictures also the package's; else generated samples.
        frames: most frames, or sweeps of each of `samples`; None: 12. Pictures use the first 8.
        mean: of the export; None: the config's.
        std: of the export; None: the config's.
        cfg_options: of the export.
        device: of PyTorch: 'cpu', 'cuda' or 'cuda:N'.
        engine: 'onnxruntime', 'openvino' or, for pictures, 'tensorrt'.
        providers: ONNX Runtime's execution providers in order; None: the CPU's.
        threads: of the engine; 0: it decides. TensorRT refuses others.
        inference_precision: OpenVINO's 'fp32', 'bf16' or 'fp16'; None: 'fp32'. Frames and sweeps take 'fp32'.
        metrics: data set metrics, such as 'bbox', for both engines.
        edited: the file was edited on purpose: its graph is not compared.
        asked: option of `export` -> value that the file must have.
        library: 'installed': claim against the installed mmdet, mmdet3d, mmseg or mmcv where the repository's
            own copy did not run; None: such a file is not proven.
        strict: fail for user code that a graph cannot show (`verdict.untraced`).

    Returns:
        The verdict: `passed`, whether graph, tensors and results agree within the bars of docs/proof.md;
        `proven`, the same for float32 files and engines alone; `title`; `to_json()`; `pairs`, a few samples
        with both sides' results to draw.

    Raises:
        UsageError: refused before the weights load, such as a missing file.
        Mm2OnnxError: a sample cannot be read or run, or the file is one of several graphs; exit status 1.
    """
    for name, value in dict(samples=samples, metrics=metrics).items():
        if isinstance(value, str | Path):  # its letters would be taken for the entries
            raise UsageError(f'{name}={str(value)!r}: expected a list, [{str(value)!r}]')
    check_normalisation(mean, std)
    detector = read_config(config, checkpoint, cfg_options, device, file=str(onnx_file))
    family = detector.family
    if family.product == BACKBONE:
        of_detectors = dict(
            metrics=list(metrics),
            engine='' if engine == 'onnxruntime' else engine,
            providers=providers,
            inference_precision=inference_precision,
            device='' if device == 'cpu' else device,
        )
        if refused := [f'{name}={value!r}' for name, value in of_detectors.items() if value]:
            raise UsageError(
                f'{", ".join(refused)}: sparse backbones do not have it: they run in ONNX Runtime on the '
                f'CPU, and have no detections that a data set could evaluate; leave it out'
            )
    settings = engine_settings(
        engine, threads=threads, providers=providers, inference_precision=inference_precision
    )
    if family.samples != 'images':
        check_engine_kind(settings['engine'], inference_precision)
    inputs = Samples(detector, [str(path) for path in samples], frames)
    return prove_files(
        detector,
        str(onnx_file),
        inputs,
        settings,
        mean=mean,
        std=std,
        metrics=metrics,
        edited=edited,
        asked=dict(asked or {}),
        library=library,
        strict=strict,
    )


def _read(family: Family, path: str) -> tuple[list[str], Metadata | None]:
    from mmdeploy_ext.detector_files import read_files
    from mmdeploy_ext.graph.io.files import load, read
    from mmdeploy_ext.proving.levels.sparse_file import file_options

    if family.product == BACKBONE:
        file_options(read(path), path)
        return [path], None
    files = read_files(path)
    for file in files.paths:
        load(file)
    return files.paths, files.metadata


def _metrics(
    detector: Detector,
    paths: Sequence[str],
    metadata: Metadata,
    metrics: Sequence[str],
    engine: dict[str, Any],
) -> list[MetricRow]:
    from mmdeploy_ext.contract.metadata import least_precision, read_metadata
    from mmdeploy_ext.evaluate.detector import BackendDetector, FrameDetector, PublishedDetector
    from mmdeploy_ext.proving.levels.metrics import compare_metrics

    family = detector.family
    if family.samples != 'images':
        metadata = [read_metadata(path) for path in paths]
        contract = contract_of(family, metadata[-1].options)
        networks = (family.reference(detector.model), contract.runner(paths, engine))
        detectors = (FrameDetector(network, family) for network in networks)
        precision = least_precision(metadata)
        return compare_metrics(detector.cfg, *detectors, metrics, precision)
    with build_backend(path=paths[0], **engine) as backend:
        detectors = PublishedDetector(detector.model), BackendDetector(backend, family, metadata)
        precision = backend.computes_in or metadata.precision
        return compare_metrics(detector.cfg, *detectors, metrics, precision)
