"""ONNX files of a kit: copies of the user's, whose optional inputs became ordinary inputs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.digest import check_whole, sealed
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import external_locations, sha256_file
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.graph.passes.for_tensorrt import for_tensorrt
from mmdeploy_ext.proving.provenance import facts_checks

if TYPE_CHECKING:
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.families.model import Model
    from mmdeploy_ext.kit.contents import KitGraph


def check_facts(deployment: Model, path: str | Path, metadata: Metadata, rule: Any) -> None:
    """Raise UsageError if a file's classes, preparation or post-processing differ from the model's."""
    for check in facts_checks(deployment, metadata, rule):
        if not check.passed:
            hint = ''
            if check.name.startswith('preprocessing') and deployment.family.samples == 'images':
                hint = '; of an export with --mean and --std give these here, too'
            raise UsageError(f'{path}: not {check.name}: {check.detail}; export it again{hint}')


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
        target.write_bytes(sealed(changed.SerializeToString()))
    for name in external_locations(path):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / name, folder / name)
    return dict(source_sha256=sha256_file(path))
