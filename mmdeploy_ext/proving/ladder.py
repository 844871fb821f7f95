"""The proof of exported files, whatever the model takes: one driver of all levels."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.cli import one_line, tracked
from mmdeploy_ext.core.errors import LoadError
from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.proving.levels.frames import SweepProof
from mmdeploy_ext.proving.levels.images import ImageProof
from mmdeploy_ext.proving.levels.sequence import DriveProof
from mmdeploy_ext.proving.levels.sparse_proof import SparseProof

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.proving.levels.base import Proof
    from mmdeploy_ext.proving.verdict import Verdict

PROOFS = dict(images=ImageProof, drive=DriveProof, sweeps=SweepProof, fused=SweepProof, voxels=SparseProof)
"""What a model takes -> how its files are proven."""
MOST_CHARACTERS = 500
"""Of what an engine says about a file that it does not load."""


def open_proof(
    deployment: Deployment,
    paths: str | Sequence[str],
    samples: Collection[Any] = (),
    engine: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Proof:
    """Return the proof of files before anything was judged; see `prove`."""
    listed = [str(path) for path in (paths if isinstance(paths, list | tuple) else [paths])]
    family = deployment.family
    kind = 'voxels' if family.product == BACKBONE else 'drive' if family.memory else family.samples
    return PROOFS[kind](deployment, listed, samples, engine or {}, **settings)


def prove(
    deployment: Deployment,
    paths: str | Sequence[str],
    samples: Collection[Any] = (),
    engine: Mapping[str, Any] | None = None,
    *,
    edited: bool = False,
    asked: Mapping[str, Any] | None = None,
    **settings: Any,
) -> tuple[Verdict, list[Any]]:
    """Prove the files of one export.

    Args:
        deployment: the config and checkpoint that they claim to be.
        paths: of the files, in the order in which a sample goes through them.
        samples: of the model's kind: (title, BGR picture), the first is taken as the traced one; frames of a
            drive, read once; sweeps; real voxels besides those that every proof has.
        engine: options of `build_backend`: `engine` and what it takes.
        edited: the files were edited on purpose: inputs alone decide about their graphs.
        asked: what the export was asked for, where it was said: 'form', or an option of the export.
        settings: of the kind, see its class.

    Returns:
        The verdict, and pictures for the report.

    Raises:
        ModelFileError: a file is not there, not ours, or of another model family.
    """
    proof = open_proof(deployment, paths, samples, engine, **settings)
    proof.check(edited, asked)
    with contextlib.ExitStack() as stack:
        try:
            proof.start(stack)
        except LoadError as error:  # the graph that level 1 has just judged is one that nothing can run
            proof.verdict.reasons.append(one_line(error)[:MOST_CHARACTERS])
            return proof.verdict, []
        for made in (proof.inputs, proof.more_inputs):
            inputs = made()
            for one in tracked(inputs, len(inputs), 'proving'):
                proof.run(one)
        proof.conclude()
    return proof.verdict, proof.pictures
