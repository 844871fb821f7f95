"""Config and checkpoint to the file of a sparse backbone.

Glossary: order, of the axes of the sparse grid, 'xyz' or 'zyx'; folded, with batch normalisation in the
weights of the convolution; range, the largest absolute value of an INT8 quantiser; bound, the most active
sites of a layer that an engine makes room for.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.files import atomic_path
from mmdeploy_ext.base.source_code import versions
from mmdeploy_ext.exporting.sparse.fold import fold, reorder
from mmdeploy_ext.exporting.sparse.ranges import Ranges, from_amax
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.families.detector import Detector
from mmdeploy_ext.families.detector_files import plain_options
from mmdeploy_ext.families.sparse import SparseFamily
from mmdeploy_ext.runtime.sparse.ir import SparseConvolution, SparseGraph
from mmdeploy_ext.spec.digest import sealed
from mmdeploy_ext.spec.metadata import GRAPH_RULES, PREFIX
from mmdeploy_ext.spec.options import Options


def build(detector: Detector) -> None:
    """Build as `detector.build`, and read the settings."""
    detectors.build(detector)
    read_settings(detector)


def read_settings(detector: Detector) -> None:
    """Read how a built encoder reads its voxels; the config's model alone decides on the results.

    Raises ConfigError for grids that disagree.
    """
    cfg = detector.cfg
    detector.settings = detector.family.settings(cfg, detector.model)
    detector.decisive = dict(model=cfg.model, test_pipeline=[dict(type='points')])


def load_weights(detector: Detector) -> None:
    """Load the weights of the encoder, and of the rest of the model if the checkpoint has them."""
    detector.report = detector.family.load(detector.model, detector.checkpoint, detector.weight_layout)
    detectors.finish_loading(detector)


def load(
    config: str | Path,
    checkpoint: str | Path,
    cfg_options: Mapping[str, Any] | None = None,
    weight_layout: str = 'auto',
) -> Detector:
    """Return the backbone of a config with its weights; `weight_layout` as in `detector.read_config`."""
    detector = detectors.read_config(
        config, checkpoint, cfg_options, product=BACKBONE, weight_layout=weight_layout
    )
    build(detector)
    load_weights(detector)
    return detector


def trace(detector: Detector) -> SparseGraph:
    """Return the graph of the encoder in its own order, with BatchNorm and Relu as nodes.

    Raises ConfigError if the encoder's shape differs from the config's.
    """
    from mmdeploy_ext.exporting.sparse import trace as tracing

    settings = detector.settings
    graph = tracing.trace(
        detector.family.encoder(detector.model),
        order=settings.order,
        spatial_shape=settings.spatial_shape,
        in_channels=settings.in_channels,
    )
    expected = settings.output_shape
    if expected is not None and tuple(expected) != graph.output_shape:
        raise ConfigError(
            f'{detector.config}: the encoder gives {list(graph.output_shape)}, what follows it takes '
            f'{list(expected)}; correct sparse_shape, voxel_size or the channels of the next layer'
        )
    return graph


def has_precision(options: Options) -> bool:
    return bool(options.precision or options.layer_precision)


def has_int8(options: Options) -> bool:
    return options.precision == 'int8' or any('int8' in entry[1:] for entry in options.layer_precision)


def make_graph(
    traced: SparseGraph,
    options: Options,
    family: SparseFamily,
    ranges: Ranges | None = None,
    checkpoint_sha256: str = '',
) -> SparseGraph:
    """Return the graph of `trace` folded, in the order, precision and bound of the options.

    With `layer_precision` and no `precision`, other layers get fp16. INT8 needs `ranges` of this graph with
    these weights.

    Raises:
        UsageError: ranges are missing, of another network or of other weights; a pattern matches no layer.
        ExportError: a layer cannot be folded.
    """
    graph = reorder(fold(traced, options.fold, fp16_modules(options, family)), options.order)
    if has_precision(options):
        from mmdeploy_ext.exporting.sparse.precision import apply_precision

        if ranges is not None:
            ranges.check(graph, checkpoint_sha256)
        graph = apply_precision(graph, options.precision or 'fp16', overrides(graph, options, family), ranges)
    if options.output_bound:
        nodes = tuple(
            dataclasses.replace(node, output_bound=options.output_bound)
            if isinstance(node, SparseConvolution)
            else node
            for node in graph.nodes
        )
        graph = dataclasses.replace(graph, nodes=nodes)
    return graph


def fp16_modules(options: Options, family: SparseFamily) -> tuple[str, ...]:
    """Return the paths of the convolutions that are folded in fp16 in NVIDIA's INT8 file, else ()."""
    return family.int8.fp16_folded if options.int8_fp16_io else ()


