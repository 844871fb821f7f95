"""Loaded toys whose reference is computed once per input: tests judge many files of one model."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mmdeploy_ext.exporting import model as deploy
from mmdeploy_ext.graph import signature
from mmdeploy_ext.proving import weights
from mmdeploy_ext.proving.levels import images

if TYPE_CHECKING:
    from collections.abc import Iterator

ASKED = 'reference_detections', 'reference_tensors', 'candidate_bounds'
"""Methods of a family that run the unpatched model and read nothing of the file on trial."""
CACHED_SIGNATURES = 32


def digest(value: Any) -> Any:
    """Return what tells arguments of `ASKED` apart."""
    if isinstance(value, np.ndarray):
        raw = hashlib.blake2b(np.ascontiguousarray(value).tobytes(), digest_size=16).digest()
        return value.shape, value.dtype.str, raw
    if isinstance(value, dict):
        return tuple((key, digest(one)) for key, one in sorted(value.items()))
    if isinstance(value, tuple | list):
        return tuple(map(digest, value))
    return digest(vars(value)) if hasattr(value, '__dataclass_fields__') else value


def is_substituted(part: Any) -> bool:
    """Return whether a method of a part returns what `substitution.substituted` has put in."""
    return any(getattr(value, '__name__', '') == 'substitute' for value in vars(part).values())


class Remembering:
    """A family that answers `ASKED` once per model and input; the rest is the family's.

    Attributes:
        plain: the family itself.
    """

    def __init__(self, family: Any) -> None:
        self.plain, self._known = family, {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        method = getattr(self.plain, name)
        if name not in ASKED:
            return method

        def ask(model: Any, *given: Any, **options: Any) -> Any:
            if any(is_substituted(part) for part in model.modules()):
                return method(model, *given, **options)
            limits = repr([getattr(part, 'test_cfg', None) for part in model.modules()])
            key = name, id(model), limits, digest(given), digest(options)
            if key not in self._known:
                self._known[key] = model, method(model, *given, **options)  # the model keeps its id
            return self._known[key][1]

        return ask


LOADED: dict[Any, deploy.Model] = {}
INPUTS: dict[Any, tuple[Any, ...]] = {}


def _file(path: str) -> tuple[str, int, int]:
    found = Path(path).stat()
    return path, found.st_mtime_ns, found.st_size


@contextlib.contextmanager
def signed_once() -> Iterator[None]:
    """Inside the block the signature of a graph of the same bytes is computed once."""
    compute = signature.compute_signature

    @functools.lru_cache(CACHED_SIGNATURES)
    def of_content(content: bytes) -> signature.Signature:
        return compute(onnx.load_from_string(content))

    def once(model: onnx.ModelProto) -> signature.Signature:
        return of_content(model.SerializeToString(deterministic=True))

    signature.compute_signature = once
    try:
        yield
    finally:
        signature.compute_signature = compute


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Inside the block a checkpoint is read once for the checks of proofs."""
    read_content, contents = weights.read_content, {}

    def content_once(path):
        key = _file(path)
        if key not in contents:
            contents[key] = read_content(path)
        return contents[key]

    weights.read_content = content_once
    try:
        yield
    finally:
        weights.read_content = read_content


@contextlib.contextmanager
def loaded_once() -> Iterator[None]:
    """Inside the block `load` reads a config and a checkpoint once; each caller gets a `Model` of its own.

    The model is the same object: for tests that change no model. What decides about a file is done each
    time: options are checked, the file is read, its graph compared and run. `signed_once` and `read_once` are
    part of it.
    """
    load, make = deploy.load, images.proof_inputs

    def once(config, checkpoint, cfg_options=None, device='cpu', **named):
        if not Path(config).is_file() or not Path(checkpoint).is_file():
            return load(config, checkpoint, cfg_options, device, **named)
        key = _file(config), _file(checkpoint), repr((cfg_options, device, named))
        if key not in LOADED:
            LOADED[key] = load(config, checkpoint, cfg_options, device, **named)
            if LOADED[key].family.samples == 'images':
                LOADED[key].family = Remembering(LOADED[key].family)
        return copy.copy(LOADED[key])

    def inputs_once(deployment, options, samples):
        key = id(deployment.model), digest(deployment.rule), repr([*options.items()]), digest(samples)
        if key not in INPUTS:
            # the model keeps its id
            INPUTS[key] = deployment.model, make(deployment, options, samples)
        return list(INPUTS[key][1])

    deploy.load, images.proof_inputs = once, inputs_once
    try:
        with signed_once(), read_once():
            yield
    finally:
        deploy.load, images.proof_inputs = load, make
