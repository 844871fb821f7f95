"""The base class of model families, and their registry."""

from __future__ import annotations

import abc
import enum
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from mmdeploy_ext.contract import families as declared
from mmdeploy_ext.contract.option import Option, Options
from mmdeploy_ext.core.config import config_sha256
from mmdeploy_ext.core.errors import ConfigError, ModelFileError, UsageError
from mmdeploy_ext.families.building import head_of
from mmdeploy_ext.families.nearest import refusal

if TYPE_CHECKING:  # --help and messages about what is missing come without any of these
    from pathlib import Path

    import numpy as np
    import torch

    from mmdeploy_ext.preprocess.pictures import PreparedImage
    from mmdeploy_ext.weights.checkpoint import Checkpoint


class Claim(enum.IntEnum):
    """How specific the claim of a family to the model of a config is; the most specific one wins."""

    NO = 0
    PART = 1
    """One part of it, e.g. the sparse encoder of a detector."""
    HEAD = 2
    """Its head."""
    DETECTOR = 3
    """The detector as a whole."""


DETECTOR, BACKBONE = 'detector', 'backbone'


class Family(abc.ABC):
    """One family of models: its name, its config, its model, its samples and its graphs.

    Attributes:
        name: of the family, as the metadata keeps it.
        task: module of `proving/tasks` that matches, draws and evaluates its results.
        product: what its files hold: 'detector', or 'backbone' of one.
        samples: what it is run on: 'images', 'frames' of a drive, 'sweeps' of a LiDAR, or 'fused'
            frames of both.
        memory: whether a sample depends on the ones before it.
        files: names of the graphs that its folders hold, in the order in which a sample goes through them;
            empty for families of one file.
        ignored_prefixes: checkpoint keys that inference does not use.
        keep_fp32: patterns of nodes that stay float32 in a float16 file, besides those of every family.
        options: what can be chosen about its graphs, in the order in which the metadata keep it.
        of_config: what configs of the family fix, for the message about an option that it does not have.
        export_tool: that writes its files.
        used_by: form -> command that uses a proven file where its runtime names none (see `runner_of`), with
            {file}, {folder} of it, {config} and {checkpoint}; '' for other forms.
        exports: what it takes, and its page, for the message about a detector of no family.
        near: words in the names of detectors and heads that are of its kind.
    """

    name: ClassVar[str]
    task: ClassVar[str] = ''
    product: ClassVar[str] = DETECTOR
    samples: ClassVar[str]
    memory: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = ()
    ignored_prefixes: ClassVar[tuple[str, ...]] = ()
    keep_fp32: ClassVar[tuple[str, ...]] = ()
    options: tuple[Option, ...] = ()
    of_config: ClassVar[str] = ''
    export_tool: ClassVar[str] = 'tools/deployment/pytorch2onnx.py'
    used_by: ClassVar[Mapping[str, str]] = {'': 'tools/onnx/graph.py show {file}'}
    exports: ClassVar[str] = ''
    near: ClassVar[tuple[str, ...]] = ()

    def choose(self, /, **values: Any) -> Options:
        """Return what is chosen about graphs: these values, and the defaults of the family's other options.

        UsageError: an option that only other families have.
        """
        for name in sorted(values.keys() - {option.name for option in self.options}):
            raise UsageError(self.lacks(name, values))
        return Options(self.options, **values)

    def check_dataset(self, cfg: Any, dataset: Any) -> None:  # noqa: B027 most families have nothing to ask for
        """Refuse a data set, mmdet's of `data.test`, whose samples lack what the models of the family need.

        ConfigError names the key, before a model runs on it.
        """

    def written(self, content: Mapping[str, Any], path: object = 'the file') -> Options:
        """Return the options that a file was exported with, of `options` of its metadata.

        ModelFileError: options that no export of the family has, or one that is missing.
        """
        values = {name: value for name, value in content.items() if name != 'cfg_options'}
        names = [option.name for option in self.options]
        refusals = [self.lacks(name, content) for name in values if name not in names]
        refusals += [f'{name} is missing' for name in names if name not in values]
        if refusals:
            raise ModelFileError(f'{path}: its options fit no export: {refusals[0]}; export it again')
        return self.choose(**values)

    def lacks(self, name: str, values: Mapping[str, Any]) -> str:
        """Return the message about an option that the family does not have, and which families have it."""
        others = [other for other in FAMILIES.values() if other.product == self.product]
        having = sorted(one.name for one in others if name in [option.name for option in one.options])
        known = {option.name: option for option in declared.DETECTOR}
        known |= {option.name: option for other in others for option in other.options}
        if name not in known:
            return f'{name}: no such option; there are {", ".join(option.name for option in self.options)}'
        said = f'{known[name].with_value_of(values)}: family {self.name!r} has no such option'
        said += f'; {self.of_config}' if self.of_config else ''
        verb = 'has' if len(having) == 1 else 'have'
        return f'{said}; {" and ".join(having)} {verb} it' if having else said

    @abc.abstractmethod
    def claims(self, cfg: Any) -> Claim:
        """Return how closely the family knows the model of a config."""

    def check(self, cfg: Any, options: Options) -> None:
        """Refuse, by name, what cannot be exported; runs before the weights load."""
        options.check()

    @abc.abstractmethod
    def build(self, cfg: Any) -> torch.nn.Module:
        """Build the upstream model, without weights, in evaluation mode."""

    def settings(self, cfg: Any, model: torch.nn.Module) -> Any:
        """Return what is known of a part of the model before its weights; None where nothing is asked for.

        ConfigError: the config disagrees with itself.
        """
        return None

    def load(self, model: torch.nn.Module, path: str, weight_layout: str = 'auto') -> Any:
        """Read a checkpoint into the model; return what was found in it, with `meta` where it has some.

        `weight_layout` is of the kernels of sparse convolutions, for families that have some.
        CheckpointError: no such file, damaged, or not of this model.
        """
        from mmdeploy_ext.weights.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(path)
        self.load_weights(model, checkpoint)
        return checkpoint

    def load_weights(self, model: torch.nn.Module, checkpoint: Checkpoint) -> None:
        """Put a checkpoint into the model; every key has to be accounted for.

        CheckpointError: missing or unexpected keys, or shapes that differ.
        """
        from mmdeploy_ext.weights.checkpoint import load_strict

        load_strict(model, checkpoint, self.ignored_prefixes)

    def config_sha256(self, cfg: Any) -> str:
        """Return a hash of what decides the graph: the model and the test pipeline of the config."""
        return config_sha256(cfg)

    @abc.abstractmethod
    def preprocess_rule(self, cfg: Any) -> Any:
        """Return how the config's test pipeline prepares samples: a rule that the metadata keeps."""

    def default_output(self, stem: str, options: Options) -> str:
        """Return where an export goes that was given no name; `stem` is of the config's file name."""
        return stem if self.files else 'tmp.onnx'

    def names_of(self, options: Options) -> tuple[str, ...]:
        """Return the names of the graphs of an export, as `files` has those of the default."""
        return self.files

    def companions(self, model: torch.nn.Module, options: Options) -> Mapping[str, str]:
        """Return name -> text of files that a contract has beside its graphs, in the same folder."""
        return {}

    def companion_differences(self, folder: Path, cfg: Any) -> list[str]:
        """Return what the files of `companions` in a folder say otherwise than a config.

        It reads both by itself, so that a fault of `companions` is not on both sides.
        """
        return []

    def one_file(self, options: Options) -> bool:
        """Return whether an export is one file; otherwise it is a folder of graphs."""
        return not self.files

    def example(self, images: Sequence[PreparedImage], options: Options) -> dict[str, np.ndarray]:
        """Return input name -> what is traced, for graphs that have no example of their own."""
        return {}

    def num_classes(self, model: torch.nn.Module) -> int:
        """Return how many classes the model tells apart."""
        return int(head_of(model).num_classes)

    def postprocess_facts(self, model: torch.nn.Module) -> dict[str, Any]:
        """Return what the metadata tells about what comes after the graphs: decoding, memory."""
        return {}


