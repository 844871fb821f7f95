"""Cases of a model of pictures: the proof's inputs, with PyTorch's tensors and results."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.cli import tracked
from mmdeploy_ext.bench.kit.contents import MODEL, ArrayFolder, KitCase, KitGraph
from mmdeploy_ext.bench.kit.page import write_page
from mmdeploy_ext.bench.kit.writer import check_facts, copy_model
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families.detector import rule_of
from mmdeploy_ext.proving.explain import rounding_of
from mmdeploy_ext.proving.inputs import proof_inputs
from mmdeploy_ext.proving.pictures import InputReference, options_besides_form, read_picture_file
from mmdeploy_ext.spec.comparison import DRAWS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.spec.metadata import Metadata


def write_pictures(detector: Detector, path: str, samples: Collection[Any], folder: Path) -> dict[str, Any]:
    """Write file and cases into a kit; return the manifest's entries.

    `samples` are (title, picture as the rule takes it); the first counts as the traced picture.
    """
    file, options = read_picture_file(detector, path)
    hint = '; if the export used --mean and --std, repeat them here'
    check_facts(detector, path, file.metadata, rule_of(detector, options), hint)
    inputs = proof_inputs(detector, options, list(samples))
    graph = KitGraph('model', MODEL, file.metadata, file.metadata.spec)
    entry = graph.to_json() | copy_model(path, folder, graph)
    entries, arrays = [], ArrayFolder(folder)
    with build_backend('OnnxRuntimeBackend', str(path)) as backend:
        for index, proof_input in enumerate(tracked(inputs, len(inputs), 'PyTorch')):
            reference = InputReference(detector, proof_input)
            case = _case(f'{index:03}', reference, file.metadata)
            entries.append(case.write(arrays, backend.infer(case.inputs)))
            reference.forget()
    is_colour = file.metadata.preprocess.color_type == 'color'  # the page prepares no others
    bars = write_page(folder, graph, detector.family.task) if is_colour else {}
    return dict(file=MODEL, graphs=[entry], cases=entries, frames=[], bars=bars)


def _case(name: str, reference: InputReference, metadata: Metadata) -> KitCase:
    # not every engine has optional inputs
    inputs = metadata.spec.rounded(metadata.spec.with_defaults(reference.feeds_of(metadata)))
    tensors: dict[str, np.ndarray] = {}
    rounding: Mapping[str, np.ndarray] = {}
    code = reference.code
    if any(tensor.compare == 'values' for tensor in metadata.spec.outputs):
        options = options_besides_form(reference.detector, metadata)
        tensors = dict(reference.compute(code.tensors, metadata.form, **options))
        tensors = {name: array for name, array in tensors.items() if name in metadata.spec.output_names}
        if metadata.precision == 'fp32':
            run = functools.partial(code.tensors, reference.feeds, metadata.form, **options)
            rounding = rounding_of(code.model, tensors, run)(DRAWS)
    proof_input = reference.input
    return KitCase(
        name,
        'model',
        proof_input.name,
        tuple(title for title, _ in proof_input.sources),
        {key: np.ascontiguousarray(array) for key, array in inputs.items()},
        {key: np.asarray(array) for key, array in reference.feeds.items() if key not in inputs},
        tensors,
        reference.results,
        metadata.family,
        dict(rounding),
    )
