"""ONNX files of a kit: copies of the user's, whose optional inputs became ordinary inputs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import UsageError, named
from mmdeploy_ext.base.files import sha256_onnx
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.passes.for_tensorrt import for_tensorrt
from mmdeploy_ext.proving.provenance import facts_checks
from mmdeploy_ext.spec.digest import check_whole, sealed

if TYPE_CHECKING:
    from mmdeploy_ext.bench.kit.contents import KitGraph
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.spec.metadata import Metadata


def check_facts(detector: Detector, path: str | Path, metadata: Metadata, rule: Any, hint: str = '') -> None:
    """Raise UsageError if a file's classes, preparation or post-processing differ from the model's.

    `hint` ends the message about the preparation.
    """
    for check in facts_checks(detector, metadata, rule):
        if not check.passed:
            advice = hint if check.name.startswith('preprocessing') else ''
            raise UsageError(f'{path}: not {check.name}: {check.detail}; export it again{advice}')


def copy_model(path: str | Path, folder: Path, graph: KitGraph) -> dict[str, str]:
    """Copy an ONNX file with its external data into a kit; return the hash of the user's file."""
    path, target = Path(path), folder / graph.file
    check_whole(path)
    model = files.read(path)
    inputs, weights = (
        {value.name for value in side} for side in (model.graph.input, model.graph.initializer)
    )
    is_fed = inputs & weights <= set(graph.spec.input_names)  # old exporters list all weights as inputs
    changed = for_tensorrt(model) if is_fed else model
    if changed == model:
        shutil.copyfile(path, target)
    else:
        target.write_bytes(sealed(changed.SerializeToString(), path.parent))
    with named(path):
        stored = files.external_files(model, path.parent)
    for file in {*stored.values()}:
        place = folder / file.relative_to(path.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return dict(source_sha256=sha256_onnx(path))
