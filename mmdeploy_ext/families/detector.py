"""A model of a config and a checkpoint, read in steps: `read_config`, `build`, `load_weights`; or `load`.

torch is imported from `build` on.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.config import (
    config_path,
    config_sha256,
    load_config,
    refused_by_name,
    test_dataset,
    test_pipeline,
)
from mmdeploy_ext.base.errors import (
    ConfigError,
    EngineError,
    Mm2OnnxError,
    ModelFileError,
    UsageError,
    printable,
    shortened,
)
from mmdeploy_ext.base.files import sha256_file
from mmdeploy_ext.families.base import DETECTOR, FAMILIES, Family, exported_options, find_family
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.spec.options import FORM, MADE_FOR, TARGETS
from mmdeploy_ext.upstream import compat

TRACED = 'traced'
"""Name of the family of traced test paths."""

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    import numpy as np
    import torch

    from mmdeploy_ext.base.source_code import ModelClass
    from mmdeploy_ext.exporting.export import CodeWarning
    from mmdeploy_ext.families.images import ImageFamily
    from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.preparation import PreprocessRule


@dataclasses.dataclass
class Detector:
    """A model to export or compare; each step fills in further attributes.

    Attributes:
        cfg_options: overrides of the config: key with dots -> value.
        cfg: mmcv's config, overrides applied, adapted by the family.
        device: 'cpu', 'cuda' or 'cuda:N'.
        weight_layout: kernel layout of a sparse backbone's checkpoint, or 'auto'.
        model: upstream's model in evaluation mode, since `build`; with weights since `load_weights`.
        rule: result of `Family.preprocess_rule`; a `PreprocessRule` for images.
        settings: result of `SparseFamily.settings`, since `backbone_files.build`.
        decisive: config entries that affect the results; None: all of `cfg`.
        unbuilt_cfg: `cfg` before `build`: mmcv removes entries such as `fallback_on_stride`.
        normalisation: `mean` and `std` that replace the config's.
        classes: names by label, after `load_weights`; () for backbones.
        checkpoint_sha256: digest of the checkpoint, since `load_weights`.
        report: the checkpoint; a `LoadReport` for a sparse backbone.
        ignored_keys: prefixes of checkpoint keys that are left out.
        lowered: key of the config that `fit` changed -> value of the config, value of the model.
        collected: entries that the test pipeline collects, after a proof ran it.
        recording: an `Ask` or a `Recording`, around the calls of `forward` in a proof, or None.
        refused: why another family does not export the model, whose test path is traced instead.
        code_warnings: PyTorch's warnings about the user's code in exports.
    """

    config: str
    checkpoint: str
    cfg_options: dict[str, Any]
    cfg: Any
    family: Family
    device: str = 'cpu'
    weight_layout: str = 'auto'
    model: Any = None
    rule: Any = None
    settings: Any = None
    decisive: Mapping[str, Any] | None = None
    unbuilt_cfg: Any = None
    normalisation: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    classes: tuple[str, ...] = ()
    checkpoint_sha256: str = ''
    report: Any = None
    ignored_keys: tuple[str, ...] = ()
    lowered: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    collected: dict[str, Any] = dataclasses.field(default_factory=dict)
    recording: Any = None
    refused: str = ''
    code_warnings: list[CodeWarning] = dataclasses.field(default_factory=list, init=False, repr=False)

    def normalise_with(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Replace the config's mean and std (pixel values in the input's channel order), and the rule."""
        from mmdeploy_ext.runtime.preprocess.pipeline_rule import steps_of

        given = dict(mean=mean, std=std)
        given = {name: tuple(map(float, values)) for name, values in given.items() if values is not None}
        self.normalisation = {name: values for name, values in given.items() if values}
        if self.normalisation:
            cfg = copy.deepcopy(self.cfg)
            for step in steps_of(test_pipeline(cfg), 'Normalize', 'RandomCenterCropPad'):
                step.update(self.normalisation)
            self.rule = dataclasses.replace(self.family.preprocess_rule(cfg), **self.normalisation)

    @functools.cached_property
    def model_classes(self) -> tuple[ModelClass, ...]:
        """Model classes outside of installed libraries."""
        return self.family.model_classes(self.model)

    @property
    def replaced_kernels(self) -> list[str]:
        """Sentences on modules that run without their compiled operators."""
        from mmdeploy_ext.upstream.compat import plain_kernels

        return plain_kernels.notes_on(self.model)

    @property
    def config_sha256(self) -> str:
        """Digest of the config entries that affect the results."""
        return config_sha256(self.decisive or self.cfg)


