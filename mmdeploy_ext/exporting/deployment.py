"""From config and checkpoint to an ONNX file: what `pytorch2onnx.py` and the `_onnx` configs call."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.compat import plain_kernels
from mmdeploy_ext.contract.metadata_schema import preprocess as check_rule
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.schema import Mismatch
from mmdeploy_ext.core.config import load_config, test_dataset, test_pipeline
from mmdeploy_ext.core.errors import ConfigError, EngineError, Mm2OnnxError, UsageError
from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.core.model_classes import ModelClass
from mmdeploy_ext.core.printable import shortened
from mmdeploy_ext.exporting.code_warnings import CodeWarning
from mmdeploy_ext.exporting.exporter import check_operators, check_opset, default_group_norm, default_opset
from mmdeploy_ext.families.base import DETECTOR, Family, find_family
from mmdeploy_ext.families.building import data_class
from mmdeploy_ext.preprocess.pictures import PreparedImage, PreprocessRule
from mmdeploy_ext.preprocess.pipeline_rule import steps_of
from mmdeploy_ext.weights.checkpoint import load_checkpoint


@dataclasses.dataclass
class Deployment:
    """A trained model, ready to be exported or compared.

    Attributes:
        cfg: mmcv's config, overrides applied.
        config: path of the config.
        cfg_options: the overrides: key with dots -> value.
        family: family of the model.
        model: upstream's model with its weights, in evaluation mode.
        checkpoint: path of the weights.
        checkpoint_sha256: digest of that file.
        classes: names by label; () for a backbone.
        rule: how a sample becomes the input, of `Family.preprocess_rule`; of images a `PreprocessRule`.
        settings: what `Family.settings` returned; None for most families.
        report: what `Family.load` returned: the checkpoint that was loaded; of a sparse backbone a
            `LoadReport` about it.
        unbuilt_cfg: `cfg` before the model was built, for which mmcv takes entries out, such as
            `fallback_on_stride`.
        normalisation: `mean` and `std`, or one of them, which replace the config's, see `normalise_with`; {}
            for none.
        collected: entries that the config's test pipeline collects of a picture, for PyTorch's test path; {}
            until a proof has run that pipeline.
        code_warnings: what PyTorch warned of in the user's code in exports of this model.
    """

    cfg: Any
    config: str
    cfg_options: dict[str, Any]
    family: Family
    model: torch.nn.Module
    checkpoint: str
    checkpoint_sha256: str
    classes: tuple[str, ...]
    rule: Any
    settings: Any = None
    report: Any = None
    unbuilt_cfg: Any = None
    normalisation: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    collected: dict[str, Any] = dataclasses.field(default_factory=dict)
    code_warnings: list[CodeWarning] = dataclasses.field(default_factory=list, init=False, repr=False)

    def normalise_with(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Replace the config's mean and std by `mean` and `std`, three pixel values each.

        They are `--mean` and `--std` of the command line, or those of a file's rule, in the order of the
        channels of the input; None keeps the config's. `normalisation` and, unless both are None, `rule` are
        set; `cfg` is not changed. Padding before the normalisation is normalised, too, so the rule is read
        again from changed steps.
        """
        options = dict(mean=mean, std=std)
        self.normalisation = {name: tuple(values) for name, values in options.items() if values}
        if self.normalisation:
            cfg = copy.deepcopy(self.cfg)
            for step in steps_of(test_pipeline(cfg), 'Normalize', 'RandomCenterCropPad'):
                step.update(self.normalisation)
            self.rule = with_normalisation(self.family.preprocess_rule(cfg), mean, std)

    @functools.cached_property
    def model_classes(self) -> tuple[ModelClass, ...]:
        """The classes of the model that no installed library has."""
        return self.family.model_classes(self.model)

    @property
    def replaced_kernels(self) -> list[str]:
        """Sentences about modules of the model that compute without the compiled operators they name."""
        return plain_kernels.notes_on(self.model)

    @property
    def config_sha256(self) -> str:
        """The digest of the config's entries that decide what the model computes."""
        return self.family.config_sha256(self.cfg)


def check_device(device: str) -> torch.device:
    """Return the device of PyTorch that `device` names: 'cpu', 'cuda' (the current GPU) or 'cuda:N'.

    EngineError: it is no CPU or GPU in torch's words, torch sees no GPU, or GPU N is not on this machine.
    """
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


