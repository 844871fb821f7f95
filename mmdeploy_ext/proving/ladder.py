"""The proof of exported files: `prove` chooses the kind of proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.proving.proof import Claims

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from mmdeploy_ext.detector import Detector
    from mmdeploy_ext.verdict.verdict import Verdict


def kind_of(family: Any) -> str:
    if family.product == BACKBONE:
        return 'voxels'
    return 'drive' if family.memory else family.samples


def proof_of(family: Any) -> Callable[..., Verdict]:
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
    detector: Detector,
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
) -> Verdict:
    """Prove the files of one export.

    Args:
        detector: the config and checkpoint of the files.
        paths: in the order in which a sample goes through them.
        samples: for pictures (title, (h, w, 3) uint8 BGR), the first traced; with a memory the `Frame`s of a
            drive, read once; else `Sweep`s, `FusedFrame`s or `VoxelSet`s.
        engine: `engine`, the name of its class, and its options; None: ONNX Runtime on the CPU.
        edited: the files were edited on purpose: only outputs decide.
        written: the export has just written the files: graphs are not compared.
        asked: option -> value that the file must have been exported with.
        library: 'installed': compare with the installed library where a repository's copy did not run; None:
            such a file is not proven.
        timed: whether the verdict has times.
        strict: whether code that a graph cannot show is a failure.
        settings: `picture_files` of pictures, `bars` of a drive, `ranges`, `max_voxels` and `node_list` of a
            backbone.

    Returns:
        The verdict, with the results to draw as `pairs`.
    """
    listed = [str(path) for path in (paths if isinstance(paths, list | tuple) else [paths])]
    claims = Claims(edited, written, asked or {}, library, timed, strict)
    return proof_of(detector.family)(detector, listed, samples, dict(engine or {}), claims, **settings)