def read_config(
    config: str | Path,
    checkpoint: str | Path = '',
    cfg_options: Mapping[str, Any] | None = None,
    device: str = 'cpu',
    *,
    product: str = DETECTOR,
    weight_layout: str = 'auto',
    file: str = '',
    whole: str = '',
) -> Detector:
    """Read a config and find its family, after `compat.apply()`; the checkpoint is not read.

    Args:
        config: path of the config.
        checkpoint: path of the weights.
        cfg_options: overrides of the config: key with dots -> value.
        device: 'cpu', 'cuda' or 'cuda:N'.
        product: DETECTOR or BACKBONE, unless `file` decides.
        weight_layout: kernel layout of a sparse backbone's checkpoint: 'auto', 'spconv1', 'spconv2' or
            'spconv2-rskc'.
        file: exported file; its product wins if its family claims the config.
        whole: 'traced': the family of traced test paths, whatever family claims the config.

    Raises:
        ConfigError: the config cannot be read, or no family claims it.
        UsageError: config or checkpoint is an object in memory.
    """
    for name, path in (('config', config), ('checkpoint', checkpoint)):
        if not isinstance(path, str | os.PathLike):
            raise UsageError(
                f'{name}: got a {type(path).__name__}, expected the path of a file; Config.dump(PATH) or '
                f'torch.save(state_dict, PATH) writes one'
            )
    compat.apply()
    config, cfg_options = config_path(config), dict(cfg_options or {})
    cfg = load_config(config, cfg_options)
    family_of_file = _family_of(cfg, file) if file else None
    metadata = _metadata_of(file) if file else None
    if cameras := getattr(metadata and metadata.preprocess, 'num_cameras', 0):
        cfg.cameras_of_file = cameras
    if whole or (family_of_file and family_of_file.name == TRACED):
        family = FAMILIES[TRACED].for_config(cfg)
    else:
        family = find_family(cfg, family_of_file.product if family_of_file else product)
    detector = Detector(config, str(checkpoint), cfg_options, cfg, family, device, weight_layout)
    if metadata is not None and metadata.options.get(MADE_FOR.name):
        with contextlib.suppress(ModelFileError):  # as above
            fit(detector, exported_options(family, metadata.options))
    return detector


def fit(detector: Detector, options: Options) -> Options:
    """Lower limits of top-k nodes in the config to what `--for` an engine sorts; return options with limits.

    Call it before `build`. Limits that the user passes are not changed.
    """
    target = TARGETS.get(options.get(MADE_FOR.name, ''))
    if target is None or not target.largest_k or options.get('form') != FORM.default:
        return options
    cfg, family = detector.cfg, detector.family
    sized = with_size(options, checked_rule(cfg, family))
    for key, rows in family.sorted_levels(cfg, sized).items():
        given = functools.reduce(lambda entry, name: entry.get(name), key.split('.'), cfg)
        given = given if given and given > 0 else max(rows)
        limit = target.largest_k
        while sum(min(count, limit) for count in rows) > target.largest_k:
            limit -= 1
        if limit < given and key not in detector.cfg_options:
            cfg.merge_from_dict({key: limit})
            detector.lowered[key] = given, limit
    if options.dynamic:
        return options
    most = family.most_candidates(cfg, sized).items()
    return options.replace(**{name: options[name] or min(count, target.largest_k) for name, count in most})


