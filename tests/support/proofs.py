"""Parts of proofs: level 1 alone, levels 2 and 3 by references, two engines over one drive, near and far."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import TYPE_CHECKING, Any
from unittest import mock

import onnx

from marking import in_suite
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.graphs.io.index import count_nodes
from mmdeploy_ext.proving import file_checks, frames, pictures
from mmdeploy_ext.proving.backbone import check_backbone
from mmdeploy_ext.proving.drive_run import SHORT_DRIVE, Drives
from mmdeploy_ext.proving.file_checks import of_images
from mmdeploy_ext.proving.frames import Shifted, output_spec
from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.pictures import InputReference, check_pictures, picture_inputs, run_case
from mmdeploy_ext.proving.proof import finish
from mmdeploy_ext.proving.subject import Claims
from mmdeploy_ext.spec.metadata import read_metadata
from mmdeploy_ext.spec.results import GraphResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.runtime.frames import Frame, Stepper
    from mmdeploy_ext.spec.results import Case, SequenceRow
    from mmdeploy_ext.spec.tensors import GraphSpec
    from mmdeploy_ext.spec.verdict import Verdict

UTM_M = 7e5, 4e6, 500.0
"""x, y, z: metres as in UTM coordinates."""
LATE_S = 1.6e9 + 20 * 60
"""Seconds: a time stamp of these days, twenty minutes into a drive."""


CHECKS = dict(Images=check_pictures, Backbones=check_backbone, Sequences=frames.check_frames)
"""Level 1 by the class of the kind."""


EXPORTS: dict[tuple[int, str], tuple[Any, onnx.ModelProto]] = {}
"""Model and options -> the model, which stays alive, and its fresh export."""


def exported_once(detector: Any, options: Any, image_bgr: Any, size: Any) -> Callable[[], onnx.ModelProto]:
    """Return what `file_checks.of_images` returns, for an export that is made once per model and options."""

    def export() -> onnx.ModelProto:
        key = id(detector), repr(options)
        if key not in EXPORTS:
            EXPORTS[key] = detector, of_images(detector, options, image_bgr, size)()
        copied = onnx.ModelProto()
        copied.CopyFrom(EXPORTS[key][1])
        return copied

    return export


@contextlib.contextmanager
def fresh_exports_once() -> Iterator[None]:
    """Let proofs of one config and checkpoint, in the block, share a fresh export of each graph."""
    made: dict[tuple[str, ...], onnx.ModelProto] = {}
    exports: dict[tuple[str, ...], Callable[..., onnx.ModelProto]] = {}

    def once(make: Callable[..., Callable[..., onnx.ModelProto]]) -> Callable[..., Any]:
        def of(detector: Any, options: Any, *rest: Any) -> Callable[..., onnx.ModelProto]:
            file = detector.config, detector.checkpoint_sha256, repr(options)

            def export(*names: str) -> onnx.ModelProto:
                if (*file, *names) not in made:
                    if file not in exports:
                        exports[file] = make(detector, options, *rest)
                    made[(*file, *names)] = exports[file](*names)
                return copy.deepcopy(made[(*file, *names)])

            return export

        return of

    names = 'of_images', 'of_graphs'
    with mock.patch.multiple(file_checks, **{name: once(getattr(file_checks, name)) for name in names}):
        yield


def check_files(
    detector: Any, paths: Any, samples: Any = (), edited: bool = False, written: bool = False
) -> Verdict:
    """Return level 1 alone."""
    with mock.patch.object(file_checks, 'of_images', exported_once):
        claims = Claims(edited, written)
        return level_1_alone(detector, listed(paths), samples, {}, claims)


def prove(detector: Any, paths: Any, samples: Any = (), engine: Any = None, **claims: Any) -> Verdict:
    """Prove one file or several, with `Claims` and their settings as keywords."""
    return (
        kind_of(detector.family)
        .subject()
        .prove(detector, listed(paths), samples, dict(engine or {}), claims_of(**claims))
    )


def listed(paths: Any) -> list[str]:
    return [str(path) for path in (paths if isinstance(paths, list | tuple) else [paths])]


def claims_of(**values: Any) -> Claims:
    settings = {name: values.pop(name) for name in values.keys() - vars(Claims()).keys()}
    return Claims(**values, settings=settings)


def level_1_alone(detector: Any, paths: Any, samples: Any, engine: Any, claims: Claims) -> Verdict:
    """Stand for `prove` where level 1 refuses files, whatever their inputs give."""
    check = CHECKS[type(kind_of(detector.family)).__name__]
    return finish(check(detector, paths, samples, engine, claims))


def few_inputs(*arguments: Any) -> tuple[list[Any], list[str]]:
    """Return of a proof's inputs the traced one, a batch, a plain picture, and two more."""
    inputs, notes = picture_inputs(*arguments)
    few = [one for one in inputs if isinstance(one, InputReference)]
    size = few[0].input.images[0].tensor.shape
    others = (one for one in inputs if one not in few)
    return [*few, *sorted(others, key=lambda one: one.images[0].tensor.shape == size)[:2]], notes


