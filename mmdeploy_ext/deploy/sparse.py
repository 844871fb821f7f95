"""From config and checkpoint to a file of a sparse backbone: what `export_scn.py` and `benchmark.py` call."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import PREFIX
from mmdeploy_ext.core.config import config_sha256, load_config
from mmdeploy_ext.core.errors import CheckpointError, ConfigError, UsageError
from mmdeploy_ext.core.files import atomic_path, check_writable, sha256_file
from mmdeploy_ext.families.base import BACKBONE, find_family
from mmdeploy_ext.sparse.contract import order_of_name
from mmdeploy_ext.sparse.fold import fold
from mmdeploy_ext.sparse.order import reorder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from mmdeploy_ext.contract.option import Options
    from mmdeploy_ext.families.sparse import EncoderSettings, SparseFamily
    from mmdeploy_ext.inputs.points import VoxelRule
    from mmdeploy_ext.sparse.ir import SparseGraph
    from mmdeploy_ext.sparse.ranges import Ranges
    from mmdeploy_ext.weights.sparse_checkpoint import LoadReport

    BeforeWeights = Callable[[Any, SparseFamily, EncoderSettings], None]

DEFAULT_NAME = 'lidar.backbone'


@dataclasses.dataclass
class SparseDeployment:
    """A model with a sparse backbone and its weights.

    Attributes:
        cfg: the mmcv config, overrides applied.
        config: its path.
        cfg_options: the overrides.
        family: the family that claims it.
        model: with its weights, in evaluation mode.
        settings: how the encoder reads its voxels.
        rule: how points become voxels.
        checkpoint: the path of the weights.
        checkpoint_sha256: their hash.
        report: what the loader found in them.
    """

    cfg: Any
    config: str
    cfg_options: dict[str, Any]
    family: SparseFamily
    model: torch.nn.Module
    settings: EncoderSettings
    rule: VoxelRule
    checkpoint: str
    checkpoint_sha256: str
    report: LoadReport

    @property
    def config_sha256(self) -> str:
        """Hash of the model of the config: a sparse backbone depends on nothing else of it."""
        return config_sha256(dict(model=self.cfg.model, test_pipeline=[dict(type='points')]))

    def trace(self) -> SparseGraph:
        """Return the encoder's graph in its own order, BatchNorm and Relu as nodes.

        Raises:
            ConfigError: the encoder gives another shape than the config says.
        """
        from mmdeploy_ext.exporting.sparse.trace import trace

        settings = self.settings
        graph = trace(
            self.family.encoder(self.model),
            order=settings.order,
            spatial_shape=settings.spatial_shape,
            in_channels=settings.in_channels,
        )
        wanted = settings.output_shape
        if wanted is not None and tuple(wanted) != graph.output_shape:
            raise ConfigError(
                f'{self.config}: the encoder gives {list(graph.output_shape)}, what follows it takes '
                f'{list(wanted)}; correct sparse_shape, voxel_size or the channels of the next layer'
            )
        return graph


def load(
    config: str,
    checkpoint: str,
    cfg_options: Mapping[str, Any] | None = None,
    weight_layout: str = 'auto',
    before_weights: BeforeWeights | None = None,
) -> SparseDeployment:
    """Read config and checkpoint.

    Args:
        config: path of the config.
        checkpoint: path of the weights.
        cfg_options: overrides of the config.
        weight_layout: of the convolutions in the checkpoint, see `sparse.checkpoint.load_backbone`.
        before_weights: called with cfg, family and settings before the weights are read, to refuse options.

    Raises:
        UsageError: one of its subclasses says what is wrong with which file.
    """
    cfg = load_config(config, cfg_options)
    family = find_family(cfg, BACKBONE)
    if not Path(checkpoint).is_file():
        raise CheckpointError(f'{checkpoint}: no such checkpoint file')
    model = family.build(cfg)
    settings = family.settings(cfg, model)
    if before_weights is not None:
        before_weights(cfg, family, settings)
    report = family.load(model, checkpoint, weight_layout)
    return SparseDeployment(
        cfg,
        config,
        dict(cfg_options or {}),
        family,
        model.eval(),
        settings,
        family.preprocess_rule(cfg),
        checkpoint,
        sha256_file(checkpoint),
        report,
    )


def resolve(options: Options, family: SparseFamily) -> Options:
    """Fill in what the user left open."""
    return options if options.order else options.replace(order=family.orders[0])


def has_precision(options: Options) -> bool:
    """Return whether a file gets precision attributes."""
    return bool(options.precision or options.layer_precision)


def default_file(options: Options) -> str:
    """Return the name of a file when none was given; the order is part of it."""
    kind = '' if options.target == 'libspconv' else 'portable.'
    return f'{DEFAULT_NAME}.{kind}{options.order}.onnx'


def check_target(options: Options, path: str) -> None:
    """Refuse a file name before the weights load.

    Raises:
        UsageError: it cannot be written, or says another coordinate order.
    """
    named = order_of_name(path)
    if named and named != options.order:
        raise UsageError(
            f'--output-file {path}: the name says {named}, the order is {options.order}; correct the name or '
            f'give --order {named}'
        )
    check_writable(path)


def make_graph(
    traced: SparseGraph,
    options: Options,
    family: SparseFamily,
    ranges: Ranges | None = None,
    checkpoint_sha256: str = '',
) -> SparseGraph:
    """Return the graph as the file has it.

    Args:
        traced: of `SparseDeployment.trace`.
        options: resolved.
        family: for the layers that its reference exporter keeps in fp16.
        ranges: of the quantisers; int8 needs them.
        checkpoint_sha256: to refuse the ranges of other weights by name.

    Raises:
        UsageError: ranges are missing or of another network; a pattern matches no layer.
        ExportError: something that cannot be folded.
    """
    graph = reorder(fold(traced, options.fold, fp16_modules(options, family)), options.order)
    if has_precision(options):
        from mmdeploy_ext.sparse.precision import apply_precision

        if ranges is not None:
            ranges.check(graph, checkpoint_sha256)
        graph = apply_precision(graph, options.precision or 'fp16', overrides(graph, options, family), ranges)
    if options.output_bound:
        graph = with_bound(graph, options.output_bound)
    return graph


def fp16_modules(options: Options, family: SparseFamily) -> tuple[str, ...]:
    """Return the convolutions that the reference's INT8 file has folded in fp16, whatever `options.fold`."""
    return family.int8_reference().fp16_folded if options.int8_fp16_io else ()