def _family_of(cfg: Any, path: str) -> Family | None:
    from mmdeploy_ext.graphs.io.files import read
    from mmdeploy_ext.spec.metadata import read_entry

    family = None
    if Path(path).is_file() and cfg.get('model'):
        with contextlib.suppress(ModelFileError):  # the proof reads the whole file and reports the error
            props = {entry.key: entry.value for entry in read(path).metadata_props}
            family = FAMILIES.get(read_entry(props, 'family', path))
    return family if family is not None and family.claims(cfg) else None


def _metadata_of(path: str) -> Metadata | None:
    from mmdeploy_ext.runtime.exported import model_files
    from mmdeploy_ext.spec.metadata import read_metadata

    with contextlib.suppress(ModelFileError):  # the proof reads the whole file and reports the error
        return read_metadata(model_files(path)[0])
    return None


def build(
    detector: Detector, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> None:
    """Build the module and its preprocessing rule, without weights; `mean`, `std` as in `normalise_with`.

    `Kind.build` does it for a model of any kind.

    Raises:
        EngineError: no such device.
        ConfigError: the model cannot be built, or a file cannot describe its test pipeline.
        CheckpointError: no such checkpoint.
    """
    from mmdeploy_ext.upstream.weights.checkpoint import load_checkpoint

    family, cfg = detector.family, detector.cfg
    check_device(detector.device)
    detector.rule = checked_rule(cfg, family)
    if detector.checkpoint and not Path(detector.checkpoint).is_file():
        load_checkpoint(detector.checkpoint)  # raises the error about the path
    detector.unbuilt_cfg = copy.deepcopy(cfg)
    detector.model = family.build(cfg)
    detector.normalise_with(mean, std)
    detector.model.picture_channels = getattr(detector.rule, 'bands', 3)  # others have no images


def checked_rule(cfg: Any, family: Family) -> Any:
    """Return the preprocessing rule; ConfigError names the config."""
    try:
        rule = family.preprocess_rule(cfg)
    except Mm2OnnxError as error:
        if isinstance(error, ConfigError) and not str(error).startswith(f'{cfg.filename}:'):
            raise ConfigError(f'{cfg.filename}: {error}') from error
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f'{cfg.filename}: the test pipeline cannot be described by the exported file: '
            f'{type(error).__name__}: {error}; correct it'
        ) from error
    return rule


def load_weights(detector: Detector) -> None:
    """Load the checkpoint strictly and move the model to its device.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
        ConfigError, UsageError: see `class_names`.
    """
    from mmdeploy_ext.upstream.weights.checkpoint import load_checkpoint

    family, model = detector.family, detector.model
    checkpoint = load_checkpoint(detector.checkpoint).without(detector.ignored_keys)
    detector.report = checkpoint.renamed(model, detector.cfg.model.get('type', ''))
    family.load_weights(model, detector.report)
    detector.report.state_dict.clear()  # gigabytes of a large model
    count = family.num_classes(model)
    detector.classes = family.class_names
    if len(detector.classes) != count:
        detector.classes = class_names(detector.cfg, detector.report.meta, count)
        for text in unfitting_names(detector.cfg, detector.report.meta, count):
            note = f'note: {detector.config}: {text}: the first one is {detector.classes[0]!r}'
            print(printable(note), file=sys.stderr)
    finish_loading(detector)


def finish_loading(detector: Detector) -> None:
    """Complete a detector after its weights are loaded; move the model to its device."""
    model = detector.model
    detector.checkpoint_sha256 = sha256_file(detector.checkpoint)
    model.CLASSES = detector.classes
    model.eval()  # not chained: `train` of some detectors returns None
    attributes = ((part, *entry) for part in model.modules() for entry in vars(part).items())
    if any(callable(value) and callable(getattr(type(part), name, None)) for part, name, value in attributes):
        # a function stored in a module runs this model's weights in copies, too; without gradients a trace
        # makes them constants
        model.requires_grad_(False)
    detector.model = model.to(check_device(detector.device))


def load(
    config: str | Path,
    checkpoint: str | Path,
    cfg_options: Mapping[str, Any] | None = None,
    device: str = 'cpu',
) -> Detector:
    detector = read_config(config, checkpoint, cfg_options, device)
    build(detector)
    load_weights(detector)
    return detector