def resolve_opset(options: Options, model: torch.nn.Module) -> Options:
    """Return export options with the opset that the file of `model` gets.

    Opset 0, the user's default, becomes `exporter.default_opset`. Options without an opset (sparse graphs)
    are returned as they are; options that fix it, since their graphs leave out what would need another one,
    get the fixed opset.

    UsageError: an opset that the exporter cannot write, or that lacks an operator of the model.
    """
    if 'opset' not in options:
        return options
    if 'opset' in options.fixed:
        return options.replace(opset=options.fixed['opset'][1])
    opset = options.opset or default_opset(model, options.exporter)
    check_opset(opset, options.exporter)
    check_operators(model, opset)
    return options.replace(opset=opset)


def class_names(cfg: Any, meta: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes by label.

    Args:
        cfg: mmcv's config.
        meta: the checkpoint's `meta`, which may have `CLASSES`.
        num_classes: number of classes of the model.

    Returns:
        The first list or tuple of `num_classes` names among `CLASSES` of `meta`; `classes` of `data.test`
        (of the data set that `test_dataset` reads), names or the path of a file with one on each line;
        `classes` and `class_names` of the config; and `CLASSES` of the data set's class. If none fits:
        'class 0', 'class 1', ...

    Raises:
        ConfigError: the config's data set names a file of classes, `meta` has no fitting list, and the file
            cannot be read.
        UsageError: a name cannot be encoded as UTF-8.
    """
    from mmcv import list_from_file

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


def load(
    config: str,
    checkpoint: str,
    cfg_options: Mapping[str, Any] | None = None,
    device: str = 'cpu',
    before_weights: Callable[[Any, Family, torch.nn.Module], None] | None = None,
    product: str = DETECTOR,
    weight_layout: str = 'auto',
    read: tuple[Any, Family] | None = None,
) -> Deployment:
    """Read config and checkpoint, and move the model, whose `CLASSES` are set, to a device.

    Args:
        config: path of the config.
        checkpoint: path of the weights.
        cfg_options: overrides of the config: key with dots -> value; with None nothing is replaced.
        device: device of the model: 'cpu', 'cuda' or 'cuda:N'.
        before_weights: called with the config as it was before the model was built, the family and the model,
            before the weights are read, to refuse options; with None nothing is called.
        product: the part of the model that is exported: DETECTOR or BACKBONE of `families.base`.
        weight_layout: layout of the kernels of a sparse backbone in the checkpoint: 'auto', which finds it
            from the shapes, 'spconv1', 'spconv2' or 'spconv2-rskc'; families of detectors ignore it, others
            refuse another value with a UsageError.
        read: the config with the overrides, which is not changed, and its family by `find_family`, if both
            are known already. With None they are read and found here; only then `product` counts.

    Raises:
        EngineError: there is no such device, see `check_device`.
        ConfigError: the config cannot be read or built, no family exports the product of its model, or the
            exported file cannot describe its test pipeline; the message names the file.
        CheckpointError: the checkpoint cannot be read, or is of another model; the message names the file.
        UsageError: see `class_names`. What `before_weights` raises is raised as it is.
    """
    target = check_device(device)
    if read is None:
        cfg = load_config(config, cfg_options)
        family = find_family(cfg, product)
    else:
        cfg, family = copy.deepcopy(read[0]), read[1]
    try:
        rule = family.preprocess_rule(cfg)
        check_rule(rule.to_json(), '')
    except Mm2OnnxError as error:
        if isinstance(error, ConfigError) and not str(error).startswith(f'{cfg.filename}:'):
            raise ConfigError(f'{cfg.filename}: {error}') from error
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        cause = error if isinstance(error, Mismatch) else f'{type(error).__name__}: {error}'
        raise ConfigError(
            f'{cfg.filename}: the test pipeline cannot be described by the exported file: {cause}; correct it'
        ) from error
    if not Path(checkpoint).is_file():
        load_checkpoint(checkpoint)  # raises the error about the path
    unbuilt = copy.deepcopy(cfg)
    model = family.build(cfg)
    settings = family.settings(cfg, model)
    if before_weights is not None:
        before_weights(unbuilt, family, model)
    report = family.load(model, checkpoint, weight_layout)
    classes = class_names(cfg, getattr(report, 'meta', {}), family.num_classes(model))
    model.CLASSES = classes
    model.eval()  # by itself, since the `train` of some detectors returns None
    attributes = ((part, *entry) for part in model.modules() for entry in vars(part).items())
    if any(callable(value) and callable(getattr(type(part), name, None)) for part, name, value in attributes):
        # a function that a part holds runs the weights of this model in a copy, too; a trace takes them as
        # constants if they need no gradients
        model.requires_grad_(False)
    return Deployment(
        cfg=cfg,
        config=config,
        cfg_options=dict(cfg_options or {}),
        family=family,
        model=model.to(target),
        checkpoint=checkpoint,
        checkpoint_sha256=sha256_file(checkpoint),
        classes=classes,
        rule=rule,
        settings=settings,
        report=report,
        unbuilt_cfg=unbuilt,
    )


def check_options(options: Options, cfg: Any, family: Family, model: torch.nn.Module) -> Options:
    """Return the options of an export with what the user left open filled in by `resolve`.

    Values that no model can have were refused by `Options.check` before, when the command line, config or
    file was read.

    Args:
        options: options of the export.
        cfg: mmcv's config of the model.
        family: family of the model.
        model: upstream's model; its weights do not matter.

    Raises:
        UsageError: names an option that this model cannot have, or a height or width below the least with
            which a file of any size can be traced.
        ConfigError: the family cannot export a setting of the config.
    """
    resolved = resolve(options, model, family.preprocess_rule(cfg))
    family.check(cfg, resolved)
    if family.samples == 'images' and resolved.dynamic:
        smallest = family.picture(model, resolved).smallest
        if min(resolved.height, resolved.width) < smallest:
            raise UsageError(
                f'--shape {resolved.height} {resolved.width}: a file of any size takes sides of at least '
                f'{smallest} pixels for this model, and is traced with a size that it takes'
            )
    return resolved


def resolve(options: Options, model: torch.nn.Module, rule: PreprocessRule) -> Options:
    """Return the options with values in place of those that the user left open.

    Opset 0 becomes that of `resolve_opset` for `model`, which also says what it raises. Height and width 0
    become the size, in pixels, of a padded picture of the config's test pipeline, which `rule` states: of a
    landscape picture that fills the test scale if the pipeline keeps its ratio, and of one of 640 x 640 if it
    has no scale. `group_norm` '' of a float32 file becomes that of `default_group_norm`. Options that lack
    one of these stay without it; `rule` may be that of other samples if they have no height.
    """
    options, changes = resolve_opset(options, model), {}
    if options.get('height') == 0 and options.width == 0:
        long_edge, short_edge = max(rule.img_scale or (640, 640)), min(rule.img_scale or (640, 640))
        is_stretched = rule.img_scale is not None and not rule.keep_ratio
        height, width = rule.resized_shape(1, 1) if is_stretched else (short_edge, long_edge)
        changes['height'], changes['width'] = rule.size or rule.padded_shape(height, width)
    if options.get('group_norm') == '' and options.precision == 'fp32':
        changes['group_norm'] = default_group_norm(model)
    return options.replace(**changes)


def prepare_fixed(rule: PreprocessRule, image_bgr: np.ndarray, height: int, width: int) -> PreparedImage:
    """Prepare `image_bgr`, (h, w, 3) uint8, for an input of exactly `height` x `width` pixels.

    The image is resized to fit and padded, or resized to just that size if `rule` does not keep the ratio, or
    warped about its middle, scaled by the widths (`resize` of `rule`). `rule` decides about the rest:
    interpolation, colours, normalisation.
    """
    return dataclasses.replace(rule, size=(height, width)).apply(image_bgr)


def rule_of(deployment: Deployment, options: Options) -> Any:
    """Return the rule by which samples become the input of a file with these options.

    It is the deployment's; if the options have a `dynamic` that is off, its `size` is their height and width.
    """
    if options.get('dynamic', True):
        return deployment.rule
    return dataclasses.replace(deployment.rule, size=(options.height, options.width))


def with_normalisation(
    rule: PreprocessRule, mean: Sequence[float] | None, std: Sequence[float] | None
) -> PreprocessRule:
    """Return the config's rule with `mean` and `std`, three pixel values each, in the input's channel order.

    None keeps the config's.
    """
    options = dict(mean=mean, std=std)
    return dataclasses.replace(rule, **{name: tuple(value) for name, value in options.items() if value})
