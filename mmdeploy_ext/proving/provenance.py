"""Level 1, too: was a file made from this config and checkpoint, and do its metadata agree with them?

Needs neither torch nor onnx.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.proving.class_names import class_names_check
from mmdeploy_ext.proving.results import Check

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.exporting.deployment import Deployment


def provenance(
    deployment: Deployment, metadata: Metadata, rule: Any, contract: GraphSpec | None
) -> list[Check]:
    """Check that the metadata of a file agree with this config and checkpoint.

    Runners read from the file how pictures are prepared, class names and thresholds, so that a right graph
    with another rule is not the same model. The proof reads tolerances from it, so these have to be the
    family's own.

    Args:
        deployment: the config and checkpoint.
        metadata: of the file.
        rule: how pictures become the input, by the config, `--mean` and `--std`.
        contract: see `differing_contract`.
    """
    facts = deployment.family.postprocess_facts(deployment.model)
    differing = {
        'preprocessing as in the config': unequal_entries(metadata.preprocess.to_json(), rule.to_json()),
        'post-processing as in the config': unequal_entries(metadata.postprocess, facts),
        'contract as the family states it': differing_contract(metadata.spec, contract),
    }
    checks = [Check(title, not found, found) for title, found in differing.items()]
    checks.insert(1, class_names_check(deployment, metadata.classes))
    checks.insert(
        -1,
        settings_check(deployment.unbuilt_cfg or deployment.cfg, metadata.options.get('cfg_options') or {}),
    )
    return checks


def companion_checks(folder: Path, wanted: Mapping[str, str]) -> list[Check]:
    """Compare the texts beside the graphs with those that an export writes, see `Family.companions`."""
    found = []
    for name, text in wanted.items():
        path = folder / name
        there = path.read_text(encoding='utf-8', errors='replace') if path.is_file() else None
        pairs = zip((there or '').splitlines(), text.splitlines(), strict=False)
        line = next((f'{got.strip()!r}, expected {due.strip()!r}' for got, due in pairs if got != due), '')
        said = 'is not there' if there is None else line or 'has another number of lines'
        found.append(Check(f'{name} as the export writes it', there == text, said * (there != text)))
    return found


def hash_checks(deployment: Any, written: Mapping[str, str], is_same: bool) -> tuple[list[Check], list[str]]:
    """Compare the hashes of checkpoint and config that are written in a file; return checks, and notes.

    Where the graph `is_same` as that of a fresh export another hash is worth a note, and no failure.
    """
    checks, notes = [], []
    for title, said in written.items():
        here = getattr(deployment, f'{title}_sha256')
        detail = '' if said == here else f'file says {said[:12]}, this {title} is {here[:12]}'
        if detail and is_same:
            notes.append(f'the file was made from another {title} ({detail}); its graph is the same')
        else:
            checks.append(Check(f'made from this {title}', not detail, detail))
    return checks, notes


def asked_checks(options: Mapping[str, Any], asked: Mapping[str, Any]) -> list[Check]:
    """Return a check per option of the export that the command line of the proof says."""
    checks = []
    for name, value in asked.items():
        written = options.get(name)
        said = f'asked for {value}, the file says {written}'
        checks.append(Check(f'{name} as asked for', written == value, said))
    return checks


def settings_check(cfg: Any, overrides: Mapping[str, Any]) -> Check:
    """Check that a config, with the overrides of the command line, has the overrides of a file.

    Nothing is taken from the file: also a key that the config does not have has to be given.
    """
    differing = _differing_settings(cfg, overrides)
    return Check('settings as in the config', not differing, differing)


def refuse_other_settings(cfg: Any, overrides: Mapping[str, Any], path: object) -> None:
    """Refuse a file that was exported with overrides which neither the config nor the command line has.

    UsageError: the message has the options to give.
    """
    if differing := _differing_settings(cfg, overrides):
        raise UsageError(f'{path}: was exported with other settings than this config has: {differing}')


def _differing_settings(cfg: Any, overrides: Mapping[str, Any]) -> str:
    """Return which overrides of a file a config lacks or has otherwise, and what to type; '' for none."""
    here = {key: _like(_setting(cfg, key), value) for key, value in overrides.items()}
    other = [key for key, value in overrides.items() if here[key] != value and _matters(cfg, key, value)]
    if not other:
        return ''
    differing = '; '.join(
        f'{key}: the file says {overrides[key]}, the config '
        f'{"has no such key" if here[key] is _MISSING else here[key]}'
        for key in other
    )
    words = ' '.join(f'{key}={value}' for key, value in overrides.items())
    return f'{differing[:300]}; where that is meant, give --cfg-options {words}'


def _matters(cfg: Any, key: str, value: Any) -> bool:
    """Return whether an override changes what is exported: the model or its test pipeline, and no path."""
    from mmdeploy_ext.core.config import config_sha256

    changed = copy.deepcopy(cfg)
    changed.merge_from_dict({key: value})
    return config_sha256(changed) != config_sha256(cfg)


def _like(setting: Any, override: Any) -> Any:
    """Return what a config says as plain types; of a dict the keys of an override, which is merged in."""
    if isinstance(override, dict) and hasattr(setting, 'get'):
        return {key: _like(setting.get(key, _MISSING), value) for key, value in override.items()}
    return _plain(setting)


_MISSING = object()


def _setting(cfg: Any, key: str) -> Any:
    """Return what a config says under a key with dots, `_MISSING` where it says nothing."""
    for part in key.split('.'):
        if isinstance(cfg, list | tuple):
            if not part.isdigit() or int(part) >= len(cfg):
                return _MISSING
            cfg = cfg[int(part)]
        elif hasattr(cfg, 'get') and part in cfg:
            cfg = cfg[part]
        else:
            return _MISSING
    return cfg


def _plain(value: Any) -> Any:
    if hasattr(value, 'items'):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def differing_contract(written: GraphSpec, here: GraphSpec | None) -> str:
    """Return how the contract in a file differs from the family's; '' for nothing.

    The family's is what it states for a file with these options; None where it has no such graph. Everything
    counts: a proof judges by the tolerances, runtimes by names and axes, and a consumer reads units and
    meanings.
    """
    if here is None:
        return f'the family has no graph {written.name!r} with the options in the file'
    found = []
    for title in ('inputs', 'outputs'):
        sides = (getattr(spec, title) for spec in (here, written))
        ours, theirs = ({tensor.name: dataclasses.asdict(tensor) for tensor in tensors} for tensors in sides)
        for name in dict.fromkeys([*ours, *theirs]):
            if name not in ours or name not in theirs:
                found.append(f'{name}: only {"the file" if name in theirs else "the family"} has it')
            elif theirs[name] != ours[name]:
                found.append(f'{name}: {unequal_entries(theirs[name], ours[name], "family")}')
        if not found and list(theirs) != list(ours):
            found.append(f'{title}: the file has the order {", ".join(theirs)}, the family {", ".join(ours)}')
    for name in ('state', 'name'):
        if getattr(written, name) != getattr(here, name):
            found.append(f'{name}: the file says {getattr(written, name)}, the family {getattr(here, name)}')
    return '; '.join(found)[:300]


def unequal_entries(written: Mapping[str, Any], here: Mapping[str, Any], source: str = 'config') -> str:
    """Return which entries differ, compared as JSON: one that is None is there, and True is not 1."""
    texts = [
        {key: json.dumps(value, sort_keys=True) for key, value in side.items()} for side in (written, here)
    ]
    return '; '.join(
        f'{key}: the file says {written.get(key, "nothing")}, the {source} {here.get(key, "nothing")}'
        for key in dict.fromkeys([*here, *written])
        if texts[0].get(key) != texts[1].get(key)
    )[:300]


def normalisation_notes(deployment: Deployment) -> list[str]:
    """Say where pictures are not normalised as the config says, which is an option of the export."""
    given = deployment.family.preprocess_rule(deployment.cfg)
    return [
        f'pictures are normalised with {name} {list(getattr(deployment.rule, name))} (--{name}), not with '
        f'that of the config, {list(getattr(given, name))}; PyTorch ran with the same'
        for name in ('mean', 'std')
        if tuple(getattr(deployment.rule, name)) != tuple(getattr(given, name))
    ]


def override_notes(deployment: Deployment, metadata: Metadata, files: str = 'the file was') -> list[str]:
    """Say which overrides of the config a file was exported with."""
    both = metadata.options.get('cfg_options') or {}, deployment.cfg_options
    if not any(both):
        return []
    listed = [', '.join(f'{key}={value}' for key, value in one.items()) or 'none' for one in both]
    return [f'{files} exported with --cfg-options {listed[0]}; PyTorch ran with {listed[1]}']


def stale_reason(found: Metadata, wanted: Metadata) -> str:
    """Return why a file has to be exported again; '' when it need not.

    Overrides of the config are left out: those that decide the graph are in the config's hash.
    """
    mine, theirs = ({**metadata.options, 'cfg_options': None} for metadata in (wanted, found))
    facts = {
        'config': found.config_sha256 != wanted.config_sha256,
        'checkpoint': found.checkpoint_sha256 != wanted.checkpoint_sha256,
        'export options': mine != theirs,
        'versions': found.versions != wanted.versions,
        'source of its classes': found.model_classes != wanted.model_classes,
        'contract': differing_contract(found.spec, wanted.spec),
    }
    differing = [title for title, differs in facts.items() if differs]
    return f'stale: another {" and ".join(differing)}' if differing else ''
