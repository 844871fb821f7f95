"""Checks that a file was made from this config and checkpoint, metadata included."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.config import cfg_options, config_sha256, test_dataset
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.families.detector import unfitting_names
from mmdeploy_ext.spec.results import Check
from mmdeploy_ext.spec.verdict import AS_IN_CONFIG

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.tensors import GraphSpec

REWORDED = dict(meaning='')
"""Text of a tensor's spec for people; versions word it differently."""


def provenance(detector: Detector, metadata: Metadata, rule: Any, contract: GraphSpec | None) -> list[Check]:
    contract_text = differing_contract(metadata.spec, contract)
    overrides = metadata.options.get('cfg_options') or {}
    return [
        *facts_checks(detector, metadata, rule),
        settings_check(detector.unbuilt_cfg or detector.cfg, overrides),
        Check('contract as in the family', not contract_text, contract_text),
    ]


def facts_checks(detector: Detector, metadata: Metadata, rule: Any) -> list[Check]:
    facts = detector.family.facts(detector.model).to_json()
    preprocessing = unequal_entries(metadata.preprocess.to_json(), rule.to_json())
    postprocessing = unequal_entries(metadata.postprocess.to_json(), facts)
    return [
        Check(f'preprocessing {AS_IN_CONFIG}', not preprocessing, preprocessing),
        class_names_check(detector, metadata.classes),
        Check(f'post-processing {AS_IN_CONFIG}', not postprocessing, postprocessing),
    ]


def class_names_check(detector: Detector, names: Sequence[str]) -> Check:
    differing = [
        f'label {label}: the file says {got!r}, expected {name!r}'
        for label, (got, name) in enumerate(zip(names, detector.classes, strict=False))
        if got != name
    ]
    if len(names) != len(detector.classes):
        differing.insert(0, f'names: the file has {len(names)}, expected {len(detector.classes)}')
    return Check('classes as in checkpoint, data set or config', not differing, '; '.join(differing)[:300])


def class_name_notes(detector: Detector) -> list[str]:
    meta, dataset = getattr(detector.report, 'meta', None) or {}, test_dataset(detector.cfg)
    names, classes = meta.get('CLASSES'), list(detector.classes)
    if not classes:
        return []
    if unfitting := unfitting_names(detector.cfg, meta, len(classes)):
        return [f'{text}: the first one in the file is {classes[0]!r}' for text in unfitting]
    if not isinstance(names, list | tuple):
        return []
    for source in (dataset.get('classes'), detector.cfg.get('classes'), detector.cfg.get('class_names')):
        if isinstance(source, list | tuple) and len(source) == len(classes) and [*source] != classes:
            label = next(index for index, name in enumerate(classes) if source[index] != name)
            pair = (
                f'label {label} is {classes[label]!r} in the checkpoint and {source[label]!r} in the config'
            )
            return [f'the file has the class names of the checkpoint: {pair}']
    return []


def companion_checks(folder: Path, companions: Mapping[str, str]) -> list[Check]:
    checks = []
    for name, expected in companions.items():
        path, detail = folder / name, ''
        text = path.read_text(encoding='utf-8', errors='replace') if path.is_file() else None
        if text is None:
            detail = 'is missing'
        elif text != expected:
            pairs = zip(text.splitlines(), expected.splitlines(), strict=False)
            lines = (f'{got!r}, expected {line!r}' for got, line in pairs if got != line)
            detail = next(lines, 'has a different number of lines, or a different end')
        checks.append(Check(f'{name} as the export writes it', not detail, detail))
    return checks


def hash_checks(detector: Any, recorded: Mapping[str, str], is_same: bool) -> tuple[list[Check], list[str]]:
    """Compare recorded hashes of 'checkpoint' and 'config'; return checks and notes."""
    checks, notes = [], []
    for title, file_hash in recorded.items():
        sha256 = getattr(detector, f'{title}_sha256')
        detail = ''
        if file_hash != sha256:
            detail = f'the file names {file_hash[:12]}, this {title} is {sha256[:12]}'
        if detail and is_same:
            notes.append(f'the file was made from another {title} ({detail}); its graph is the same')
        else:
            checks.append(Check(f'made from this {title}', not detail, detail))
    return checks, notes


