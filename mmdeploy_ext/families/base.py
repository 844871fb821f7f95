"""What a model family gives to the shared machinery, and the registry of all of them."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import enum
import functools
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from mmdeploy_ext.contract import options as declared
from mmdeploy_ext.contract.option import Option, Options
from mmdeploy_ext.contract.precision import with_half_features
from mmdeploy_ext.contract.spec import DEFAULT_RTOL
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.core.config import test_pipeline
from mmdeploy_ext.core.errors import ConfigError, ModelFileError, UsageError
from mmdeploy_ext.families.nearest import refusal
from mmdeploy_ext.inputs.pipeline_rule import rule_from_pipeline
from mmdeploy_ext.runtime.consumers import runtime_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import torch

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.contract.stages import Stage
    from mmdeploy_ext.inputs.pictures import PreparedImage, PreprocessRule
    from mmdeploy_ext.runtime.detections import Detections, Instances
    from mmdeploy_ext.weights.checkpoint import Checkpoint


class Claim(enum.IntEnum):
    """How closely a family knows the model of a config; the closest one gets it."""

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
        task: module of `verify/tasks` that matches, draws and evaluates its results.
        product: what its files hold: 'detector', or 'backbone' of one.
        samples: what it is run on: 'images', 'frames' of a drive, or 'sweeps' of a LiDAR.
        memory: whether a sample depends on the ones before it.
        files: names of the graphs that its folders hold, in the order in which a sample goes through them;
            empty for families of one file.
        ignored_prefixes: checkpoint keys that inference does not use.
        keep_fp32: patterns of nodes that stay float32 in a float16 file, besides those of every family.
        options: what can be chosen about its graphs, in the order in which the metadata keep it.
        of_config: what configs of the family fix, for people who give an option that it does not have.
        export_tool: that writes its files.
        used_by: form -> command that uses a proven file where its runtime names none (see `runner_of`), with
            {file}, {config} and {checkpoint}; '' for other forms.
        exports: what it takes, and its page, for people whose detector is of no family.
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

        Raises:
            UsageError: an option that only other families have.
        """
        for name in sorted(values.keys() - {option.name for option in self.options}):
            raise UsageError(self.lacks(name, values))
        return Options(self.options, **values)

    def written(self, content: Mapping[str, Any], path: object = 'the file') -> Options:
        """Return the options that a file was exported with.

        Args:
            content: `options` of its metadata. Files of older versions have options of other families, too,
                at their defaults.
            path: the file, for the message.

        Raises:
            ModelFileError: options that no export of the family has.
        """
        own = {option.name for option in self.options}
        values = {name: value for name, value in content.items() if name in own}
        every = {option.name: option.default for other in FAMILIES.values() for option in other.options}
        for name in content.keys() - own - {'cfg_options'}:
            if name not in every or content[name] != every[name]:
                said = self.lacks(name, content)
                raise ModelFileError(f'{path}: its options are none of an export: {said}; export it again')
        return self.choose(**values)

    def lacks(self, name: str, values: Mapping[str, Any]) -> str:
        """Return the message about an option that the family does not have, and which families have it."""
        others = [other for other in FAMILIES.values() if other.product == self.product]
        having = sorted(one.name for one in others if name in [option.name for option in one.options])
        known = {option.name: option for option in declared.DETECTOR}
        known |= {option.name: option for other in others for option in other.options}
        if name not in known:
            return f'{name}: no such option; there are {", ".join(option.name for option in self.options)}'
        said = f'{known[name].said_of(values)}: family {self.name!r} has no such option'
        said += f'; {self.of_config}' if self.of_config else ''
        verb = 'has' if len(having) == 1 else 'have'
        return f'{said}; {" and ".join(having)} {verb} it' if having else said

    @abc.abstractmethod
    def claims(self, cfg: Any) -> Claim:
        """Return how closely the family knows the model of a config."""

    @abc.abstractmethod
    def build(self, cfg: Any) -> torch.nn.Module:
        """Build the upstream model, without weights, in evaluation mode."""

    def load_weights(self, model: torch.nn.Module, checkpoint: Checkpoint) -> None:
        """Put a checkpoint into the model; every key has to be accounted for.

        Raises:
            CheckpointError: missing or unexpected keys, or shapes that differ.
        """
        from mmdeploy_ext.weights.checkpoint import load_strict

        load_strict(model, checkpoint, self.ignored_prefixes)

    @abc.abstractmethod
    def preprocess_rule(self, cfg: Any) -> Any:
        """Return how the config's test pipeline prepares samples: a rule that the metadata keeps."""

    def default_output(self, stem: str, options: Options) -> str:
        """Return where an export goes that was given no name; `stem` is of the config's file name."""
        return stem if self.files else 'tmp.onnx'

    def one_file(self, options: Options) -> bool:
        """Return whether an export is one file; otherwise it is a folder of graphs."""
        return not self.files

    def example(self, images: Sequence[PreparedImage], options: Options) -> dict[str, np.ndarray]:
        """Return input name -> what is traced, for graphs that have no example of their own."""
        return {}

    def num_classes(self, model: torch.nn.Module) -> int:
        """Return how many classes the model tells apart; a backbone tells none."""
        return 0

    def postprocess_facts(self, model: torch.nn.Module) -> dict[str, Any]:
        """Return what the metadata tells about what comes after the graphs: decoding, memory."""
        return {}


