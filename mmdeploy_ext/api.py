"""Export and proof as functions: `mmdeploy_ext.export` and `prove`, and what the command line calls.

A family is the code for one kind of model (`families.base.Family`): it recognises configs of that kind,
builds and loads the model, and makes its graphs. Its `samples` are what such a model takes: 'images', single
pictures; 'frames', all cameras of a car at one moment; 'sweeps', one revolution of a LiDAR; or 'fused', both.

Errors: `ConfigError`, `CheckpointError`, `DataError`, `ModelFileError` and `EngineError` are `UsageError`s;
these, `ExportError` and what is raised later are `Mm2OnnxError`s.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import LoadError, UsageError, after_weights
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.engines.registry import check_engine_kind, engine_settings
from mmdeploy_ext.families.base import BACKBONE, DETECTOR, Family
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.model import (
    Model,
    build,
    load_weights,
    prepare_fixed,
    read_config,
)
from mmdeploy_ext.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.proving.inputs.samples import ChosenSamples, Samples, read_images
from mmdeploy_ext.tasks import task_module

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.proving.verdict import Verdict
    from mmdeploy_ext.tasks.results import MetricRow, Pair


@dataclasses.dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        files: paths of the graphs, in the order in which a sample goes through them.
        options: the options of the export, with values in place of those that were left open.
        seconds: wall-clock time of exporting and writing, without building the model and loading its weights.
        deployment: the model in PyTorch, with its weights.
        picture: path of the picture that was traced; '': one of this package.
    """

    files: list[str]
    options: Options
    seconds: float
    deployment: Model
    picture: str | Path = ''

    def prove(self, engine: Mapping[str, Any] | None = None, **claims: Any) -> tuple[Verdict, list[Pair]]:
        """Prove the files, as they were written, with the model in memory.

        Args:
            engine: settings of the engine as `engine_settings` returns them; None: ONNX Runtime on the CPU.
            claims: further keyword arguments of `proving.ladder.prove`: `asked`, `strict`, see `prove`.

        Returns:
            The verdict, and samples with the results of PyTorch and of the engine, to be drawn in a report.

        Raises:
            Mm2OnnxError: a file or a sample cannot be read, or a sample cannot be run; its exit status is 1.
                What a file does wrong is in the verdict.
        """
        inputs = Samples(self.deployment.family, (), traced=self.picture).of(self.deployment)
        return prove_on(self.deployment, self.files, inputs, engine or {}, written=True, **claims)


