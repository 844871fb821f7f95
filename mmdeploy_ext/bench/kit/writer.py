"""Writes kits: a model, inputs and PyTorch's results in a folder, for an engine elsewhere."""

from __future__ import annotations

import platform
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from mmdeploy_ext.base.errors import UsageError, named
from mmdeploy_ext.base.files import check_new_folder, sha256_onnx, write_json
from mmdeploy_ext.base.source_code import versions
from mmdeploy_ext.bench.kit.contents import (
    FORMAT,
    KIT_HASH,
    LIBSPCONV,
    MANIFEST,
    KitGraph,
    hashes_of,
    kit_hash,
    write_lines,
)
from mmdeploy_ext.bench.kit.engine_files import DETECT, shapes_of, write_engine_files
from mmdeploy_ext.bench.kit.judge import judge
from mmdeploy_ext.bench.kit.runners import run_onnxruntime
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.passes.for_tensorrt import for_tensorrt
from mmdeploy_ext.proving.provenance import facts_checks
from mmdeploy_ext.spec.digest import check_whole, sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.bench.kit.local_run import Run
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.spec.metadata import Metadata


# ONNX files of a kit: copies of the user's, whose optional inputs became ordinary inputs.


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


# README.md of a kit: how it was made, and what to type for each engine.


def write_readme(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write README.md from a manifest, which may lack its hashes."""
    graphs = [KitGraph.from_json(entry) for entry in manifest['graphs']]
    facts = dict(
        manifest=manifest,
        graphs=graphs,
        versions=', '.join(f'{name} {version}' for name, version in manifest['made_with'].items() if version),
        count=len(manifest['cases']),
        frames=manifest['frames'],
        tensors=_tensors,
        shapes=shapes_of,
        detects=(folder / DETECT).is_file(),
    )
    template = 'readme_libspconv.md.j2' if manifest.get('engine') == LIBSPCONV else 'readme.md.j2'
    text = Path(__file__).with_name(template).read_text(encoding='utf-8')
    (folder / 'README.md').write_text(jinja2.Template(text).render(**facts), encoding='utf-8')


def _tensors(tensors: Any) -> str:
    return ', '.join(f'`{tensor.name}` {tensor.dtype} {tensor.shape_text()}' for tensor in tensors)


def write_detector_kit(
    detector: Detector,
    path: str,
    write: Callable[[Path], dict[str, Any]],
    out: str | Path,
    pictures: Sequence[dict[str, str]],
    opens: Callable[[Path], Run] = run_onnxruntime.open_file,
) -> dict[str, Any]:
    """Write the kit of an exported detector; return its manifest.

    Args:
        detector: PyTorch model.
        path: ONNX file, or folder of an export.
        write: writes files and cases into a folder; returns the entries of the manifest that depend on the
            kind of samples, with `task`.
        out: folder, see `write_kit`.
        pictures: `name` and `licence` of each picture, or one entry for all frames, sweeps or voxels.
        opens: see `write_kit`.
    """

    def write_contents(folder: Path) -> dict[str, Any]:
        return write(folder) | dict(
            title=f'{detector.family.name}, {Path(path).name}',
            origin=f'Its config is `{detector.config}`, its weights have the SHA-256 '
            f'`{detector.checkpoint_sha256}`.',
            config=detector.config,
            checkpoint_sha256=detector.checkpoint_sha256,
            pictures=list(pictures),
        )

    return write_kit(out, path, write_contents, opens)


def write_kit(
    out: str | Path,
    path: str,
    write_contents: Callable[[Path], dict[str, Any]],
    opens: Callable[[Path], Run] = run_onnxruntime.open_file,
) -> dict[str, Any]:
    """Write a kit; return its manifest.

    Args:
        out: new or empty folder, which appears whole or not at all.
        path: file or folder, for messages.
        write_contents: writes files and cases into a folder; returns the manifest's entries, see
            `bench/kit/contents.py`.
        opens: file -> function that runs it here, from inputs to outputs by name.
    """
    out = Path(out)
    check_new_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix='.kit') as workspace:
        folder, outputs = Path(workspace, 'kit'), Path(workspace, 'outputs')
        folder.mkdir()
        manifest = dict(
            write_contents(folder), format=FORMAT, made_with=versions(), python=platform.python_version()
        )
        write_engine_files(folder, manifest)
        write_lines(folder, manifest)
        write_readme(folder, manifest)
        manifest['files'] = hashes_of(folder)
        manifest['kit_sha256'] = kit_hash(manifest)
        write_json(folder / MANIFEST, manifest)
        (folder / KIT_HASH).write_text(manifest['kit_sha256'] + '\n', encoding='utf-8')
        run_onnxruntime.main(str(outputs), kit=folder, opens=opens)
        verdict = judge(folder, outputs, told='the CPU of this machine')
        if not verdict.passed:
            failures = '; '.join(verdict.failures[:3])
            raise UsageError(f"{path}: does not return PyTorch's results on this machine: {failures}")
        if out.exists():
            out.rmdir()
        shutil.move(str(folder), str(out))
    return manifest
