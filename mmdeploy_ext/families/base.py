"""The base class of families, and the choice of one."""

from __future__ import annotations

import abc
import contextlib
import enum
import functools
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import ConfigError, ModelFileError, UsageError
from mmdeploy_ext.base.source_code import ModelClass, model_classes
from mmdeploy_ext.base.user_modules import import_failure, older_library
from mmdeploy_ext.families.no_family import missing_operators, refusal
from mmdeploy_ext.families.sequence_data import scene_tokens
from mmdeploy_ext.spec.facts import Facts
from mmdeploy_ext.spec.options import Option, Options
from mmdeploy_ext.spec.registry import (
    Registration,
    detector_options,
    find_registration,
    registered,
    registration_of,
)
from mmdeploy_ext.upstream.compat.patches_vendored import lacks_part_of_mmdet
from mmdeploy_ext.upstream.models.building import has_head, head_of, names_of_class

if TYPE_CHECKING:  # --help and messages about missing packages need none of these
    import torch

    from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint


class Claim(enum.IntEnum):
    """How much of a config's model a family claims; the largest claim wins."""

    NO = 0
    TEST_PATH = 1
    """A detector that no other family claims, by a trace of its own test path."""
    PART = 2
    """One part, such as a detector's sparse encoder, or a head that `check` refuses by name."""
    HEAD = 3
    """The head in any detector; `check` refuses unsupported other parts."""
    DETECTOR = 4
    """The whole detector."""


DETECTOR, BACKBONE = 'detector', 'backbone'
"""Values of `Family.product`."""
ABSENT = '(missing)'
"""Stands in `Family.expects` for a setting that a config does not have."""