class ImageFamily(Family):
    """Export, references and post-processing of one family of single-image models.

    Attributes:
        forms: what its graphs may contain of the post-processing.
        own_options: what it has besides the options of every family of images.
    """

    samples = 'images'
    forms: ClassVar[tuple[str, ...]]
    own_options: ClassVar[tuple[Option, ...]] = ()

    @property
    def options(self) -> tuple[Option, ...]:
        """See `Family`."""
        form, *others = declared.IMAGE
        return (dataclasses.replace(form, choices=self.forms), *others, *self.own_options)

    def build(self, cfg: Any) -> torch.nn.Module:
        """See `Family.build`: mmdet's detector, without the weights that training would start from."""
        from mmdet.models import build_detector

        model_cfg = cfg.model.copy()
        model_cfg.pretrained = None
        if model_cfg.get('backbone', {}).get('init_cfg'):
            model_cfg.backbone.init_cfg = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # mmdet 2.28.2 warns of its own code
                return build_detector(model_cfg, test_cfg=cfg.get('test_cfg')).eval()
        except Exception as error:
            raise ConfigError(
                f'{cfg.filename}: the model cannot be built: {type(error).__name__}: {error}'
            ) from error

    def preprocess_rule(self, cfg: Any) -> PreprocessRule:
        """See `Family.preprocess_rule`."""
        return rule_from_pipeline(test_pipeline(cfg))

    @abc.abstractmethod
    def check(self, cfg: Any, options: Options) -> None:
        """Refuse, by name, what cannot be exported; runs before the weights load."""

    @abc.abstractmethod
    def spec(self, model: torch.nn.Module, options: Options) -> GraphSpec:
        """Return the contract of the graph."""

    def graphs(self, model: torch.nn.Module, options: Options) -> list[Graph]:
        """Return the one graph, whose stages are made when they are asked for."""
        spec = self.spec(model, options)
        spec = with_half_features(spec) if options.fp16_io else spec
        return [Graph(options.form, None, spec, make=functools.partial(self.stages, model, options))]

    def example(self, images: Sequence[PreparedImage], options: Options) -> dict[str, np.ndarray]:
        """See `Family`: as many images as the batch, of those given in turn."""
        return self.feeds([images[index % len(images)] for index in range(options.batch)], True)

    def takes(self, model: torch.nn.Module, options: Options, height: int, width: int) -> bool:
        """Return whether a dynamic graph with these options takes images of this size, pixels."""
        return min(height, width) >= self.spec(model, options).inputs[0].smallest

    @abc.abstractmethod
    def stages(self, model: torch.nn.Module, options: Options, fold: bool = True) -> list[Stage]:
        """Return the chain of modules whose composition is the graph.

        Args:
            model: the upstream model with its weights.
            options: what the user chose.
            fold: work on a copy with batch normalisation folded into the convolutions (export);
                False runs the model itself (the `_pth` configs).
        """

    @abc.abstractmethod
    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        """Batch prepared images of one size into graph inputs."""

    def batches(self, images: Sequence[PreparedImage]) -> list[list[int]]:
        """Return which images (indices) one run may take together: all, unless a family has reasons."""
        return [list(range(len(images)))]

    def whole(self, image: PreparedImage) -> tuple[int, int]:
        """Return height and width, pixels, that a graph takes for sizes that are not fed: the input's."""
        return tuple(image.tensor.shape[1:])

    @abc.abstractmethod
    def reference_tensors(
        self, model: torch.nn.Module, feeds: Mapping[str, np.ndarray], form: str, **chosen: Any
    ) -> dict[str, np.ndarray]:
        """Run the unpatched upstream model and return what a graph of this form has to give.

        Args:
            model: of upstream.
            feeds: by name.
            form: of the graph.
            chosen: the other options that the file was exported with.
        """

    def choose_as(
        self,
        model: torch.nn.Module,
        feeds: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        reference: Mapping[str, np.ndarray],
        ties_rtol: float = DEFAULT_RTOL,
    ) -> dict[str, np.ndarray]:
        """Return the reference, of another run or of a dump, with what the engine chose among ties.

        Args:
            model: of upstream.
            feeds: by name.
            outputs: of the engine on trial.
            reference: output name -> array.
            ties_rtol: values this close, of the largest one, are a tie.
        """
        return dict(reference)

    def interchangeable_zeros(
        self, model: torch.nn.Module, feeds: Mapping[str, np.ndarray], **chosen: Any
    ) -> dict[str, np.ndarray]:
        """Return output name -> array: the other value that a zero may have without deciding anything.

        Ties: either side may have zero there and the other one this value; NaN where there is no tie.
        """
        return {}

    def candidate_bounds(
        self, model: torch.nn.Module, feeds: Mapping[str, np.ndarray], slack: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and largest right value (B,) of the output `candidates`.

        Args:
            model: of upstream.
            feeds: by name.
            slack: scores this close to the threshold may be on either side.
        """
        raise NotImplementedError(f'{self.name}: has no files with a limit of candidates')

    @contextlib.contextmanager
    def raised_result_limit(self, model: torch.nn.Module) -> Iterator[None]:
        """Let upstream's test path give twice as many results per image, to see what was cut off."""
        heads = (getattr(model, key, None) for key in HEAD_KEYS)  # mmdet's SOLO has a bbox_head of None
        config = next(head for head in heads if head is not None).test_cfg
        most = config.max_per_img
        config.max_per_img = 2 * most if most > 0 else most
        try:
            yield
        finally:
            config.max_per_img = most

    def results_left_out(self, options: Mapping[str, Any]) -> str:
        """Return why a proof does not compare the results of a file with these options; '' where it does."""
        return ''

    @abc.abstractmethod
    def reference_detections(
        self, model: torch.nn.Module, images: Sequence[PreparedImage], rescale: bool
    ) -> list[Detections] | list[Instances]:
        """Run upstream's own test path and return its detections per image."""

    def detections(
        self, metadata: Metadata, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
    ) -> list[Detections] | list[Instances]:
        """Turn outputs of a graph of any form into detections as the family's runtime does, without torch."""
        return runtime_of(self.name).detections(metadata, outputs, feeds)


HEAD_KEYS = ('bbox_head', 'mask_head', 'pts_bbox_head')
FAMILIES: dict[str, Family] = {}
"""Name -> family."""
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

    Args:
        cfg: with a `model`.
        product: what is asked for, see `Family.product`; '' takes any.

    Raises:
        ConfigError: none knows it (the message names the heads that were found, and the nearest family), or
            two know it equally well.
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
    return best[0] if best else _refuse(cfg, product or DETECTOR, [one for one in claims if claims[one]])


def _refuse(cfg: Any, product: str, others: Sequence[Family]) -> NoReturn:
    """Raise the error of a config that no family of a product claims; `others` claim it."""
    what = LACKING[product]
    if others:
        what += f' as a {product}; only its {others[0].product} is exported (tools/deployment/export_scn.py)'
    raise refusal(cfg, [family for family in FAMILIES.values() if family.product == product], what)
