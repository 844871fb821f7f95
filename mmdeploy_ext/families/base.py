"""The base class of model families, and their registry."""

from __future__ import annotations

import abc
import contextlib
import enum
import functools
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from mmdeploy_ext.compat.patches_vendored import lacks_part_of_mmdet
from mmdeploy_ext.contract.facts import Facts
from mmdeploy_ext.contract.options import Option, Options
from mmdeploy_ext.contract.registry import (
    Registration,
    detector_options,
    registered,
    registration_of,
)
from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import ConfigError, ModelFileError, UsageError
from mmdeploy_ext.core.source_code import ModelClass, model_classes
from mmdeploy_ext.core.user_modules import import_failure
from mmdeploy_ext.families.missing_kernels import missing_operators
from mmdeploy_ext.families.nearest import refusal
from mmdeploy_ext.models.building import has_head, head_of, names_of_class

if TYPE_CHECKING:  # --help and messages about what is missing come without any of these
    import torch

    from mmdeploy_ext.weights.checkpoint import Checkpoint


class Claim(enum.IntEnum):
    """How much of a config's model a family claims; `find_family` returns the one that claims most."""

    NO = 0
    PART = 1
    """One part of it, e.g. the sparse encoder of a detector, or a head that `check` refuses by its name."""
    HEAD = 2
    """Its head, whatever the detector around it is; `check` then refuses what the family does not export."""
    DETECTOR = 3
    """The detector as a whole."""


DETECTOR, BACKBONE = 'detector', 'backbone'
"""Values of `Family.product`."""


class Family(abc.ABC):
    """A family of models: how their configs, weights and samples are read, and their graphs made.

    Attributes:
        name: name of the family, as the metadata keeps it.
        task: module that matches and draws its results: a key of `tasks.TASKS`, or the dotted name of
            a module that has the same functions; of a backbone 'bev', whose maps are drawn and not matched.
        product: part of a model that its files hold: 'detector', or 'backbone' of one.
        samples: kind of its samples: 'images', 'frames' of cameras on a drive, 'sweeps' of a LiDAR, or
            'fused' moments of cameras, a LiDAR or both.
        memory: whether the result of a sample depends on earlier ones, at least for some of its configs.
        files: names of the graphs in its folders, in the order in which a sample goes through them; empty for
            families that write one file.
        ignored_prefixes: beginnings of the keys of a checkpoint that inference does not use.
        options: options of its exports, in the order of the metadata.
        untraced: names of methods that its graphs or runtime compute by themselves, of any part of a model:
            before a dot may stand a pattern of the part's path, as in 'bbox_head.forward', or the name of a
            class that it is or derives from; '.forward' is of the model itself. A verdict names those of
            the user.
    """

    name: ClassVar[str]
    task: ClassVar[str] = ''
    product: ClassVar[str] = DETECTOR
    samples: ClassVar[str] = 'images'
    memory: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = ()
    ignored_prefixes: ClassVar[tuple[str, ...]] = ()
    options: tuple[Option, ...] = ()
    untraced: ClassVar[tuple[str, ...]] = ()

    def choose(self, /, **values: Any) -> Options:
        """Return options with these values, by name of the option; the others have the family's defaults.

        Values are checked by `Options.check`, not here. UsageError: an option that the family does not have,
        with the message of `missing_option_message`.
        """
        for name in sorted(values.keys() - {option.name for option in self.options}):
            raise UsageError(missing_option_message(self, name, values))
        return Options(self.options, **values)

    def check_dataset(self, cfg: Any, dataset: Any) -> None:  # noqa: B027 most families have nothing to ask for
        """Refuse a data set whose samples lack an input of the family's models, before a model runs.

        `dataset` is the one that mmdet or mmdet3d built of `data.test` of `cfg`. ConfigError names the key.
        """

    @abc.abstractmethod
    def claims(self, cfg: Any) -> Claim:
        """Return how much of the model of a config, before `for_config`, the family claims."""

    def for_config(self, cfg: Any) -> Family:
        """Return the object of this family for a config that it claims.

        Families whose models give different results (boxes, masks, maps) have one object for each. A config
        of another repository is translated in place; `cfg.as_read` is then the `Config` that was read.
        """
        return self

    def check(self, cfg: Any, options: Options) -> None:  # noqa: B027 some families take whatever they claim
        """Refuse settings that cannot be exported, by name, before the weights load.

        ConfigError for an entry of the config, or for an option that does not go with it; UsageError for
        another option, such as the size.
        """

    @abc.abstractmethod
    def build(self, cfg: Any) -> torch.nn.Module:
        """Build the PyTorch model of a config, without the weights of a checkpoint, in evaluation mode."""

    def load_weights(self, model: torch.nn.Module, checkpoint: Checkpoint) -> None:
        """Put a checkpoint into the model; every key has to be accounted for.

        Keys that begin with one of `ignored_prefixes` may be missing, unexpected, of any type and not finite,
        but not of another shape; `load_strict` has the few others that may be missing or unexpected.
        CheckpointError: others are, or shapes or types differ, or weights are not finite.
        """
        from mmdeploy_ext.weights.checkpoint import load_strict

        load_strict(model, checkpoint, self.ignored_prefixes)

    @abc.abstractmethod
    def preprocess_rule(self, cfg: Any) -> Any:
        """Return the rule by which samples are prepared; the metadata keep it.

        It is that of the config's test pipeline; how points become voxels follows from the config's model.
        """

    def num_classes(self, model: torch.nn.Module) -> int:
        """Return the number of classes of the model's head, or of a model without one; 0 of a backbone."""
        return int((head_of(model) if has_head(model) else model).num_classes)

    def model_classes(self, model: torch.nn.Module) -> tuple[ModelClass, ...]:
        """Return the classes of a model that no installed library defines: the user's, and ours."""
        return model_classes(model)

    def facts(self, model: torch.nn.Module) -> Facts:
        """Return the facts of the model: an object of the class that the family was registered with."""
        return Facts()


