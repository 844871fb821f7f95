"""The proof of exported files: `prove` chooses the proof of what the model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.proving.proof import Claims

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from mmdeploy_ext.families.model import Model
    from mmdeploy_ext.proving.verdict import Verdict


def kind_of(family: Any) -> str:
    """Return what models of a family take: 'drive' with a memory, 'voxels' if backbones, else its samples."""
    if family.product == BACKBONE:
        return 'voxels'
    return 'drive' if family.memory else family.samples


def proof_of(family: Any) -> Callable[..., tuple[Verdict, list[Any]]]:
    """Return the proof of a family's files; the others are not imported."""
    kind = kind_of(family)
    if kind == 'images':
        from mmdeploy_ext.proving.pictures import prove_pictures

        return prove_pictures
    if kind == 'drive':
        from mmdeploy_ext.proving.drive import prove_frames

        return prove_frames
    if kind == 'voxels':
        from mmdeploy_ext.proving.backbone import prove_backbone

        return prove_backbone
    from mmdeploy_ext.proving.frames import prove_sweeps

    return prove_sweeps


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
        samples: for a model of pictures (title, (h, w, 3) uint8 BGR), the first of which counts as traced; of
            a model with a memory the `Frame`s of a drive, read once; else `Sweep`s, `FusedFrame`s or
            `VoxelSet`s.
        engine: `engine`, the name of the engine's class, and its options; None: ONNX Runtime on the CPU.
        edited: whether the files were edited on purpose: then only inputs decide, not their graphs.
        written: whether the export has just written the files: then their graphs are not compared.
        asked: name of an option of the export -> value that the file must have been exported with.
        library: 'installed': where a repository's own copy of a library did not run, claim against the
            installed one; None: such a file is not proven.
        timed: whether the verdict has times.
        strict: whether what a graph cannot show of the user's code is a failure.
        settings: keyword arguments of the kind of proof: `picture_files` of pictures, `bars` of a drive,
            `ranges`, `max_voxels` and `node_list` of a backbone.

    Returns:
        The verdict; and samples with the results of PyTorch and of the engine, each a `Pair` to be drawn.
    """
    listed = [str(path) for path in (paths if isinstance(paths, list | tuple) else [paths])]
    claims = Claims(edited, written, asked or {}, library, timed, strict)
    return proof_of(deployment.family)(deployment, listed, samples, dict(engine or {}), claims, **settings)
