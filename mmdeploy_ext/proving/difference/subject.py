"""What a file was exported from: the modules of its graph, and inputs that the exporter did not see."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.proving import fresh as fresh_export
from mmdeploy_ext.proving.inputs.inputs import proof_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.proving.fresh import Reference as FreshReference

JITTER = 0.2
"""How far inputs that no picture gives are from what the exporter saw, relative to their spread."""


@dataclasses.dataclass
class Subject:
    """What a file was exported from.

    Attributes:
        stages: the modules, as they were exported.
        feeds: input name -> array that the exporter did not see.
        reference: a fresh export of the modules, with the file's own options and edits.
        title: of the input, for people.
        beside: what the unpatched model is given besides, by name; of pictures all that any form takes.
    """

    stages: Sequence[Stage]
    feeds: dict[str, np.ndarray]
    reference: FreshReference
    title: str
    beside: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def subject_of(
    deployment: Deployment,
    metadata: Metadata,
    images: Sequence[tuple[str, np.ndarray]] = (),
    feeds: Mapping[str, np.ndarray] | None = None,
) -> Subject:
    """Return what a file was exported from, and inputs that the exporter did not see.

    Args:
        deployment: config and checkpoint.
        metadata: of the file.
        images: (title, BGR picture); for models of single pictures.
        feeds: inputs to use instead.

    Raises:
        UsageError: the graph was not made by an exporter of torch, or is not of this contract.
    """
    if deployment.family.samples == 'images':
        subject = _of_images(deployment, metadata, images)
    else:
        subject = _of_sequence(deployment, metadata)
    if feeds is not None:
        subject = dataclasses.replace(subject, feeds=dict(feeds), title='given inputs')
    metadata.spec.check_feeds(subject.feeds)
    return subject


def _of_images(
    deployment: Deployment, metadata: Metadata, images: Sequence[tuple[str, np.ndarray]]
) -> Subject:
    family, options = deployment.family, deployment.family.written(metadata.options)
    cases = proof_inputs(deployment, options, images)
    chosen = [case for case in cases if not case.traced and not case.left_out][-1]
    given = family.feeds(chosen.images, True)
    given |= family.inner_inputs(deployment.model, given, options.form)
    return Subject(
        family.stages(deployment.model, options),
        {name: given[name] for name in metadata.spec.input_names if name in given},
        fresh_export.of_images(deployment, options, metadata, images[0][1]),
        f'{chosen.name} ({chosen.sources[0][0]})',
        given,
    )


def _of_sequence(deployment: Deployment, metadata: Metadata) -> Subject:
    options = deployment.family.written(metadata.options)
    graphs = {graph.name: graph for graph in deployment.family.graphs(deployment.model, options)}
    graph = graphs.get(metadata.form)
    if graph is None or graph.module is None:
        raise UsageError(
            f'the graph {metadata.form!r} cannot be compared with PyTorch tensor by tensor; of this model '
            f'that goes for {", ".join(name for name, one in graphs.items() if one.module) or "none"}'
        )
    stage = Stage('', graph.module, tuple(graph.spec.input_names), tuple(graph.spec.output_names))
    examples = enumerate(graph.example.items())
    feeds = {name: unseen(tensor.cpu().numpy(), index) for index, (name, tensor) in examples}
    reference = fresh_export.of_graph(deployment, options, metadata, graph)
    return Subject([stage], feeds, reference, 'seeded numbers like those of the trace')


def unseen(example: np.ndarray, seed: int) -> np.ndarray:
    """Return an input like one of the trace, with other values."""
    rng = np.random.default_rng([7, seed])
    spread = float(example.std()) or 1.0
    values = example + JITTER * spread * rng.standard_normal(example.shape)
    return (np.abs(values) if example.min() >= 0 else values).astype(example.dtype)
