"""Compare an engine with the frames that a `_pth` run wrote."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.compare.tensors import compare_tensors
from mmdeploy_ext.core.dump import load_dump
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.proof import half
from mmdeploy_ext.proof.against_dump import DISAGREES, dumped_samples, foreign

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.runtime.frames import Stepper

FAR = 1e-5
"""Metres allowed per metre from the origin of the map; see `far_spec`."""


def check_frames(stepper: Stepper, metadata: Metadata, deployment: Deployment, folder: Path) -> bool:
    """Run the engine over the dumped frames, memory running on, and compare what the family says.

    A frame in the middle of a scene whose predecessor was not dumped cannot be compared; it is said.

    Args:
        stepper: the engine.
        metadata: of the file that gives the outputs, for the tolerances.
        deployment: config and checkpoint, which the dump has to be of.
        folder: of the dump; no dump is no failure, it is said.

    Returns:
        False when a frame differs.
    """
    family = deployment.family
    compared = family.compared or tuple(metadata.spec.output_names)
    spec = _compared_spec(metadata.spec, compared)
    agrees, previous = True, None
    for sample in dumped_samples(folder):
        tensors, manifest = load_dump(sample)
        continues = previous is not None and manifest.get('sample') == previous + 1
        try:
            reason = _unusable(tensors, manifest, deployment, compared)
            if not reason and family.memory:
                reason = _without_memory(tensors, continues)
            frame = None if reason else family.dumped_frame(tensors, manifest)
        except DataError as error:
            reason = str(error)
        if reason:
            print(f'{sample}: not compared: {reason}')
            previous = None
            continue
        # a run with memory='reset' dumps frames without a memory
        if family.memory and (not continues or not float(tensors['prev_exists'].max()) > 0):
            stepper.reset()
        previous = manifest['sample']
        outputs = stepper.step(frame).outputs
        reference = {name: tensors[name][-outputs[name].shape[0] :] for name in compared}
        distance = float(np.linalg.norm(frame.ego_pose[:3, 3])) if family.memory else 0.0
        found = {name: outputs[name] for name in compared}
        rows = compare_tensors(reference, found, far_spec(spec, distance))
        if bars := half.bars_of(half.precision_of(metadata)):
            rows = half.judge(rows, bars.cosine)
        failed = [f'{row.tensor}: {row.reason}' for row in rows if not row.passed]
        agrees &= not failed
        worst = max((row.max_abs for row in rows if row.max_abs is not None), default=float('nan'))
        print(f'{sample}: {"DIFFERS: " + failed[0] if failed else f"agrees (worst {worst:.2g})"}')
    if not agrees:
        print(DISAGREES)
    stepper.reset()
    return agrees


def _unusable(
    tensors: Mapping[str, np.ndarray],
    manifest: Mapping[str, Any],
    deployment: Deployment,
    compared: Sequence[str],
) -> str:
    """Return why a dumped frame cannot be compared; '' when it can."""
    other = foreign(manifest, deployment)
    if other:
        return other
    absent = [name for name in compared if name not in tensors]
    return f'it has no {", ".join(absent)}' if absent else ''


def _without_memory(tensors: Mapping[str, np.ndarray], continues: bool) -> str:
    """Return why the memory before a dumped frame is not known; '' when it is."""
    if 'prev_exists' not in tensors:
        return 'it has no prev_exists'
    if not continues and float(tensors['prev_exists'].max()) > 0:
        return 'the frame before it was not dumped, so its memory is not known'
    return ''


def far_spec(spec: GraphSpec, distance_m: float) -> GraphSpec:
    """Allow what PyTorch's own memory loses so far from the origin of the map.

    The dumped model keeps global positions in float32. Measured on the toy at 980 m: 7.4 mm in x y z, 0.04 mm
    with the same frames moved to the origin; so 1e-5 of the distance is added where the unit is metres.

    Args:
        spec: tolerances near the origin.
        distance_m: of the ego from the origin.
    """
    outputs = []
    for tensor in spec.outputs:
        groups = tuple(
            dataclasses.replace(group, atol=group.atol + FAR * distance_m) if group.unit == 'm' else group
            for group in tensor.column_groups
        )
        outputs.append(dataclasses.replace(tensor, groups=groups))
    return dataclasses.replace(spec, outputs=tuple(outputs))


def _compared_spec(spec: GraphSpec, compared: Sequence[str]) -> GraphSpec:
    """Keep what a dump has by the same name and meaning in every contract."""
    return dataclasses.replace(
        spec, outputs=tuple(tensor for tensor in spec.outputs if tensor.name in compared), state=()
    )
