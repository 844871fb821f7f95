"""The proof of exported files: `prove` runs all levels, whatever the model takes.

How a verdict comes about, from the top:

1. `open_proof` chooses the kind of `Proof` (levels/proof.py) by what the model takes, and reads the files.
2. `Proof.check` is level 1: each graph against a fresh export (fresh_export.py), the structure of each file
   (levels/structure.py), its metadata against config and checkpoint (provenance.py), the weights of the
   model against the checkpoint (weights.py), and samples prepared by the rule in the file against those of
   the config's own pipeline (levels/preprocessing.py).
3. `Proof.inputs` makes the inputs of both engines (inputs/). Each runs through PyTorch and through the file;
   tensors are compared (level 2, tensors.py) and results are matched (level 3, tasks/matching.py); models
   with a memory run a drive (level 4, levels/drive_run.py). Each input becomes a `Case` (results.py).
4. `Proof.conclude` judges all cases together (totals.py, half_bars.py).
5. The `Verdict` (verdict.py) decides the exit status; views/ shows it.

`mm2onnx verify --eval` adds level 5 (levels/metrics.py), and difference/ finds the first tensor in which a
file differs from PyTorch.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.cli import tracked
from mmdeploy_ext.core.errors import LoadError, one_line
from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.proving.levels.drive import DriveProof
from mmdeploy_ext.proving.levels.frames import SweepProof
from mmdeploy_ext.proving.levels.images import ImageProof
from mmdeploy_ext.proving.levels.sparse_proof import SparseProof
from mmdeploy_ext.proving.open_points import unreached

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mmdeploy_ext.exporting.model import Model
    from mmdeploy_ext.proving.levels.proof import Proof
    from mmdeploy_ext.proving.verdict import Verdict

PROOFS = dict(images=ImageProof, drive=DriveProof, sweeps=SweepProof, fused=SweepProof, voxels=SparseProof)
"""Kind of the inputs of a model, see `open_proof` -> class of the proof of its files."""
MAX_MESSAGE_LENGTH = 500
"""Length to which an engine's message about a file that it cannot load is cut."""


def open_proof(
    deployment: Model,
    paths: str | Sequence[str],
    samples: Collection[Any] = (),
    engine: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Proof:
    """Read the files and return their proof, which has not run yet.

    The kind of the proof is `Family.samples`; 'drive' for models with a memory, 'voxels' for backbones.
    `deployment`, `paths`, `samples`, `engine` and `settings`, and the errors, are those of `prove`.
    """
    listed = [str(path) for path in (paths if isinstance(paths, list | tuple) else [paths])]
    family = deployment.family
    kind = family.samples
    if family.product == BACKBONE:
        kind = 'voxels'
    elif family.memory:
        kind = 'drive'
    return PROOFS[kind](deployment, listed, samples, engine or {}, **settings)


def prove(
    deployment: Model,
    paths: str | Sequence[str],
    samples: Collection[Any] = (),
    engine: Mapping[str, Any] | None = None,
    *,
    edited: bool = False,
    written: bool = False,
    asked: Mapping[str, Any] | None = None,
    library: str | None = None,
    timed: bool = True,
    strict: bool = False,
    **settings: Any,
) -> tuple[Verdict, list[Any]]:
    """Prove the files of one export.

    Args:
        deployment: the config and checkpoint that they claim to be.
        paths: paths of the files, in the order in which a sample goes through them.
        samples: for a model of pictures (title, (h, w, 3) uint8 BGR), one or more, the first of which counts
            as the one that was traced; of a model with a memory the `Frame`s of a drive, read once; of other
            models of LiDAR `Sweep`s, with cameras `FusedFrame`s, all of which are prepared for the network;
            of a backbone `VoxelSet`s, besides those that every proof has.
        engine: `engine`, the name of the engine's class, and its options, as `engine_settings` returns them;
            None: ONNX Runtime on the CPU.
        edited: whether the files were edited on purpose: then only inputs decide, not their graphs.
        written: whether the export has just written the files: then their graphs are not compared.
        asked: name of an option of the export -> value that the file must have been exported with; with None
            nothing is demanded.
        library: 'installed': where a repository's own copy of a library did not run, claim against the
            installed one; None: such a file is not proven.
        timed: whether the verdict has times, which decide nothing; for them the engines run a model of
            pictures a few more times.
        strict: whether what a graph cannot show of the user's code (`Verdict.untraced`) is a failure.
        settings: keyword arguments of the kind of proof, see its class: `picture_files` of pictures, `bars`
            of a drive, `ranges`, `max_voxels` and `node_list` of a backbone.

    Returns:
        The verdict; and samples with the results of PyTorch and of the engine, each a `Pair` to be drawn in a
        report; none if the engine cannot load a file, which is a reason of the verdict then.

    Raises:
        ModelFileError: a file is not there, not ours, or of another model family; or the files are not all
            those of one export.
        UsageError: the engine is not installed, or has no such option.
    """
    proof = open_proof(deployment, paths, samples, engine, **settings)
    proof.timed = timed
    proof.check(edited, asked, written)
    with contextlib.ExitStack() as stack:
        try:
            proof.start(stack)
        except LoadError as error:  # the graph that level 1 has just judged is one that nothing can run
            proof.results.reasons.append(one_line(error)[:MAX_MESSAGE_LENGTH])
            return proof.finish(library, strict), []
        first, inputs = None, proof.inputs()
        for sample in tracked(inputs, len(inputs), 'proving'):
            proof.run(sample)
            first = sample if first is None else first
        if first is not None:
            proof.run_again(first)
        proof.conclude()
        proof.verdict.unreached = unreached(proof.limits(), proof.results.cases, proof.samples_option)
    return proof.finish(library, strict), proof.pictures