@contextlib.contextmanager
def samples_alone() -> Iterator[None]:
    """Inside the block proofs run on what is made of the given pictures, frames or sweeps alone."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(frames, 'special_frames', lambda *_: ([], [])))
        stack.enter_context(mock.patch.object(frames, 'unusual_cases', lambda *_: iter(())))
        stack.enter_context(mock.patch.object(pictures, 'picture_inputs', few_inputs))
        yield


def prove_samples(detector: Any, paths: Any, samples: Any, engine: Any = None, **claims: Any) -> Verdict:
    """Do what `prove` does, on the given pictures, frames or sweeps alone; see `samples_alone`."""
    with samples_alone():
        return prove(detector, paths, samples, engine, timed=False, **claims)


def as_exported(model: onnx.ModelProto, export: Any, name: str = '', edits: Any = ()) -> GraphResult:
    """Stand for `file_checks.compare_with_fresh_export`: the file was exported a moment ago."""
    return GraphResult(name, count_nodes(model), True)


def prove_outputs(detector: Any, paths: Any, samples: Any, engine: Any = None) -> Verdict:
    """Do what `prove_samples` does without a fresh export: for further files of a family."""
    with mock.patch.object(file_checks, 'compare_with_fresh_export', as_exported):
        return prove_samples(detector, paths, samples, engine)


OF_OTHER_CONTRACTS = in_suite([prove, prove_outputs], prove_outputs)
"""Proofs of files of a contract beside the family's first one, whose whole proof is in the suite."""


def refuted(detector: Any, paths: Any, samples: Any, engine: Any = None) -> Verdict:
    """Return the verdict on files that the given frames or sweeps refute, or else the whole proof's."""
    verdict = prove_outputs(detector, paths, samples, engine)
    return prove(detector, paths, samples, engine, timed=False) if verdict.passed else verdict


def run_cases(computed: Iterable[InputReference], backend: Backend) -> Iterator[Case]:
    """Yield the cases of levels 2 and 3: who wants the first that fails need not run the rest."""
    for reference in computed:
        yield run_case(reference, backend)


def run_pair(
    reference: Stepper,
    candidate: Stepper,
    frames: Iterable[Frame],
    spec: GraphSpec,
    mode: str = 'free',
    **settings: Any,
) -> SequenceRow:
    """Run two engines over a drive in one mode; see `run_modes` for the arguments."""
    return run_modes(reference, {mode: candidate}, frames, spec, **settings)[mode]


def run_modes(
    reference: Stepper,
    candidates: Mapping[str, Stepper],
    frames: Iterable[Frame],
    spec: GraphSpec,
    **settings: Any,
) -> dict[str, SequenceRow]:
    """Run the reference once over a drive, and beside it one candidate per mode; see `Drives`."""
    drives = Drives(reference, candidates, spec, frames=[*frames], **settings)
    _, again, _ = compare(drives)
    rows = drives.finish()
    reasons = {mode: (*row.reasons, *(again if mode == 'teacher' else ())) for mode, row in rows.items()}
    return {mode: dataclasses.replace(row, reasons=reasons[mode]) for mode, row in rows.items()}


def run_far(
    at_home: Stepper,
    far_away: Stepper,
    frames: Iterable[Frame],
    spec: GraphSpec,
    offset_m: tuple[float, float, float] = UTM_M,
    offset_s: float = LATE_S,
    **settings: Any,
) -> SequenceRow:
    """Run an engine over a drive, and a second one of the same files over the drive moved and delayed."""
    return run_pair(at_home, Shifted(far_away, offset_m, offset_s), frames, spec, 'free', **settings)


def drive_row(detector: Any, paths: Any, frames: Iterable[Frame]) -> SequenceRow:
    """Run files beside the PyTorch model over frames, without the other parts of a proof."""
    computed, family = [read_metadata(path) for path in paths], detector.family
    steppers = family.reference(detector.model), family.runner(paths, dict(threads=1))
    memory = family.memory_spec(computed[-1].postprocess)
    return run_pair(*steppers, frames, output_spec(computed), memory=memory, length=SHORT_DRIVE)
