"""`kit`: writes a file, inputs, and PyTorch's own results of them, for an engine on another machine."""

from __future__ import annotations

import platform
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.cli import tracked
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import write_json
from mmdeploy_ext.core.versions import versions
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.kit.contents import FORMAT, MANIFEST, MODEL, Case, hashes_of, kit_hash
from mmdeploy_ext.kit.judge import judge
from mmdeploy_ext.kit.readme import write_readme
from mmdeploy_ext.proving.inputs.inputs import proof_inputs
from mmdeploy_ext.proving.ladder import open_proof
from mmdeploy_ext.proving.references import ImageReference

if TYPE_CHECKING:
    from collections.abc import Collection

    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.proving.inputs.inputs import ProofInput

RUNNER = 'run_onnxruntime.py'
"""Script of a kit that needs numpy and onnxruntime alone."""


def write_kit(deployment: Deployment, path: str, samples: Collection[Any], out: str | Path) -> dict[str, Any]:
    """Write the kit of an exported file; return its manifest, the dict that `manifest.json` holds.

    The outputs of ONNX Runtime on this machine are judged first, and no kit is written if they are wrong.

    Args:
        deployment: the model in PyTorch, from config and checkpoint.
        path: of the ONNX file.
        samples: (title, (h, w, 3) uint8 BGR) of each picture; the first counts as the one that was traced.
        out: the folder, which appears whole or not at all; it has to be new or empty.

    Raises:
        UsageError: a model of another kind than single pictures, a folder that is not empty, or a file whose
            results in ONNX Runtime differ from PyTorch's.
        ModelFileError: see `ladder.prove`.
    """
    out = Path(out)
    if deployment.family.samples != 'images':
        raise UsageError(
            f'{path}: kits are of models of single pictures; this one takes {deployment.family.samples}'
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f'{out}: is not empty; name a new folder')
    proof = open_proof(deployment, path, samples)
    inputs = proof_inputs(deployment, proof.export_options, list(samples))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix='.kit') as workspace:
        folder, outputs = Path(workspace, 'kit'), Path(workspace, 'outputs')
        folder.mkdir()
        manifest = _write_contents(proof, path, inputs, folder)
        _run_here(folder, manifest, outputs)
        judgement = judge(folder, outputs, told='ONNX Runtime on the CPU of this machine')
        if not judgement.equal:
            failures = '; '.join(judgement.failures[:3])
            raise UsageError(f"{path}: ONNX Runtime here does not give PyTorch's results: {failures}")
        if out.exists():
            out.rmdir()
        shutil.move(str(folder), str(out))
    return manifest


def _write_contents(proof: Any, path: str, inputs: list[ProofInput], folder: Path) -> dict[str, Any]:
    """Write model, cases, script, README and manifest."""
    (file,) = proof.files
    metadata, deployment = file.metadata, proof.deployment
    shutil.copyfile(path, folder / MODEL)
    entries = []
    with build_backend('OnnxRuntimeBackend', str(path)) as backend:
        for index, proof_input in enumerate(tracked(inputs, len(inputs), 'PyTorch')):
            reference = ImageReference(deployment, proof_input)
            case = _case(f'{index:03}', reference, metadata)
            shapes = {name: list(array.shape) for name, array in backend.infer(case.inputs).items()}
            entries.append(dict(case.write(folder), output_shapes=shapes))
            reference.forget()
    shutil.copyfile(Path(__file__).with_name('runner.py'), folder / RUNNER)
    manifest = dict(
        format=FORMAT,
        task=deployment.family.task,
        file=MODEL,
        config=deployment.config,
        checkpoint_sha256=deployment.checkpoint_sha256,
        made_with=versions(),
        python=platform.python_version(),
        cases=entries,
    )
    write_readme(folder, manifest, metadata)
    files = hashes_of(folder)
    manifest |= dict(files=files, kit_sha256=kit_hash(files))
    write_json(folder / MANIFEST, manifest)
    return manifest


def _case(name: str, reference: ImageReference, metadata: Any) -> Case:
    """Return the case of an input: what the graph takes, and what PyTorch makes of it."""
    family = reference.deployment.family
    inputs = metadata.spec.with_defaults(reference.feeds_of(metadata))  # not every engine has optional inputs
    tensors: dict[str, np.ndarray] = {}
    if any(tensor.compare == 'values' for tensor in metadata.spec.outputs):
        options = dict(family.exported_options(metadata.options).items())
        options.pop('form')
        tensors = dict(reference.compute(family.reference_tensors, metadata.form, **options))
        tensors = {name: array for name, array in tensors.items() if name in metadata.spec.output_names}
    proof_input = reference.input
    return Case(
        name,
        proof_input.name,
        tuple(title for title, _ in proof_input.sources),
        {key: np.ascontiguousarray(array) for key, array in inputs.items()},
        {key: np.asarray(array) for key, array in reference.feeds.items() if key not in inputs},
        tensors,
        reference.results,
    )


def _run_here(folder: Path, manifest: dict[str, Any], outputs: Path) -> None:
    """Run the cases in ONNX Runtime and write the outputs as `run_onnxruntime.py` does."""
    outputs.mkdir()
    with build_backend('OnnxRuntimeBackend', str(folder / MODEL)) as backend:
        for entry in manifest['cases']:
            np.savez(outputs / f'{entry["name"]}.npz', **backend.infer(Case.read(folder, entry).inputs))