def check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Refuse values that are not three finite numbers, above 0 in `std`; None, and no numbers, pass.

    UsageError: it names the value by its option of the command line.
    """
    for name, values in dict(mean=mean, std=std).items():
        numbers = [] if values is None else [*map(float, values)]
        kind = 'finite' if name == 'mean' else 'positive'
        fits = all(math.isfinite(number) and (number > 0 or name == 'mean') for number in numbers)
        if numbers and not (fits and len(numbers) == 3):
            raise UsageError(f'--{name} {" ".join(map(str, numbers))}: expected three {kind} numbers')


def check_provable(family: Family) -> None:
    """Refuse a family that lacks what a proof needs; it is to be called before the weights load.

    A family of detectors needs a task, the module that matches and draws its results (`tasks`), and a
    family of pictures a runtime, the module that finishes in numpy what its graphs compute
    (`runtime.detect`).

    Raises:
        ConfigError: one of them is missing.
    """
    from mmdeploy_ext.families.images import ImageFamily
    from mmdeploy_ext.runtime.detect import runtime_of

    if family.product == DETECTOR:
        task_module(family.task)
    if isinstance(family, ImageFamily):
        runtime_of(family.name)


def export_detector(
    deployment: Model, options: Options, output: str, image_bgr: np.ndarray | None
) -> tuple[list[str], float]:
    """Export a model with its weights; return the paths of its graphs, and the seconds that it took.

    Args:
        deployment: the model.
        options: options of the export, as `check_options` returned them.
        output: the `.onnx` file or the folder to write.
        image_bgr: the picture that is traced, (h, w, 3) uint8; None for models of frames and sweeps.

    Raises:
        UsageError: a backbone or neck of the user's own keeps the sizes it was traced at, and `dynamic` is
            exported by 'torchscript'; or a pattern of `keep_fp32` fits no node.
        ExportError: as `export`.
    """
    from mmdeploy_ext.families.files import export_files
    from mmdeploy_ext.families.images import picture_of
    from mmdeploy_ext.lint.dynamic_sizes import check_dynamic_parts

    images = []
    if image_bgr is not None:
        images = [prepare_fixed(deployment.rule, image_bgr, options.height, options.width)]
        if options.dynamic and options.exporter == 'torchscript':
            picture = picture_of(deployment.family, deployment.model, options)
            check_dynamic_parts(deployment.model, picture.multiple, picture.smallest)
    return export_files(deployment, options, output, images)


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
    """Export a detector to ONNX, as `mm2onnx export` does; nothing is compared, see `prove`.

    A sparse backbone alone is exported by `mm2onnx export --backbone`.

    Args:
        config: path of an mmcv 1.x config. Modules of its `custom_imports` are imported.
        checkpoint: path of the weights.
        output_file: the `.onnx` file to write, or the folder of a model of several graphs; an older one there
            is replaced. '': in the current folder, what `default_output` returns: the file `tmp.onnx`,
            of a model of several graphs a folder with the name of the config, or, if its `contract` is the
            one file 'fork', `<name of the config>_fork.onnx`; `Exported.files` has the paths. It appears
            whole or not at all.
        picture: path of the picture that is traced, for models of pictures; '': one of this package.
        mean: a value per channel in the order of the network's input (R G B if the config has `to_rgb=True`),
            in the unit of the pictures, 0..255; None: that of the config. It and `std` are for models of
            pictures alone.
        std: standard deviation per channel, in the same order and unit; None: that of the config.
        cfg_options: key, with dots for nested ones, -> value that replaces that of the config; with None
            nothing is replaced.
        device: device of PyTorch: 'cpu', 'cuda' or 'cuda:N'.
        options: options of the graph, by their names in the metadata. Those of all models are `opset`,
            `precision` ('fp32' or 'fp16'), `fp16_io`, `keep_fp32`, `exporter` ('torchscript' or 'dynamo') and
            `simplify`. Models of pictures have `form` (how much of the post-processing is in the graph:
            'full', the results; 'decode', boxes and scores before their suppression; 'raw', the outputs of
            the head; of two-stage detectors also 'proposals' and 'regions', one after the other in two
            files), `height`, `width` (pixels), `batch` and `dynamic`, too; models of frames and sweeps may
            have `contract` (which set of files is written). `contract.options` has all types, values and
            defaults, the `options.py` of a family its own ones.

    Returns:
        The files, the options and the model.

    Raises:
        UsageError: the call is refused before the weights are loaded, for example a config that cannot be
            read or an option that the family does not have. The message says what failed, what there was and
            what is expected. A backbone or neck of the user's own that keeps the sizes it was traced at is
            refused for `dynamic` by 'torchscript' after they were loaded, and so is a pattern of `keep_fp32`
            that fits no node.
        ExportError: the exporter failed, or wrote something other than what was asked for.
    """
    from mmdeploy_ext.families.files import default_output, load_for

    check_normalisation(mean, std)
    deployment = read_config(config, checkpoint, cfg_options, device)
    family = deployment.family
    export_options = family.choose(**{'opset': 0, **options})
    export_options.check(names=options)
    output = str(output_file) or default_output(family, Path(config).stem, export_options)
    image_bgr = read_images([picture or DEFAULT_PICTURE], 1)[0][1] if family.samples == 'images' else None
    build(deployment, mean, std)
    export_options = load_for(deployment, export_options, output)
    with after_weights():
        files, seconds = export_detector(deployment, export_options, output, image_bgr)
    return Exported(files, export_options, seconds, deployment, picture)


def prove_files(
    deployment: Model,
    onnx_file: str,
    inputs: Samples,
    engine: dict[str, Any],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    metrics: Sequence[str] = (),
    **claims: Any,
) -> tuple[Verdict, list[Pair]]:
    """Load a model whose config was read, and prove files that were exported earlier.

    Args:
        deployment: what `read_config` returned.
        onnx_file: the file, or the folder of the graphs of one model.
        inputs: the samples to compare on.
        engine: settings of the engine, as `engine_settings` returns them: `engine`, the name of its backend,
            and keyword arguments of `build_backend` such as `threads`.
        mean: as in `prove`.
        std: as in `prove`.
        metrics: names of the data set's metrics, such as 'bbox', that both engines are evaluated by. If the
            engine cannot load the file, they are left out, and the verdict has the reason.
        claims: further keyword arguments of `proving.ladder.prove`: `edited`, `asked` and others.

    Returns:
        The verdict, and samples with the results of PyTorch and of the engine, to be drawn in a report.

    Raises:
        UsageError: the file, the model or the data set of `metrics` is refused before the weights load.
        Mm2OnnxError: a sweep or frame cannot be read, a sample cannot be run, or, of a model of frames or
            sweeps, the file is one of several graphs; its exit status is 1.
    """
    from mmdeploy_ext.evaluate import evaluation
    from mmdeploy_ext.proving.verdict import metric_finding

    family = deployment.family
    files, metadata = _read(family, onnx_file)
    build(deployment, mean, std)
    check_provable(family)
    if metadata is not None:
        metadata.require(onnx_file, family.name, getattr(family, 'forms', ()))
    if metrics:
        cfg = deployment.unbuilt_cfg
        evaluation.check_evaluation(cfg, evaluation.build_dataset(cfg), metrics)
    load_weights(deployment)
    chosen, rows = inputs.of(deployment), []
    with after_weights(), contextlib.suppress(LoadError):  # the proof reports a file that cannot be loaded
        rows = _metrics(deployment, files, metadata, metrics, engine) if metrics else []
    verdict, pairs = prove_on(deployment, files, chosen, engine, **claims)
    verdict.findings.extend(map(metric_finding, rows))
    return verdict, pairs


def prove_on(
    deployment: Model, files: Sequence[str], chosen: ChosenSamples, engine: Mapping[str, Any], **claims: Any
) -> tuple[Verdict, list[Pair]]:
    """Prove the files of a model with its weights on samples, with exit status 1 for errors.

    `claims` are further keyword arguments of `proving.ladder.prove`.
    """
    from mmdeploy_ext.proving import ladder

    if chosen.files:
        claims['picture_files'] = chosen.files
    with after_weights():
        verdict, pairs = ladder.prove(deployment, files, chosen.samples, engine, **claims)
    if chosen.origin:
        verdict.notes.append(f'frames: {chosen.origin}')
    return verdict, pairs


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
    """Prove that an exported file is the model of a config and a checkpoint, as `mm2onnx verify` does.

    Args:
        config: path of an mmcv 1.x config.
        checkpoint: path of the weights.
        onnx_file: the file, or the folder of the graphs of one model, that was exported.
        samples: files and folders to compare on: pictures; LiDAR sweeps (`.bin`, `.npy`), of a backbone alone
            voxels, too (`.npz`); or an info file, in which mmdet3d's `create_data.py` lists the frames of a
            data set with their poses and calibrations (`.pkl`, of sweeps also `.json`); models of frames take
            one such file and nothing else. If it is empty: a picture of this package, or frames and sweeps of
            the config's data set, else generated ones; the voxels that every proof of a backbone alone has.
        frames: largest number of frames in all, or of sweeps (evenly chosen) of each of `samples`; None: 12.
            Models of pictures ignore it: they take the first 8, and a line is printed if there are more.
        mean: that of the export, if one was given there; None: that of the config.
        std: that of the export, if one was given there; None: that of the config.
        cfg_options: those of the export; with None nothing is replaced.
        device: device of PyTorch: 'cpu', 'cuda' or 'cuda:N'. TensorRT runs on the GPU in any case.
        engine: name of the engine that runs the file: 'onnxruntime', 'openvino', 'tensorrt'. Models of
            frames or sweeps do not run on 'tensorrt', which is refused for them.
        providers: execution providers of ONNX Runtime, in order, or the name of one; None: the CPU's.
        threads: number of threads of the engine, within an operator; 0: it decides. TensorRT refuses others.
        inference_precision: type that OpenVINO computes in, 'fp32', 'bf16' or 'fp16'; None: 'fp32'. Other
            engines refuse it, and models of frames or sweeps all but 'fp32'.
        metrics: names of the data set's metrics, such as 'bbox', that both engines are evaluated by; none are
            compared by default.
        edited: whether the file was edited on purpose: then inputs alone decide, its graph is not compared.
        asked: name of an option of `export` -> value that the file must have been exported with, or it is not
            proven; with None nothing is demanded.
        library: 'installed': where the repository's own copy of mmdet, mmdet3d, mmseg or mmcv did not run,
            claim against the installed one; None: such a file is not proven.
        strict: whether what a graph cannot show of the user's code (`verdict.untraced`) is a failure.

    Returns:
        The verdict: `verdict.passed`, whether graph, tensors and results agree within the bars of
        docs/proof.md; `verdict.proven`, the same, but False of files, or of an engine that computes, below
        float32; `verdict.title`; `verdict.to_json()`. What the file does wrong is in it.

    Raises:
        UsageError: the call is refused before the weights were loaded, such as a file that is not there.
        Mm2OnnxError: a sweep or frame cannot be read, a sample cannot be run, or, of a model of frames or
            sweeps, the file is one of several graphs; its exit status is 1.
    """
    for name, value in dict(samples=samples, metrics=metrics).items():
        if isinstance(value, str | Path):  # whose letters would be taken for the entries
            raise UsageError(f'{name}={str(value)!r}: expected a list, [{str(value)!r}]')
    check_normalisation(mean, std)
    deployment = read_config(config, checkpoint, cfg_options, device, file=str(onnx_file))
    family = deployment.family
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
    inputs = Samples(family, [str(path) for path in samples], frames)
    verdict, _ = prove_files(
        deployment,
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
    return verdict


def _read(family: Family, path: str) -> tuple[list[str], Metadata | None]:
    """Return the paths of the files, and the metadata of the last file, None of a sparse backbone.

    The file of a sparse backbone has only a part of the metadata. Damaged files are refused here, before the
    weights are loaded.
    """
    from mmdeploy_ext.families.files import read_files
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
    deployment: Model,
    paths: Sequence[str],
    metadata: Metadata,
    metrics: Sequence[str],
    engine: dict[str, Any],
) -> list[MetricRow]:
    """Evaluate the config's test set with PyTorch and with the engine, and return a row per metric."""
    from mmdeploy_ext.contract.metadata import least_precision, read_metadata
    from mmdeploy_ext.evaluate.detector import BackendDetector, FrameDetector, PublishedDetector
    from mmdeploy_ext.proving.levels.metrics import compare_metrics

    family = deployment.family
    if family.samples != 'images':
        metadata = [read_metadata(path) for path in paths]
        contract = contract_of(family, metadata[-1].options)
        networks = (family.reference(deployment.model), contract.runner(paths, engine))
        detectors = (FrameDetector(network, family) for network in networks)
        precision = least_precision(metadata)
        return compare_metrics(deployment.cfg, *detectors, metrics, precision)
    with build_backend(path=paths[0], **engine) as backend:
        detectors = PublishedDetector(deployment.model), BackendDetector(backend, family, metadata)
        precision = backend.computes_in or metadata.precision
        return compare_metrics(deployment.cfg, *detectors, metrics, precision)
