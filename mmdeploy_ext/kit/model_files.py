"""The ONNX files of a kit: the user's, but optional inputs are ordinary ones, as every engine takes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """Raise UsageError for a file whose classes, preparation or post-processing are not the model's.

    The page of a kit and all runners read these from the file, so that no comparison of arrays shows them.
    `rule` is the rule by which samples become its input.
    """
    for check in facts_checks(deployment, metadata, rule):
        if not check.passed:
            hint = ''
            if check.name.startswith('preprocessing') and deployment.family.samples == 'images':
                hint = '; of an export with --mean and --std give these here, too'
            raise UsageError(f'{path}: not {check.name}: {check.detail}; export it again{hint}')


def copy_model(path: str | Path, folder: Path, graph: KitGraph) -> dict[str, str]:
    """Copy an ONNX file, with its external data, into a kit; return the hash of the user's file.

    TensorRT, OpenVINO and onnxruntime-node take an input with a default for a constant, so that the copy has
    no defaults: the cases feed every input. A Loop without a condition, which TensorRT does not read, gets
    one that is always true. A file that lists weights as inputs, as old exporters do, is copied as it is.
    """
    path, target = Path(path), folder / graph.file
    model = files.read(path)
    inputs, weights = (
        {value.name for value in side} for side in (model.graph.input, model.graph.initializer)
    )
    is_fed = inputs & weights <= set(graph.spec.input_names)  # old exporters list all weights as inputs
    changed = for_tensorrt(model) if is_fed else model
    if changed == model:
        shutil.copyfile(path, target)
    else:
        target.write_bytes(changed.SerializeToString())
    for name in external_locations(path):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / name, folder / name)
    return dict(source_sha256=sha256_file(path))