def asked_checks(options: Mapping[str, Any], expected: Mapping[str, Any]) -> list[Check]:
    """Return a check per requested export option."""
    checks = []
    for name, value in expected.items():
        recorded = options.get(name)
        detail = f'requested {value}, the file says {recorded}'
        checks.append(Check(f'{name} as requested', _plain(recorded) == _plain(value), detail))
    return checks


def settings_check(cfg: Any, overrides: Mapping[str, Any]) -> Check:
    differing = _differing_settings(cfg, overrides)
    return Check(f'settings {AS_IN_CONFIG}', not differing, differing)


def refuse_other_settings(cfg: Any, overrides: Mapping[str, Any], path: object) -> None:
    """Raise UsageError if the config lacks a file's overrides."""
    if differing := _differing_settings(cfg, overrides):
        raise UsageError(f'{path}: was exported with other settings than this config has: {differing}')


def _differing_settings(cfg: Any, overrides: Mapping[str, Any]) -> str:
    if not overrides:
        return ''
    cfg = cfg.get('as_read', cfg)  # overrides apply before a family translates the config
    changed = copy.deepcopy(cfg)
    with contextlib.suppress(KeyError, TypeError):  # a shorter list, or a number instead of a dict
        changed.merge_from_dict(copy.deepcopy(dict(overrides)))
        if config_sha256(changed) == config_sha256(cfg):
            return ''
    settings = {key: _setting_at(cfg, key) for key in overrides}
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(settings[key], dict):  # merged in
            settings[key] = {name: settings[key].get(name) for name in value}
    differing = '; '.join(
        f'{key}: the file says {value}, the config {settings[key]}'
        for key, value in overrides.items()
        if settings[key] != value
    )
    return f'{differing[:300]}; if that is intended, pass {cfg_options(overrides)}'


def _setting_at(cfg: Any, key: str) -> Any:
    for part in key.split('.'):
        try:
            cfg = cfg[int(part) if isinstance(cfg, list | tuple) else part]
        except (LookupError, TypeError, ValueError):
            return 'has no such key'
    return _plain(cfg)


def _plain(value: Any) -> Any:
    if hasattr(value, 'items'):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def differing_contract(recorded: GraphSpec, contract: GraphSpec | None) -> str:
    """Return the difference of a file's contract, or ''."""
    if contract is None:
        return f'the family has no graph {recorded.name!r} with the options in the file'
    differing = []
    for title in ('inputs', 'outputs'):
        ours, theirs = (
            {tensor.name: dataclasses.asdict(tensor) | REWORDED for tensor in getattr(spec, title)}
            for spec in (contract, recorded)
        )
        if list(theirs) != list(ours):
            differing.append(f'{title}: the file has {", ".join(theirs)}, the family {", ".join(ours)}')
        differing += [
            f'{name}: {unequal_entries(theirs[name], ours[name], "family")}'
            for name in ours
            if name in theirs and theirs[name] != ours[name]
        ]
    for name in ('state', 'name'):
        file_value, family_value = getattr(recorded, name), getattr(contract, name)
        if file_value != family_value:
            differing.append(f'{name}: the file says {file_value}, the family {family_value}')
    return '; '.join(differing)[:300]


def unequal_entries(recorded: Mapping[str, Any], expected: Mapping[str, Any], source: str = 'config') -> str:
    """Return a text about entries that differ as JSON, or ''."""
    file_texts, texts = (
        {key: json.dumps(value, sort_keys=True) for key, value in side.items()}
        for side in (recorded, expected)
    )
    return '; '.join(
        f'{key}: the file says {recorded.get(key, "nothing")}, the {source} {expected.get(key, "nothing")}'
        for key in dict.fromkeys([*expected, *recorded])
        if file_texts.get(key) != texts.get(key)
    )[:300]