def check_device(device: str) -> torch.device:
    """Return the torch device; EngineError if it is missing."""
    import torch

    try:
        parsed = torch.device(device)
    except RuntimeError:
        parsed = None
    if parsed is None or parsed.type not in ('cpu', 'cuda'):
        raise EngineError(f"--device {device}: expected 'cpu', 'cuda' or 'cuda:N'")
    if parsed.type == 'cuda' and not torch.cuda.is_available():
        raise EngineError(f'--device {device}: this torch {torch.__version__} sees no GPU; use --device cpu')
    if parsed.type == 'cuda' and (parsed.index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f'--device {device}: torch sees {torch.cuda.device_count()} GPU(s), numbered from cuda:0 on'
        )
    return parsed


def resolve_opset(options: Options, model: torch.nn.Module, without: Collection[str] = ()) -> Options:
    """Return options with the file's opset; 0 becomes `exporting.export.default_opset`.

    Sparse graphs have no opset. `without` as in `operators_of`. Raises UsageError if the exporter cannot
    write the opset, or the opset lacks an operator.
    """
    from mmdeploy_ext.exporting.export import check_operators, check_opset, default_opset

    if 'opset' not in options:
        return options
    if 'opset' in options.fixed:
        return options.replace(opset=options.fixed['opset'][1])
    opset = options.opset or default_opset(model, options.exporter, without)
    check_opset(opset, options.exporter)
    check_operators(model, opset, without)
    return options.replace(opset=opset)


