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

from mmdeploy_ext import compat
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import LoadError, ModelFileError, UsageError, after_weights
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.engines.registry import check_engine_kind, engine_settings
from mmdeploy_ext.families.base import BACKBONE, DETECTOR, FAMILIES, Family, find_family
from mmdeploy_ext.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.proving.inputs.samples import Samples, read_images
from mmdeploy_ext.proving.tasks import task_module

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.proving.results import MetricRow, Pair
    from mmdeploy_ext.proving.verdict import Verdict
    from mmdeploy_ext.sparse.ir import SparseGraph
    from mmdeploy_ext.sparse.ranges import Ranges

    Check = Callable[[Any, Family, Any], None]
    """Function that is called with the config, the family and the built model before the weights are read.

    It returns nothing; a UsageError that it raises ends the loading.
    """


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A config and a checkpoint before the weights are loaded, and the family that exports them.

    Attributes:
        config: path of the config.
        checkpoint: path of the weights.
        cfg_options: key of the config, with dots for nested ones -> value that replaces its own.
        device: device of PyTorch: 'cpu', 'cuda' or 'cuda:N'.
        cfg: mmcv's `Config` with `cfg_options` applied, and adapted by the family (`Family.adapt`).
        family: the family that claims the config.
        weight_layout: axis order of the kernels of a sparse backbone in the checkpoint: 'spconv1', 'spconv2',
            'spconv2-rskc', or 'auto', which finds it from their shapes. For a family of `BACKBONE`, `load`
            refuses another value with a UsageError; families of detectors ignore it.
    """

    config: str
    checkpoint: str
    cfg_options: dict[str, Any]
    device: str
    cfg: Any
    family: Family
    weight_layout: str = 'auto'

    @classmethod
    def read(
        cls,
        config: str | Path,
        checkpoint: str | Path,
        cfg_options: Mapping[str, Any] | None = None,
        device: str = 'cpu',
        *,
        product: str = DETECTOR,
        weight_layout: str = 'auto',
        file: str = '',
    ) -> ModelSource:
        """Read the config and find the family that claims most of its model, after `compat.apply()`.

        The latter is for the whole process: it lets the versions of mmcv, mmdet and mmdet3d that are
        installed work with this PyTorch, by patches of single functions that are made when their modules are
        imported.
        The family that is found adapts the config (`Family.adapt`).

        Args:
            config: path of the config.
            checkpoint: path of the weights, which are not read yet.
            cfg_options: key, with dots for nested ones, -> value that replaces that of the config; with None
                nothing is replaced.
            device: device of PyTorch: 'cpu', 'cuda' or 'cuda:N'.
            product: the part of the model that is exported, `DETECTOR` or `BACKBONE` of `families.base`, if
                `file` does not decide.
            weight_layout: the attribute of that name.
            file: path of an exported file. If the family in its metadata claims the config, its product
                replaces `product`. A file that is '', a folder, or not readable decides nothing.

        Raises:
            ConfigError: the config cannot be read, or no family claims it. The checkpoint is not looked at.
        """
        compat.apply()
        cfg_options = dict(cfg_options or {})
        cfg = load_config(str(config), cfg_options)
        family_of_file = _family_of(cfg, file) if file else None
        family = find_family(cfg, family_of_file.product if family_of_file else product)
        return cls(str(config), str(checkpoint), cfg_options, device, cfg, family, weight_layout)

    def load(
        self,
        check: Check | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Deployment:
        """Return the model, on `device`, with its weights and its family, as a `Deployment`.

        `check`, if there is one, is called before the weights are read. `mean` and `std` are those of
        `export`, which the caller has checked by `check_normalisation`; here they are not.

        Raises:
            UsageError: what `check` raised; `mean` or `std` of a model that takes no single pictures; a
                ConfigError, CheckpointError or EngineError about the config, the checkpoint or the device.
        """
        from mmdeploy_ext.exporting import deployment as deploy

        mean, std = (None if values is None else [*map(float, values)] for values in (mean, std))
        for name, values in dict(mean=mean, std=std).items():
            if values and self.family.samples != 'images':
                raise UsageError(
                    f'{name}={values}: goes with models of single pictures; family '
                    f'{self.family.name!r} normalises as its config states: leave {name} out'
                )
        deployment = deploy.load(
            self.config,
            self.checkpoint,
            self.cfg_options,
            self.device,
            check,
            weight_layout=self.weight_layout,
            read=(self.cfg, self.family),
        )
        deployment.normalise_with(mean, std)
        return deployment


def _family_of(cfg: Any, path: str) -> Family | None:
    """Return the family in the metadata of a file; None if it is unknown or does not claim the config."""
    from mmdeploy_ext.contract.metadata import read_entry
    from mmdeploy_ext.graph.io.files import read

    family = None
    if Path(path).is_file() and cfg.get('model'):
        with contextlib.suppress(ModelFileError):  # the proof reads the whole file and reports the error
            props = {entry.key: entry.value for entry in read(path).metadata_props}
            family = FAMILIES.get(read_entry(props, 'family', path))
    return family if family is not None and family.claims(cfg) else None


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        files: paths of the graphs, in the order in which a sample goes through them.
        options: the options of the export, with values in place of those that were left open.
        seconds: wall-clock time of exporting and writing, without building the model and loading its weights.
        deployment: the model in PyTorch, with its weights.
        traced: ((file name, picture), path) of the picture that was traced, (h, w, 3) uint8 BGR; None for
            models of frames and sweeps.
        samples: a pair, as `Samples.of` returns it: what `prove` compares on besides `traced`, and some words
            on where frames and sweeps are from ('' for pictures and voxels). Pictures are (file name,
            (h, w, 3) uint8 BGR), and are left out without `sample_files`; for other detectors they are
            `runtime.frames.Frame`s or `Sweep`s, for a backbone alone `VoxelSet`s. None: only `traced`, or the
            default samples of a family of frames or sweeps.
        sample_files: paths of the pictures in `samples`; empty if the user named none, or for frames and
            sweeps.
        sparse_graph: what the file of a sparse backbone holds; None for other families.
    """

    files: list[str]
    options: Options
    seconds: float
    deployment: Deployment
    traced: tuple[tuple[str, Any], str | Path] | None = dataclasses.field(default=None, repr=False)
    samples: tuple[Collection[Any], str] | None = dataclasses.field(default=None, repr=False)
    sample_files: Sequence[Path] = ()
    sparse_graph: SparseGraph | None = dataclasses.field(default=None, repr=False)

    def prove(self, engine: Mapping[str, Any] | None = None, **claims: Any) -> tuple[Verdict, list[Pair]]:
        """Prove the files, as they were written, with the model in memory.

        A family that cannot be proven has to be refused before, by `check_provable`.

        Args:
            engine: settings of the engine as `engine_settings` returns them; None: ONNX Runtime on the CPU.
            claims: further keyword arguments of `proving.ladder.prove`: `asked`, `strict`, see `prove`;
                `timed`, whether the verdict has times (True); of a sparse backbone also `ranges`,
                `max_voxels` and `node_list`, see `SparseProof`.

        Returns:
            The verdict, and samples with the results of PyTorch and of the engine, to be drawn in a report.

        Raises:
            Mm2OnnxError: a file or a sample cannot be read, or a sample cannot be run; its exit status is 1.
                What a file does wrong is in the verdict.
        """
        from mmdeploy_ext.proving.ladder import prove as climb

        with after_weights():
            samples, origin = self.samples or Samples(self.deployment.family, ()).of(self.deployment)
            if self.traced is not None:
                picture, path = self.traced
                samples = [picture, *(samples if self.sample_files else ())]
                claims['picture_files'] = [path, *self.sample_files]
            verdict, pictures = climb(
                self.deployment, self.files, samples, engine or {}, written=True, **claims
            )
        if origin:
            verdict.notes.append(f'frames: {origin}')
        return verdict, pictures


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

    A family of detectors needs a task, the module that matches and draws its results (`proving.tasks`), and a
    family of pictures a runtime, the module that finishes in numpy what its graphs compute
    (`runtime.family_runtime`), unless its class has a method `detections` that does so.

    Raises:
        ConfigError: one of them is missing.
    """
    from mmdeploy_ext.families.images import ImageFamily
    from mmdeploy_ext.runtime.family_runtime import runtime_of

    if family.product == DETECTOR:
        task_module(family.task)
    if isinstance(family, ImageFamily) and type(family).detections is ImageFamily.detections:
        runtime_of(family.name)


def export_source(
    source: ModelSource,
    output_file: str,
    options: Options,
    *,
    samples: Samples | None = None,
    picture: str | Path = '',
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    before_weights: Callable[[], None] = lambda: None,
    ranges: Callable[[Deployment, Options], Ranges | None] = lambda *_: None,
) -> Exported:
    """Export the model of a config that was read; a backbone if the source's family is one of backbones.

    Args:
        source: config, checkpoint and family.
        output_file: the `.onnx` file or the folder to write; '' is refused.
        options: options of the export; opset 0 and size 0 x 0 (pixels) are replaced by the model's defaults.
        samples: samples for a call of `Exported.prove` that follows. They are chosen before the export, and
            files of sweeps are read; the frames of a data set are read when they are proven on. With None
            that call has the picture that is traced alone, or the default samples of a family of frames or
            sweeps.
        picture: path of the picture that is traced; '': one of this package.
        mean: as in `export`.
        std: as in `export`.
        before_weights: called without arguments after the model was built, before its weights are read.
        ranges: of a sparse backbone, called with the `Deployment` and the resolved options after the weights
            were read; returns the ranges of layers in INT8, which have to fit the names of the graph's nodes
            and the norms of their kernels, or None for files without such. Other families ignore it.

    Returns:
        The files, the options and the model.

    Raises:
        UsageError: as `export`, and what `before_weights` raises. After the weights were loaded, with exit
            status 1: a backbone or neck of the user's own that keeps the sizes it was traced at and is
            exported with `dynamic` by 'torchscript'; a pattern of `keep_fp32` that fits no node; a file of
            `samples` with sweeps or frames that cannot be read; ranges of a sparse backbone that are missing,
            or of other weights.
        ExportError: as `export`.
    """
    from mmdeploy_ext.exporting import deployment as deploy
    from mmdeploy_ext.exporting.files import check_output, export_files
    from mmdeploy_ext.lint.dynamic_sizes import check_dynamic_parts

    family, resolved = source.family, [options]
    picture = picture or DEFAULT_PICTURE
    traced = (read_images([picture], 1)[0], picture) if family.samples == 'images' else None

    def check(cfg: Any, family: Family, model: Any) -> None:
        before_weights()
        resolved[0] = deploy.check_options(options, cfg, family, model)
        check_output(output_file, resolved[0], family)

    deployment, options = source.load(check, mean, std), resolved[0]
    with after_weights():
        if family.samples == 'images' and options.dynamic and options.exporter == 'torchscript':
            picture_spec = family.picture(deployment.model, options)
            check_dynamic_parts(deployment.model, picture_spec.multiple, picture_spec.smallest)
        proof_samples = samples.of(deployment) if samples else None
        images, graph = [], None
        if traced is not None:
            image = traced[0][1]
            images = [deploy.prepare_fixed(deployment.rule, image, options.height, options.width)]
        if family.product == BACKBONE:
            from mmdeploy_ext.exporting.sparse_backbone import export_file

            backbone_ranges = ranges(deployment, options)
            graph, seconds = export_file(deployment, options, output_file, backbone_ranges)
            files = [output_file]
        else:
            files, seconds = export_files(deployment, options, output_file, images)
    sample_files = samples.files if samples and samples.paths else ()
    return Exported(files, options, seconds, deployment, traced, proof_samples, sample_files, graph)


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

    A sparse backbone alone is exported by `mm2onnx export-backbone`, or by `export_source` from a source of
    that product.

    Args:
        config: path of an mmcv 1.x config. Modules of its `custom_imports` are imported.
        checkpoint: path of the weights.
        output_file: the `.onnx` file to write, or the folder of a model of several graphs; an older one there
            is replaced. '': in the current folder, what `Family.default_output` returns: the file `tmp.onnx`,
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
    check_normalisation(mean, std)
    source = ModelSource.read(config, checkpoint, cfg_options, device)
    export_options = source.family.choose(**{'opset': 0, **options})
    export_options.check(names=options)
    output = str(output_file) or source.family.default_output(Path(config).stem, export_options)
    return export_source(source, output, export_options, picture=picture, mean=mean, std=std)


def prove_source(
    source: ModelSource,
    onnx_file: str,
    samples: Samples,
    engine: dict[str, Any],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    metrics: Sequence[str] = (),
    **claims: Any,
) -> tuple[Verdict, list[Pair], Deployment]:
    """Prove files that were exported earlier.

    Args:
        source: config, checkpoint and family.
        onnx_file: the file, or the folder of the graphs of one model.
        samples: the samples to compare on.
        engine: settings of the engine, as `engine_settings` returns them: `engine`, the name of its backend,
            and keyword arguments of `build_backend` such as `threads`.
        mean: as in `prove`.
        std: as in `prove`.
        metrics: names of the data set's metrics, such as 'bbox', that both engines are evaluated by. If the
            engine cannot load the file, they are left out, and the verdict has the reason.
        claims: further keyword arguments of `proving.ladder.prove`, see `Exported.prove`.

    Returns:
        The verdict; samples with the results of PyTorch and of the engine, to be drawn in a report; and the
        model in PyTorch.

    Raises:
        UsageError: the file, the model or the data set of `metrics` is refused before the weights load.
        Mm2OnnxError: a sweep or frame cannot be read, a sample cannot be run, or, of a model of frames or
            sweeps, the file is one of several graphs; its exit status is 1.
    """
    from mmdeploy_ext.evaluate import evaluation
    from mmdeploy_ext.proving.ladder import prove as climb

    family = source.family
    files, metadata = _read(family, onnx_file)

    def check(cfg: Any, family: Family, model: object) -> None:
        check_provable(family)
        if metadata is not None:
            metadata.require(onnx_file, family.name, getattr(family, 'forms', ()))
        if metrics:
            evaluation.check_evaluation(cfg, evaluation.build_dataset(cfg), metrics)

    deployment = source.load(check, mean, std)
    proof_samples, origin = samples.of(deployment)
    if family.samples == 'images':
        claims['picture_files'] = samples.files
    with after_weights():
        rows = []
        with contextlib.suppress(LoadError):  # the proof reports a file that the engine cannot load
            rows = _metrics(deployment, files, metadata, metrics, engine) if metrics else []
        verdict, pictures = climb(deployment, files, proof_samples, engine, **claims)
    if origin:
        verdict.notes.append(f'frames: {origin}')
    verdict.metrics.extend(rows)
    return verdict, pictures, deployment


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
    source = ModelSource.read(config, checkpoint, cfg_options, device, file=str(onnx_file))
    if source.family.product == BACKBONE:
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
    if source.family.samples != 'images':
        check_engine_kind(settings['engine'], inference_precision)
    proof_samples = Samples(source.family, [str(path) for path in samples], frames)
    claims = dict(edited=edited, asked=dict(asked or {}), library=library, strict=strict)
    options = dict(mean=mean, std=std, metrics=metrics)
    verdict, _, _ = prove_source(source, str(onnx_file), proof_samples, settings, **options, **claims)
    return verdict


def _read(family: Family, path: str) -> tuple[list[str], Metadata | None]:
    """Return the paths of the files, and the metadata of the last file, None of a sparse backbone.

    The file of a sparse backbone has only a part of the metadata. Damaged files are refused here, before the
    weights are loaded.
    """
    from mmdeploy_ext.exporting.files import read_files
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
    deployment: Deployment,
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
        networks = (family.reference(deployment.model), family.runner(paths, engine))
        detectors = (FrameDetector(network, family) for network in networks)
        precision = least_precision(map(read_metadata, paths))
        return compare_metrics(deployment.cfg, *detectors, metrics, precision)
    with build_backend(path=paths[0], **engine) as backend:
        detectors = PublishedDetector(deployment.model), BackendDetector(backend, family, metadata)
        precision = backend.computes_in or metadata.precision
        return compare_metrics(deployment.cfg, *detectors, metrics, precision)
