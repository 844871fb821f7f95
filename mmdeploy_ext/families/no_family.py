"""The message about a config of no family: parts of its detector, family with the nearest names."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmdeploy_ext.base.config import cfg_options, test_pipeline
from mmdeploy_ext.base.errors import ConfigError, did_you_mean
from mmdeploy_ext.base.unregistered import around_detector, missing_types, registered_names, unregistered
from mmdeploy_ext.spec.registry import DRIVING, Registration, driving_advice, registered, registration_of
from mmdeploy_ext.upstream.compat.stand_ins import failed

PARTS = ('head', 'decoder', 'transformer', 'middle_encoder', 'lidar_encoder')
SENSOR_KEYS, SENSOR_STEPS = ('pts_', 'img_', 'voxel_'), ('Points', 'MultiView')
"""Prefixes of model keys, and parts of step names, for points or several cameras.

mmdet3d's models have `img_backbone` and `pts_backbone`; detectors of one picture have `backbone`.
"""
ALIKE = 0.75
"""Share of equal letters above which names are alike."""
COPIED = 0.5
"""Share of equal methods above which a class is a copy."""
PARTS_WAY = '`export --parts` exports any part of it (docs/parts.md)'
ADVICE = 'the families and their configs are in README.md'
"""Where a message sends the reader."""


def part_types(model: Any, prefix: str = '') -> dict[str, str]:
    """Return path ('roi_head.bbox_head') -> type of the parts of a `model` that match PARTS, at any depth.

    A list counts by its first type.
    """
    types: dict[str, str] = {}
    for key, value in model.items() if isinstance(model, dict) else ():
        for part in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(part, dict):
                continue
            path = f'{prefix}{key}'
            if str(key).endswith(PARTS) and part.get('type'):
                types.setdefault(path, str(part['type']))
            types = part_types(part, f'{path}.') | types
    return types


def refusal(
    cfg: Any, families: Sequence[Any], reason: str, failures: Mapping[str, str] | None = None
) -> ConfigError:
    """Return the error of a config that no family claims: its parts, the nearest family, advice.

    A type defined in the user's tree but not registered gets advice about registration instead
    (`unregistered`).

    Args:
        cfg: an `mmcv.Config` with a `model`.
        families: imported families of the wanted product.
        reason: predicate of the message, e.g. 'belongs to no family that mm2onnx exports'.
        failures: package -> import error, of libraries of families.
    """
    model = cfg.get('model')
    install = driving_advice() if has_sensors(cfg) else ''
    if text := unregistered(cfg, {**(failures or {}), **failed}) or around_detector(model):
        if install:
            own = '' if DRIVING in text else f'; if it is yours: {text}'
            text = f'model.type={model.get("type")!r} is of no installed family; {install}{own}'
        return ConfigError(f'{cfg.filename}: {text}')
    parts = part_types(model)
    texts = [f'{key}={parts[key]!r}' for key in sorted(parts, key=lambda key: (key.count('.'), key))]
    heads = f'with {", ".join(texts)}' if texts else 'without a head'
    by_name = sorted(families, key=lambda family: family.name)  # of equally similar ones the first by name
    of_pictures = not has_sensors(cfg)
    alike = [family.name for family in by_name if (family.samples == 'images') == of_pictures]
    candidates = [entry for entry in map(registration_of, alike) if entry.exports]
    best = max(candidates, key=lambda entry: _similarity(entry, model, parts), default=None)
    advice = f'{install}; ' if install else ''
    if best is not None and any(_similarity(best, model, parts)):
        advice += f'nearest is {best.name}: {best.exports}; '
    unknown = ''
    if missing := missing_types(cfg):
        (key, name), *_ = missing.items()
        similar = (text for text in sorted(registered_names()) if ('.' in text) == ('.' in name))
        hint = did_you_mean(name, similar).removeprefix('; ')
        unknown = (
            f'{key}={name!r} is not registered by an imported module: if it is yours, name its module in '
            f'custom_imports{f" ({hint})" if hint else ""}; '
        )
    advice += ''.join(f'{key}: {trial_words(key, name)}; ' for key, name in copies(model).items())
    names = ', '.join(sorted(family.name for family in families))
    return ConfigError(
        f'{cfg.filename}: {unknown}model.type={model.get("type")!r} {heads} {reason}; {advice}use such a '
        f'config, or write a family for this one (docs/own-family.md); {PARTS_WAY}; {ADVICE}; known: {names}'
    )


def copied_class(cls: type, candidates: Iterable[type]) -> str:
    """Return the candidate with most of the methods of `cls` and the nearest name, or ''."""
    own, shares = _methods(cls), {}
    for candidate in candidates:
        methods = _methods(candidate)
        shares[candidate.__name__] = len(own & methods) / max(len(own | methods), 1)

    def nearness(name: str) -> tuple[float, float]:
        return shares[name], difflib.SequenceMatcher(None, cls.__name__, name).ratio()

    name = max(shares, key=nearness, default='')
    return name if name and shares[name] >= COPIED else ''


def _methods(cls: type) -> set[str]:
    from mmcv.runner import BaseModule
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    bases = {*BaseModule.__mro__, *BaseDenseHead.__mro__}
    return {
        name
        for base in cls.__mro__
        if base not in bases
        for name, value in vars(base).items()
        if callable(value) and not name.startswith('__')
    }


def copies(model: Any) -> dict[str, str]:
    """Return path of a head -> class of a family that it copies."""
    found, candidates = {}, []
    for registration in registered().values():
        classes = (_head_class(name) for name in registration.claims)
        candidates += [cls for cls in classes if cls is not None]
    for path, name in part_types(model, 'model.').items():
        cls = _head_class(name) if path.endswith('head') else None
        if cls is not None and (original := copied_class(cls, candidates)):
            found[path] = original
    return found


def _head_class(name: str) -> type | None:
    from mmdet.models.builder import HEADS

    builder = sys.modules.get('mmdet3d.models.builder')
    registries = [HEADS, *([builder.HEADS] if builder else [])]
    return next((cls for registry in registries if isinstance(cls := registry.get(name), type)), None)


def trial_words(key: str, name: str) -> str:
    words = cfg_options({f'{key}.type': name})
    return (
        f'it has the methods of {name}: {words} tries that head, and the proof shows whether it is the same'
    )


def has_sensors(cfg: Any) -> bool:
    model, keys = cfg.get('model'), []
    if isinstance(model, dict):
        keys = [str(key) for key in model]
    steps = []
    with contextlib.suppress(ConfigError):  # a config without a pipeline: its keys decide
        steps = [str(step.get('type')) for step in test_pipeline(cfg)]
    return any(key.startswith(SENSOR_KEYS) for key in keys) or any(
        word in step for word in SENSOR_STEPS for step in steps
    )


def _similarity(entry: Registration, model: Any, parts: Mapping[str, str]) -> tuple[float, ...]:
    words = [word.lower() for word in (entry.name, *entry.similar_names)]
    heads = [name.lower() for key, name in parts.items() if key.endswith('head')]
    other_parts = [name.lower() for key, name in parts.items() if not key.endswith('head')]
    detector = [str(model.get('type') or '').lower()] if isinstance(model, dict) else []
    inside = [
        float(max((len(word) for word in words for name in names if word in name), default=0))
        for names in (heads, detector, other_parts)
    ]
    pairs = [(word.removesuffix('head'), name.removesuffix('head')) for word in words for name in heads]
    alike = max((difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs), default=0.0)
    return *inside, alike if alike >= ALIKE else 0.0


POINT_SETS = 'furthest point sampling and ball query (mmcv.ops.furthest_point_sample, ball_query)'
MISSING_KERNELS = dict(
    PointNet2SASSG=POINT_SETS,
    PointNet2SAMSG=POINT_SETS,
    PAConvCUDASAModule='scores of neighbours (mmcv.ops.assign_score_withk)',
    VoteHead=POINT_SETS,
    DGCNNBackbone='nearest neighbours (mmcv.ops.knn)',
    PartAggregationROIHead='RoI-aware pooling (mmcv.ops.RoIAwarePool3d)',
    PointRCNNRoIHead='pooling of points in boxes (mmcv.ops.RoIPointPool3d)',
)
"""Class name of a part -> its operator that mmcv has for a GPU alone."""
MISSING_LIBRARIES = dict(MinkResNet='MinkowskiEngine, a library of sparse convolutions with its own tensors')
"""Class name of a part -> the missing library of its operators."""


def missing_operators(model: Mapping[str, Any]) -> list[str]:
    """Return a reason for each class of parts of a config's `model` that lacks an operator."""
    reasons = []
    for name in sorted(set(_type_names(model))):
        if name in MISSING_KERNELS:  # the zoo knows this reason by its last words
            reasons.append(f'{name} needs {MISSING_KERNELS[name]}, not implemented on CPU')
        elif name in MISSING_LIBRARIES:
            reasons.append(f'{name} needs {MISSING_LIBRARIES[name]}')
    return reasons


def _type_names(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(part.get('type'), str):
            yield part['type']
        for value in part.values():
            yield from _type_names(value)
    elif isinstance(part, Sequence) and not isinstance(part, str):
        for value in part:
            yield from _type_names(value)