def section_of(cfg: Any, path: str) -> Mapping[str, Any]:
    """Return the section of a config's `model` at a dotted path; {}: there is none."""
    section = cfg.model
    for part in path.split('.') if path else ():
        section = section.get(part) if isinstance(section, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def check_settings(cfg: Any, expects: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ConfigError for all settings of a config that have another value than `Family.expects`."""
    wrong = []
    for path, supported in expects.items():
        place, _, name = path.rpartition('.')
        value = section_of(cfg, place).get(name, ABSENT)
        if value not in supported:
            values = ' or '.join(repr(one) for one in supported if one != ABSENT)
            wrong.append(f'model.{path}={value if value == ABSENT else repr(value)}, expected {values}')
    if wrong:
        raise ConfigError(f'{cfg.filename}: {"; ".join(wrong)}')


class Family(abc.ABC):
    """How to read configs, weights and samples of similar models, and make their graphs.

    Attributes:
        name: name in the metadata of files.
        task: a key of `tasks.TASKS`, or the dotted name of a module with the same functions; 'bev' for
            backbones (maps are drawn, not matched).
        product: 'detector' or 'backbone'.
        samples: 'images', 'frames' (cameras on a drive), 'sweeps' (LiDAR) or 'fused' (cameras, LiDAR or
            both).
        memory: whether results of some models depend on earlier samples.
        files: names of an export's graphs in the order of use; () for one file.
        class_names: names by label of results that are not data set objects; its names are unused.
        expects: setting below `model`, as a dotted path -> its supported values; `ABSENT` is one of them if
            the setting may be missing.
        ignored_prefixes: prefixes of checkpoint keys that inference does not use.
        options: of an export, in metadata order.
        untraced: names of methods that graphs or runtime replace. `PART.NAME` restricts a name
            to parts by a path pattern, as in 'bbox_head.forward', or by a class or base class;
            '.forward' is the model's own. A verdict lists user overrides of these methods.
    """

    name: ClassVar[str]
    task: ClassVar[str] = ''
    product: ClassVar[str] = DETECTOR
    samples: ClassVar[str] = 'images'
    memory: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = ()
    class_names: ClassVar[tuple[str, ...]] = ()
    expects: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    ignored_prefixes: ClassVar[tuple[str, ...]] = ()
    options: tuple[Option, ...] = ()
    untraced: ClassVar[tuple[str, ...]] = ()

    def choose(self, /, **values: Any) -> Options:
        """Return options with these values, unchecked, and defaults for the rest.

        Raises UsageError for an unknown option.
        """
        for name in sorted(values.keys() - {option.name for option in self.options}):
            raise UsageError(missing_option_message(self, name, values))
        return Options(self.options, **values)

    def check_dataset(self, cfg: Any, dataset: Any) -> None:  # noqa: B027 most families have nothing to ask for
        """Raise ConfigError, naming the key, if a data set lacks a model input."""

    def scenes(self, dataset: Any) -> list[str] | None:
        """Return the scene of each sample, or None without a memory; DataError: the infos have none."""
        return scene_tokens(dataset) if self.memory else None

    @abc.abstractmethod
    def claims(self, cfg: Any) -> Claim:
        """Return how much of a config's model the family claims."""

    def for_config(self, cfg: Any) -> Family:
        """Return the family's object for a claimed config.

        A family with several kinds of results (boxes, masks, maps) has one object for each. A config of
        another repository is translated in place; `cfg.as_read` keeps the original.
        """
        return self

    def check(self, cfg: Any, options: Options) -> None:
        """Refuse an unsupported model before the weights load; by default check what it `expects`.

        Raises:
            ConfigError: names the entry of the config.
            UsageError: an option does not fit the model.
        """
        check_settings(cfg, self.expects)

    def sorted_levels(self, cfg: Any, options: Options) -> Mapping[str, Sequence[int]]:
        """Return key of a limit of a top-k in the config -> rows that it sorts, per level, for `--for`."""
        return {}

    def most_candidates(self, cfg: Any, options: Options) -> Mapping[str, int]:
        """Return option of `LIMITS` -> most candidates of an image at the size of `options`."""
        return {}

    @abc.abstractmethod
    def build(self, cfg: Any) -> torch.nn.Module:
        """Return the PyTorch model of a config without weights, in evaluation mode."""

    def load_weights(self, model: torch.nn.Module, checkpoint: Checkpoint) -> None:
        """Load a checkpoint strictly; keys with one of `ignored_prefixes` may be missing or unexpected.

        Raises CheckpointError for other keys, wrong shapes or types, and weights that are not finite.
        """
        from mmdeploy_ext.upstream.weights.checkpoint import load_strict

        load_strict(model, checkpoint, self.ignored_prefixes)

    @abc.abstractmethod
    def preprocess_rule(self, cfg: Any) -> Any:
        """Return the preprocessing of the test pipeline, stored in the files."""

    def num_classes(self, model: torch.nn.Module) -> int:
        """Return the number of classes of the results; 0 for a backbone."""
        return int((head_of(model) if has_head(model) else model).num_classes)

    def model_classes(self, model: torch.nn.Module) -> tuple[ModelClass, ...]:
        """Return a model's classes outside of installed libraries: the user's and ours."""
        return model_classes(model)

    def facts(self, model: torch.nn.Module) -> Facts:
        """Return thresholds, coders, strides and sizes: an object of the registered class of facts."""
        return Facts()


UPSTREAM_LAYERS = 'mmdeploy_ext.families.common.upstream_layers'
"""Module that registers replacements of layers of mmcv and mmdet in exported copies."""


class Families(dict[str, Family]):
    """Name -> family; a family is imported when its name is looked up."""

    def __missing__(self, name: str) -> Family:
        registration = find_registration(name)
        if registration is None or not registration.family:
            raise KeyError(name)
        importlib.import_module(UPSTREAM_LAYERS)
        self[name] = registration.load_family()
        return self[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the family of this name, or `default`."""
        return self[name] if name in self or registration_of(name).family else default


FAMILIES = Families()
"""Name -> family; `values()` are the imported families."""
LEFT_OUT: dict[str, str] = {}
"""Name of a family that needs a newer mmdet -> its import error."""
NOT_INSTALLED = 'not installed'
"""`library_failure` of a library that is not installed; never shown."""
WANTED = {DETECTOR: 'a detector config', BACKBONE: 'a LiDAR model with a sparse encoder'}
LACKING = {
    DETECTOR: 'belongs to no family that mm2onnx exports',
    BACKBONE: 'has no sparse-convolution backbone that mm2onnx exports',
}
"""Product -> why an unclaimed config is refused."""


def exported_options(family: Family, content: Mapping[str, Any], path: object = 'the file') -> Options:
    """Return the options of a file's export; `content` is the metadata's `options`.

    Raises ModelFileError if an option is missing or unknown to the family.
    """
    values = {name: value for name, value in content.items() if name != 'cfg_options'}
    names = [option.name for option in family.options]
    required = [option.name for option in family.options if not option.rare]
    refusals = [missing_option_message(family, name, content) for name in values if name not in names]
    refusals += [f'{name} is missing' for name in required if name not in values]
    if refusals:
        raise ModelFileError(f'{path}: the options in the file are not valid: {refusals[0]}; export it again')
    return family.choose(**values)


def missing_option_message(family: Family, name: str, values: Mapping[str, Any]) -> str:
    """Return the message about an option that a family lacks."""
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
    if name == 'dynamic_batch' and 'dynamic' in [option.name for option in family.options]:
        message += '; --dynamic-export writes a file of any batch and size'
    if owners:
        message += f'; {" and ".join(owners)} {"has" if len(owners) == 1 else "have"} it'
    return message


def load_families(library: str | None = None) -> None:
    """Import the families that need a library ('mmdet3d'), or no library (''), or all families (None)."""
    for registration in registered().values():
        if library in (None, registration.library):
            _import(registration)


def load_candidates(cfg: Any) -> None:
    """Import families that may claim a config, by detector, heads and their bases."""
    names = _type_names(cfg)
    for registration in registered().values():
        needs_nothing = not registration.claims and not registration.library
        if needs_nothing or names & set(registration.claims):
            _import(registration)


def _import(registration: Registration) -> None:
    if registration.library and library_failure(registration.library):
        return
    try:
        FAMILIES.get(registration.name)
    except (ImportError, AttributeError) as error:
        if not lacks_part_of_mmdet(error):
            raise
        LEFT_OUT[registration.name] = import_failure(error)


def _type_names(cfg: Any) -> set[str]:
    heads = [part for key, part in cfg.model.items() if str(key).endswith('head') and key != 'rpn_head']
    types = [str(part.get('type')) for part in (cfg.model, *heads) if isinstance(part, Mapping)]
    names = set(types)
    with contextlib.suppress(ImportError, AttributeError):  # an older copy: its families report it
        from mmdet.models import builder

        builders = filter(None, (sys.modules.get('mmdet3d.models.builder'), builder))
        for registry in [vars(module)[kind] for module in builders for kind in ('DETECTORS', 'HEADS')]:
            for name in types:
                names.update(names_of_class(registry, name))
    return names


@functools.cache
def library_failure(library: str) -> str:
    """Return a library's import error, or that the repository's copy is too old, or ''."""
    if importlib.util.find_spec(library) is None:
        return NOT_INSTALLED
    if older := older_library(library):
        return f"the repository's own {older} runs; they are written for 1.0.0rc6"
    try:
        importlib.import_module(library)
    except (ImportError, AssertionError) as error:
        return f'{type(error).__name__}: {error}'
    return ''


def find_family(cfg: Any, product: str = '') -> Family:
    """Return the family with the largest claim on a config; '': any product.

    Raises:
        ConfigError: no `model`, or two `test_cfg`; no family claims it (the message names its heads and the
            nearest family); two families claim it equally; or `Family.for_config` refuses it.
    """
    if not cfg.get('model'):
        raise ConfigError(f'{cfg.filename}: has no `model`; expected {WANTED[product or DETECTOR]}')
    if cfg.get('test_cfg') and cfg.model.get('test_cfg'):  # mmdet refuses it without naming them
        raise ConfigError(
            f'{cfg.filename}: has both test_cfg and model.test_cfg; keep only one, so that the keys of '
            'overrides are clear'
        )
    family = claiming_family(cfg, product)
    if family is None:
        refuse(cfg, product or DETECTOR)
    return family.for_config(cfg)


def claiming_family(cfg: Any, product: str = '') -> Family | None:
    """Return the family with the largest claim on a config, or None; ConfigError: two claim it."""
    load_candidates(cfg)
    best = claiming_families(cfg, product)
    if not best:
        load_families()
        best = claiming_families(cfg, product)
    if len(best) > 1:
        raise ConfigError(
            f'{cfg.filename}: the families {" and ".join(family.name for family in best)} claim its model '
            'equally; correct the return values of their `claims`'
        )
    return best[0] if best else None


def claiming_families(cfg: Any, product: str) -> list[Family]:
    """Return the imported families with the largest claim on a config; '': any product."""
    families = [family for family in FAMILIES.values() if product in ('', family.product)]
    claims = {family: family.claims(cfg) for family in families}
    highest = max(claims.values(), default=Claim.NO)
    return [family for family, claim in claims.items() if claim and claim == highest]


def refuse(cfg: Any, product: str) -> NoReturn:
    """Raise ConfigError with the heads of a config that no family claims, and the nearest family."""
    load_families()
    reason = LACKING[product]
    if claiming := [family for family in claiming_families(cfg, '') if family.product != product]:
        reason += f' as a {product}; only its {claiming[0].product} is exported ({tool("export --backbone")})'
    reason += ''.join(f'; {missing}' for missing in missing_operators(cfg.model))
    libraries = {registration.library for registration in registered().values()} - {''}
    failures = {
        library: failure
        for library in sorted(libraries)
        if (failure := library_failure(library)) not in ('', NOT_INSTALLED)
    }
    for library, failure in failures.items():
        reason += f' (families of {library} are not available: {failure})'
    if LEFT_OUT:
        import mmdet

        first, problem = next(iter(LEFT_OUT.values())), 'is too old'
        if 'mmdet.models' not in sys.modules:  # for example a copy without built extensions
            failures['mmdet'], problem = first, 'cannot be imported'
        reason += (
            f' (mmdet {mmdet.__version__} of {Path(mmdet.__file__).parent} {problem} for the families '
            f'{", ".join(LEFT_OUT)}: {first})'
        )
    failures = {
        library: f'{library} cannot be imported: {failure}; install the missing packages'
        for library, failure in failures.items()
        if not older_library(library)
    }
    raise refusal(
        cfg, [family for family in FAMILIES.values() if family.product == product], reason, failures
    )