def normalisation_notes(detector: Detector) -> list[str]:
    """Return notes on `--mean` and `--std` overrides."""
    config_rule = detector.family.preprocess_rule(detector.cfg)
    return [
        f'images are normalised with {name} {list(getattr(detector.rule, name))} (--{name}), not with '
        f'{list(getattr(config_rule, name))} of the config; PyTorch used the same'
        for name in ('mean', 'std')
        if tuple(getattr(detector.rule, name)) != tuple(getattr(config_rule, name))
    ]


def override_notes(detector: Detector, metadata: Metadata, subject: str = 'the file was') -> list[str]:
    lowered = [
        f'{key} is {limit} in the file and in PyTorch, not {given} as in the config: TensorRT sorts no more '
        f'(--for {metadata.options["made_for"]})'
        for key, (given, limit) in detector.lowered.items()
    ]
    both = metadata.options.get('cfg_options') or {}, detector.cfg_options
    if not any(both):
        return lowered
    listed = [', '.join(f'{key}={value}' for key, value in overrides.items()) or 'none' for overrides in both]
    return [f'{subject} exported with --cfg-options {listed[0]}; PyTorch ran with {listed[1]}', *lowered]


def stale_reason(recorded: Metadata, current: Metadata) -> str:
    """Return why a file is stale by a new export's metadata, or ''."""
    options, file_options = ({**metadata.options, 'cfg_options': None} for metadata in (current, recorded))
    is_same_version = recorded.versions == current.versions
    facts = {
        'config': recorded.config_sha256 != current.config_sha256,
        'checkpoint': recorded.checkpoint_sha256 != current.checkpoint_sha256,
        'export options': options != file_options,
        'versions': not is_same_version,
        'source of its classes': is_same_version and recorded.model_classes != current.model_classes,
        'contract': differing_contract(recorded.spec, current.spec),
        'list of class names': tuple(recorded.classes) != tuple(current.classes),
    }
    differing = [title for title, differs in facts.items() if differs]
    return f'stale: the {" and ".join(differing)} changed' if differing else ''


KERNEL_AXES = 5
"""Axes of a sparse kernel; versions of spconv order them differently."""


def weights_checks(detector: Detector) -> list[Check]:
    """Compare the model's weights with the checkpoint's."""
    import torch

    from mmdeploy_ext.upstream.weights.checkpoint import read_content

    path, report = Path(detector.checkpoint), detector.report
    if not path.is_file() or getattr(report, 'folded', ()) or getattr(report, 'form', '') == 'pickled module':
        return []
    content = read_content(path)
    tensors = {
        str(name).removeprefix('module.'): tensor
        for name, tensor in content.get('state_dict', content).items()
        if isinstance(tensor, torch.Tensor)
    }
    unused = detector.family.ignored_prefixes
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
    if getattr(report, 'prefix', None) is not None:  # a backbone may have another prefix in its file
        place = f'{report.encoder}.' if report.encoder else ''
        tensors = {place + name.removeprefix(report.prefix): tensor for name, tensor in tensors.items()}
    detail = differing_weights(detector.model.state_dict(), tensors)
    return [Check(f'weights of {path.name}', not detail, detail)]


def differing_weights(weights: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> str:
    shared = weights.keys() & tensors.keys()
    if not shared:
        return f'no tensor is named like a weight of the model, such as {next(iter(weights))}'
    names = [name for name in weights if name in shared and not _are_equal(weights[name], tensors[name])]
    more = f' and {len(names) - 1} more differ' if names[1:] else ' differs'
    return f'{names[0]}{more}' if names else ''


def _are_equal(weight: torch.Tensor, tensor: torch.Tensor) -> bool:
    import torch

    weight, tensor = weight.cpu(), tensor.to(weight.dtype)
    if weight.ndim == 2 and weight.shape[1] == tensor.shape[1] + 1:  # zeros for the heights of 0.x's pillars
        weight, tensor = weight[:, weight.any(0)], tensor[:, tensor.any(0)]
    if weight.ndim == KERNEL_AXES and not torch.equal(weight, tensor):
        weight, tensor = (values.flatten().sort().values for values in (weight, tensor))
    return torch.equal(weight, tensor)