def overrides(graph: SparseGraph, options: Options, family: SparseFamily) -> dict[str, tuple[str, str]]:
    """Return pattern -> (precision, output precision); the last matching pattern counts.

    Patterns (`fnmatch`) match node names ('conv3') and module paths ('conv_input.*'). With `int8_fp16_io` the
    patterns of NVIDIA's INT8 file come before the user's.
    """
    from mmdeploy_ext.exporting.sparse.precision import fp16_ends

    precisions = {}
    if options.int8_fp16_io:
        precisions.update(family.int8.precisions or fp16_ends(graph))
    for pattern, precision, output_precision in options.layer_precision:
        precisions.pop(pattern, None)  # the last entry of a pattern counts, and stands last
        precisions[pattern] = (precision, output_precision)
    return precisions


def metadata_props(detector: Detector, options: Options, ranges: Ranges | None = None) -> dict[str, str]:
    """Return the metadata of a file, key with `PREFIX` -> JSON text."""
    values = dict(
        family=detector.family.name,
        form=options.target,
        options=dict(options.to_json(), cfg_options=plain_options(detector.cfg_options)),
        voxels=detector.rule.to_json(),
        config=Path(detector.config).name,
        config_sha256=detector.config_sha256,
        checkpoint_sha256=detector.checkpoint_sha256,
        versions=versions(),
        model_classes=[entry.to_json() for entry in detector.model_classes],
        rules=GRAPH_RULES,
        edits=[],
        **(dict(ranges=ranges.to_json()) if ranges else {}),
    )
    return {PREFIX + name: json.dumps(value) for name, value in values.items()}


def write_file(
    detector: Detector, graph: SparseGraph, options: Options, path: str, ranges: Ranges | None = None
) -> None:
    """Write the graph and its metadata; replaces an older file at once.

    Raises ExportError if the target cannot express a part of the graph.
    """
    props = metadata_props(detector, options, ranges)
    if options.target == 'libspconv':
        from mmdeploy_ext.exporting.sparse.libspconv import write

        write(graph, path, props)
        return
    from mmdeploy_ext.exporting.sparse.portable import to_onnx

    model = to_onnx(graph, form=options.form, metadata=props)
    with atomic_path(path) as temporary:
        temporary.write_bytes(sealed(model.SerializeToString()))


def export_file(
    detector: Detector, options: Options, path: str, ranges: Ranges | None = None
) -> tuple[SparseGraph, float]:
    start = time.perf_counter()
    graph = make_graph(trace(detector), options, detector.family, ranges, detector.checkpoint_sha256)
    write_file(detector, graph, options, path, ranges)
    return graph, time.perf_counter() - start


def checkpoint_ranges(detector: Detector, half: bool | None = None) -> Ranges | None:
    """Ranges in the checkpoint (NVIDIA's PTQ files have some), or None."""
    if not detector.report.ranges:
        return None
    graph = fold(trace(detector), 'fp32')
    ranges = from_amax(graph, detector.report.ranges, detector.checkpoint, detector.checkpoint_sha256)
    ranges.check(graph)
    return ranges.half() if (detector.family.int8.half_ranges if half is None else half) else ranges