def overrides(graph: SparseGraph, options: Options, family: SparseFamily) -> dict[str, tuple[str, str]]:
    """Return pattern -> (precision, output precision), the user's own after those of the reference."""
    from mmdeploy_ext.sparse.precision import fp16_ends

    found = {}
    if options.int8_fp16_io:
        found.update(family.precision_overrides() or fp16_ends(graph))
    for pattern, precision, output_precision in options.layer_precision:
        found.pop(pattern, None)  # the last one given counts, and stands last
        found[pattern] = (precision, output_precision)
    return found


def with_bound(graph: SparseGraph, output_bound: int) -> SparseGraph:
    """Return the graph with another output bound on every convolution."""
    names = {node.name for node in graph.convolutions()}
    nodes = tuple(
        dataclasses.replace(node, output_bound=output_bound) if node.name in names else node
        for node in graph.nodes
    )
    return dataclasses.replace(graph, nodes=nodes)


def metadata_props(
    deployment: SparseDeployment, options: Options, ranges: Ranges | None = None
) -> dict[str, str]:
    """Return what the file says about itself: one JSON value per key. No engine reads it."""
    from mmdeploy_ext.core.versions import versions

    values = dict(
        family=deployment.family.name,
        form=options.target,
        options=dict(options.to_json(), cfg_options=_plain(deployment.cfg_options)),
        voxels=deployment.rule.to_json(),
        config=Path(deployment.config).name,
        config_sha256=deployment.config_sha256,
        checkpoint_sha256=deployment.checkpoint_sha256,
        versions=versions(),
        **(dict(ranges=ranges.to_json()) if ranges else {}),
    )
    return {PREFIX + name: json.dumps(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def write_file(
    deployment: SparseDeployment,
    graph: SparseGraph,
    options: Options,
    path: str,
    ranges: Ranges | None = None,
) -> None:
    """Write a graph to a file of its target, whole or not at all.

    Raises:
        ExportError: something that the target cannot say.
        Mm2OnnxError: the file cannot be written.
    """
    props = metadata_props(deployment, options, ranges)
    if options.target == 'libspconv':
        from mmdeploy_ext.sparse.libspconv import write

        write(graph, path, props)
        return
    from mmdeploy_ext.sparse.portable import to_onnx

    model = to_onnx(graph, form=options.form, metadata=props)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def export_file(
    deployment: SparseDeployment, options: Options, path: str, ranges: Ranges | None = None
) -> tuple[SparseGraph, float]:
    """Trace, fold and write.

    Returns:
        The graph that was written and the seconds it took.
    """
    start = time.perf_counter()
    graph = make_graph(deployment.trace(), options, deployment.family, ranges, deployment.checkpoint_sha256)
    write_file(deployment, graph, options, path, ranges)
    return graph, time.perf_counter() - start