UPSTREAM_LAYERS = 'mmdeploy_ext.families.parts.upstream_layers'
"""Module that registers the replacements of layers of mmcv and mmdet in exported copies, for every family."""


class Families(dict[str, Family]):
    """Name -> family; a family is imported when its name is looked up."""

    def __missing__(self, name: str) -> Family:
        registration = registered()[name]
        importlib.import_module(UPSTREAM_LAYERS)
        self[name] = registration.load_family()
        return self[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a family, or the default for a name that nobody has registered."""
        return self[name] if name in self or name in registered() else default


FAMILIES = Families()
"""Name -> family, of every registered one; as a list of values it has those alone that are imported."""
LEFT_OUT: dict[str, str] = {}
"""Name of a family that needs more of mmdet than the imported, older copy has -> the error of its import."""
NOT_INSTALLED = 'not installed'
"""Why a library cannot be imported that is not there; messages leave its families out without a word."""
WANTED = {DETECTOR: 'a detector config', BACKBONE: 'a LiDAR model with a sparse encoder'}
"""Product -> what a config has to be."""
LACKING = {
    DETECTOR: 'belongs to no family that mm2onnx exports',
    BACKBONE: 'has no sparse-convolution backbone that mm2onnx exports',
}
"""Product -> why a config that no family claims is refused."""


def exported_options(family: Family, content: Mapping[str, Any], path: object = 'the file') -> Options:
    """Return the options that a file was exported with.

    `content` is the entry `options` of its metadata, name -> value, of which `cfg_options` is no option
    and is left out; `path` names the file in messages. ModelFileError: one is missing, or the family has
    no such option.
    """
    values = {name: value for name, value in content.items() if name != 'cfg_options'}
    names = [option.name for option in family.options]
    refusals = [missing_option_message(family, name, content) for name in values if name not in names]
    refusals += [f'{name} is missing' for name in names if name not in values]
    if refusals:
        raise ModelFileError(f'{path}: export it again; its options fit no export: {refusals[0]}')
    return family.choose(**values)


def missing_option_message(family: Family, name: str, values: Mapping[str, Any]) -> str:
    """Return the message about an option that the family lacks, and the imported families that have it.

    Families of libraries that were not imported are left out. If no family has such an option, the
    message names those of this one. `values` are name ->
    value of the options that were chosen or are in a file, `name` is one of them.
    """
    load_families('')
    families = [entry for entry in FAMILIES.values() if entry.product == family.product]
    owners = sorted(entry.name for entry in families if name in [option.name for option in entry.options])
    options = {option.name: option for option in detector_options()}
    options |= {option.name: option for entry in families for option in entry.options}
    if name not in options:
        return f'{name}: no such option; there are {", ".join(option.name for option in family.options)}'
    message = f'{options[name].with_value_of(values)}: family {family.name!r} has no such option'
    if of_config := registration_of(family.name).of_config:
        message += f'; {of_config}'
    if owners:
        message += f'; {" and ".join(owners)} {"has" if len(owners) == 1 else "have"} it'
    return message


def load_families(library: str | None = None) -> None:
    """Import the families that were registered with a library, see `contract.registry.register_family`.

    `library` is its import name, such as 'mmdet3d'; '' stands for the families that name none, such as those
    of mmdet; None for all families whose library can be imported.
    """
    for registration in registered().values():
        if library in (None, registration.library):
            _import(registration)


def load_candidates(cfg: Any) -> None:
    """Import the families whose registration names the detector of a config, its head, or a base of them.

    Families that name none and need no library are imported, too.
    """
    names = _type_names(cfg)
    for registration in registered().values():
        needs_nothing = not registration.claims and not registration.library
        if needs_nothing or names & set(registration.claims):
            _import(registration)


def _import(registration: Registration) -> None:
    """Import a family unless its library cannot be imported.

    One that needs a part of mmdet which the imported copy is too old to have is put into `LEFT_OUT`.
    """
    if registration.library and library_failure(registration.library):
        return
    try:
        FAMILIES.get(registration.name)
    except (ImportError, AttributeError) as error:
        if not lacks_part_of_mmdet(error):
            raise
        LEFT_OUT[registration.name] = import_failure(error)


def _type_names(cfg: Any) -> set[str]:
    """Return the types of a detector and its heads (not of proposals), and the names of their bases."""
    heads = [part for key, part in cfg.model.items() if str(key).endswith('head') and key != 'rpn_head']
    types = [str(part.get('type')) for part in (cfg.model, *heads) if isinstance(part, Mapping)]
    names = set(types)
    with contextlib.suppress(ImportError, AttributeError):  # of an older copy: its families say so
        from mmdet.models import builder

        builders = filter(None, (sys.modules.get('mmdet3d.models.builder'), builder))
        for registry in [vars(module)[kind] for module in builders for kind in ('DETECTORS', 'HEADS')]:
            for name in types:
                names.update(names_of_class(registry, name))
    return names


@functools.cache
def library_failure(library: str) -> str:
    """Return why a library cannot be imported, for example beside the mmdet of a repository; '' if it can."""
    if importlib.util.find_spec(library) is None:
        return NOT_INSTALLED
    try:
        importlib.import_module(library)
    except (ImportError, AssertionError) as error:
        return f'{type(error).__name__}: {error}'
    return ''


def find_family(cfg: Any, product: str = '') -> Family:
    """Return the family that claims most of the model of a config, see also `Family.for_config`.

    Families are asked that are imported, or whose registration names the detector or its head; the others
    only if none of these claims the model.

    Args:
        cfg: the config.
        product: product of the family, see `Family.product`; '' takes any.

    Raises:
        ConfigError: there is no `model`, it has a `test_cfg` inside and beside it, no family claims it (the
            message names its heads and the nearest family), two claim most of it equally, or
            `Family.for_config` refuses it.
    """
    if not cfg.get('model'):
        raise ConfigError(f'{cfg.filename}: has no `model`; expected {WANTED[product or DETECTOR]}')
    if cfg.get('test_cfg') and cfg.model.get('test_cfg'):  # mmdet refuses it without their names
        raise ConfigError(
            f'{cfg.filename}: has test_cfg, beside the model, and model.test_cfg; expected one of them: the '
            f'keys of overrides begin as those of the config'
        )
    load_candidates(cfg)
    best = _closest(cfg, product)
    if not best:
        load_families()
        best = _closest(cfg, product)
    if len(best) > 1:
        raise ConfigError(
            f'{cfg.filename}: the families {" and ".join(family.name for family in best)} claim its model '
            f'equally; correct what their `claims` return'
        )
    if not best:
        _refuse(cfg, product or DETECTOR)
    return best[0].for_config(cfg)


def _closest(cfg: Any, product: str) -> list[Family]:
    """Return the imported families whose claim is the highest; empty if all claims are `Claim.NO`."""
    families = [family for family in FAMILIES.values() if product in ('', family.product)]
    claims = {family: family.claims(cfg) for family in families}
    highest = max(claims.values(), default=Claim.NO)
    return [family for family, claim in claims.items() if claim and claim == highest]


def _refuse(cfg: Any, product: str) -> NoReturn:
    """Raise the error of a config that no family of a product claims."""
    reason = LACKING[product]
    if claiming := _closest(cfg, ''):
        reason += f' as a {product}; only its {claiming[0].product} is exported ({tool("export --backbone")})'
    reason += ''.join(f'; {missing}' for missing in missing_operators(cfg.model))
    libraries = {registration.library for registration in registered().values()} - {''}
    failures = {
        library: failure
        for library in sorted(libraries)
        if (failure := library_failure(library)) not in ('', NOT_INSTALLED)
    }
    for library, failure in failures.items():
        reason += f' (families of {library} are left out: {failure})'
    if LEFT_OUT:
        import mmdet

        first, problem = next(iter(LEFT_OUT.values())), 'is too old'
        if 'mmdet.models' not in sys.modules:  # of a copy whose extensions are not built, for example
            failures['mmdet'], problem = first, 'cannot be imported'
        reason += (
            f' (mmdet {mmdet.__version__} of {Path(mmdet.__file__).parent} {problem} for the families '
            f'{", ".join(LEFT_OUT)}: {first})'
        )
    raise refusal(
        cfg, [family for family in FAMILIES.values() if family.product == product], reason, failures
    )