def class_names(cfg: Any, meta: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes by label: the first list of `num_classes` names, else 'class 0', ...

    Sources in order: `CLASSES` of the checkpoint's `meta`; `classes` of `data.test` (names, or a file of
    lines); `classes` and `class_names` of the config; `CLASSES` of the data set.

    Raises:
        ConfigError: the class file cannot be read.
        UsageError: a name cannot be encoded as UTF-8.
    """
    from mmcv import list_from_file

    from mmdeploy_ext.base.source_code import users_method
    from mmdeploy_ext.upstream.models.building import data_class

    dataset = test_dataset(cfg)
    dataset_class = data_class(dataset.get('type'), 'DATASETS')
    listed = dataset.get('classes')
    candidates = (
        meta.get('CLASSES'),
        listed,
        cfg.get('classes'),
        cfg.get('class_names'),
        getattr(dataset_class, 'CLASSES', None),
    )
    for names in candidates:
        if names is listed and isinstance(names, str):  # a file; not read if `meta` has the names
            try:
                names = list_from_file(names)
            except (OSError, UnicodeError) as error:
                if dataset_class and users_method(dataset_class, 'get_classes'):  # BASE_CLASSES, for example
                    continue
                raise ConfigError(
                    f'data.test.classes={names!r}: this file of class names cannot be read ({error}); '
                    f'correct the path, or give the names themselves'
                ) from error
        if isinstance(names, list | tuple) and len(names) == num_classes:
            break
    else:
        return tuple(f'class {index}' for index in range(num_classes))
    names = tuple(map(str, names))
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f'the class name {shortened(name)} has half a character, expected text; correct CLASSES of '
                f"the checkpoint's meta, or classes of the config"
            ) from error
    return names


def unfitting_names(cfg: Any, meta: Mapping[str, Any], num_classes: int) -> list[str]:
    """A text for each list of names that `class_names` passes over, since the model has other classes."""
    from mmcv import list_from_file

    from mmdeploy_ext.upstream.models.building import data_class

    dataset = test_dataset(cfg)
    listed = dataset.get('classes')
    if isinstance(listed, str) and os.path.isfile(listed):
        listed = list_from_file(listed)
    lists = {
        'the checkpoint': meta.get('CLASSES'),
        'data.test.classes': listed,
        'classes of the config': cfg.get('classes'),
        'class_names of the config': cfg.get('class_names'),
    }
    lists = {source: names for source, names in lists.items() if isinstance(names, list | tuple)}
    if not lists:
        own = getattr(data_class(dataset.get('type'), 'DATASETS'), 'CLASSES', None)
        lists |= {f'{dataset.get("type")} of data.test': own} if isinstance(own, list | tuple) else {}
    return [
        f'the model has {num_classes} classes, {source} names {len(names)}'
        for source, names in lists.items()
        if len(names) != num_classes
    ]


@contextlib.contextmanager
def named_program(name: str | None) -> Iterator[None]:
    """Begin a UsageError with the program of `--for`, which may have set the option; '' changes nothing."""
    try:
        yield
    except UsageError as error:
        if not name:
            raise
        raise UsageError(f'{MADE_FOR.with_value(name)}: {error}') from error


def check_options(options: Options, cfg: Any, family: Family, model: torch.nn.Module) -> Options:
    """Check export options against the model; `resolve` fills in open ones.

    Raises:
        UsageError: an option does not fit this model.
        ConfigError: an unsupported setting.
    """
    replaced = contract_of(family, options).replaces
    resolved = resolve(options, model, family.preprocess_rule(cfg), replaced)
    try:
        with refused_by_name(cfg), named_program(resolved.get(MADE_FOR.name)):
            family.check(cfg, resolved)
    except ConfigError as error:
        if '--postprocess raw' in str(error):  # suggest it if it works
            from mmdeploy_ext.families.first_run import check_forward

            check_forward(family, model, resolved.replace(form='raw'))
        raise
    contract_of(family, resolved).check(cfg)
    return resolved


def check_picture_options(options: Options, cfg: Any, family: ImageFamily, model: torch.nn.Module) -> Options:
    """`check_options` for image models; raises the same errors.

    UsageError also for a height or width too small to trace a dynamic file. ConfigError also if the
    forward fails or returns unexpected tensors (`first_run.check_export`).
    """
    from mmdeploy_ext.families.first_run import check_export

    resolved = check_options(options, cfg, family, model)
    with named_program(resolved.get(MADE_FOR.name)):
        check_export(family, cfg, resolved, model)
    return resolved


def resolve(
    options: Options, model: torch.nn.Module, rule: PreprocessRule, without: Collection[str] = ()
) -> Options:
    """Return options with opset, height, width (0) and `group_norm` ('') filled in.

    Float32 and the start of a plan get `default_group_norm`.
    """
    options, changes = with_size(resolve_opset(options, model, without), rule), {}
    if options.get('group_norm') == '' and (options.precision == 'fp32' or options.keep_results):
        from mmdeploy_ext.exporting.export import default_group_norm

        changes['group_norm'] = default_group_norm(model)
    return options.replace(**changes)


def with_size(options: Options, rule: PreprocessRule) -> Options:
    """Return options with height and width (0) filled in: the test pipeline's padded image in pixels.

    Landscape, filling the test scale if the ratio is kept; 640 x 640 without a scale.
    """
    if options.get('height') != 0 or options.width != 0:
        return options
    long_edge, short_edge = max(rule.img_scale or (640, 640)), min(rule.img_scale or (640, 640))
    is_stretched = rule.img_scale is not None and not rule.keep_ratio
    height, width = rule.resized_shape(1, 1) if is_stretched else (short_edge, long_edge)
    height, width = rule.size or rule.padded_shape(height, width)
    return options.replace(height=height, width=width)


def prepare_fixed(rule: PreprocessRule, image_bgr: np.ndarray, height: int, width: int) -> PreparedImage:
    """Prepare `image_bgr` by `rule` (`prepare_image`) for exactly `height` x `width` pixels.

    Resizes to fit and pads, resizes exactly (ratio not kept), or warps about the centre.
    """
    from mmdeploy_ext.runtime.preprocess.pictures import prepare_image  # imports numpy

    return prepare_image(dataclasses.replace(rule, size=(height, width)), image_bgr)


def rule_of(detector: Detector, options: Options) -> Any:
    """Return a file's preprocessing rule; a static file fixes its `size`."""
    if options.get('dynamic', True):
        return detector.rule
    return dataclasses.replace(detector.rule, size=(options.height, options.width))