FAMILIES: dict[str, Family] = {}
"""Name -> family."""
_LATER: list[str] = []
"""Packages that are imported only where no family that is here claims a config: it takes seconds."""
WANTED = {DETECTOR: 'a detector config', BACKBONE: 'a LiDAR model with a sparse encoder'}
LACKING = {
    DETECTOR: 'belongs to no family that mm2onnx exports',
    BACKBONE: 'has no sparse-convolution backbone that mm2onnx exports',
}


def register_family(family: Family) -> Family:
    """Make a family known to the tools; called once by its `family.py`."""
    if family.name in FAMILIES:
        raise ValueError(f'family {family.name!r} is registered already')
    FAMILIES[family.name] = family
    return family


def find_family(cfg: Any, product: str = '') -> Family:
    """Return the family that knows the model of a config most closely.

    `product` is what is asked for, see `Family.product`; '' takes any. ConfigError: none knows it (the
    message names the heads that were found, and the nearest family), or two know it equally well.
    """
    if not cfg.get('model'):
        raise ConfigError(f'{cfg.filename}: has no `model`; expected {WANTED[product or DETECTOR]}')
    claims = {family: family.claims(cfg) for family in FAMILIES.values()}
    asked = {family: claim for family, claim in claims.items() if claim and product in ('', family.product)}
    best = [family for family, claim in asked.items() if claim == max(asked.values())]
    if len(best) > 1:
        raise ConfigError(
            f'{cfg.filename}: the families {" and ".join(family.name for family in best)} claim its model '
            f'equally; correct what their `claims` return'
        )
    if not best and _imported_more():
        return find_family(cfg, product)
    return best[0] if best else _refuse(cfg, product or DETECTOR, [one for one in claims if claims[one]])


def _refuse(cfg: Any, product: str, others: Sequence[Family]) -> NoReturn:
    """Raise the error of a config that no family of a product claims; `others` claim it."""
    what = LACKING[product]
    if others:
        what += f' as a {product}; only its {others[0].product} is exported (tools/deployment/export_scn.py)'
    raise refusal(cfg, [family for family in FAMILIES.values() if family.product == product], what)


def import_later(package: str) -> None:
    """Name a package whose import registers families."""
    _LATER.append(package)


def _imported_more() -> bool:
    """Import the packages that were named; return whether there was one that can be imported."""
    found = False
    while _LATER:
        try:
            importlib.import_module(_LATER.pop())
            found = True
        except ModuleNotFoundError:  # mmdet3d is not installed: its detectors are refused as unknown
            continue
    return found
