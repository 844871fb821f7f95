"""Level 1 of metadata: was a file made from this config and checkpoint, and do its entries agree with them?

Its import needs neither torch nor onnx.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.config import cfg_options, test_dataset
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.families.building import data_class
from mmdeploy_ext.proving.results import Check

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.exporting.deployment import Deployment

DEFAULT_NAMES = 'class of the data set'
"""Title of the names that a data set has by its class, if neither checkpoint nor config names any."""


def provenance(
    deployment: Deployment, metadata: Metadata, rule: Any, contract: GraphSpec | None
) -> list[Check]:
    """Check that the metadata of a file agree with this config and checkpoint, but for their hashes.

    Those are compared by `hash_checks`. Runners read from the file how pictures are prepared, class names and
    thresholds, so that a right graph with another rule is not the same model. The proof reads tolerances from
    it, so these have to be the family's own.

    Args:
        deployment: the config and checkpoint.
        metadata: metadata of the file.
        rule: the preprocessing rule by the config, `--mean` and `--std`.
        contract: the contract that the family states for these options; None if it has no such graph.
    """
    contract_text = differing_contract(metadata.spec, contract)
    overrides = metadata.options.get('cfg_options') or {}
    return [
        *facts_checks(deployment, metadata, rule),
        settings_check(deployment.unbuilt_cfg or deployment.cfg, overrides),
        Check('contract as the family states it', not contract_text, contract_text),
    ]


def facts_checks(deployment: Deployment, metadata: Metadata, rule: Any) -> list[Check]:
    """Check what runners read from the metadata of a file: preprocessing, class names, post-processing.

    The arguments are those of `provenance`.
    """
    facts = deployment.family.postprocess_facts(deployment.model)
    preprocessing = unequal_entries(metadata.preprocess.to_json(), rule.to_json())
    postprocessing = unequal_entries(metadata.postprocess, facts)
    return [
        Check('preprocessing as in the config', not preprocessing, preprocessing),
        class_names_check(deployment, metadata.classes),
        Check('post-processing as in the config', not postprocessing, postprocessing),
    ]


def class_names_check(deployment: Deployment, names: Sequence[str]) -> Check:
    """Compare the class names in a file with those of the first source that names all classes.

    If none does, 'class 0', 'class 1' and so on are expected.

    `class_names` of `exporting/deployment.py`, which gives files their names, is not called: a fault in it
    would be on both sides.
    """
    count = deployment.family.num_classes(deployment.model)
    fitting = ((source, listed) for source, listed in _class_sources(deployment) if len(listed) == count)
    source, expected = next(fitting, ('model', [f'class {index}' for index in range(count)]))
    differing = [
        f'label {label}: the file says {got!r}, the {source} {name!r}'
        for label, (got, name) in enumerate(zip(names, expected, strict=False))
        if got != name
    ]
    if len(names) != len(expected):
        differing.insert(0, f'names: the file has {len(names)}, the {source} {len(expected)}')
    return Check('classes as in checkpoint, data set or config', not differing, '; '.join(differing)[:300])


def _class_sources(deployment: Deployment) -> Iterator[tuple[str, list[str]]]:
    """Yield title and class names by label of each source: what was trained first, defaults last."""
    meta, cfg = getattr(deployment.report, 'meta', None) or {}, deployment.cfg
    yield from (('checkpoint', names) for names in names_in_checkpoint(meta))
    dataset = test_dataset(cfg)
    dataset_class, classes = data_class(dataset.get('type'), 'DATASETS'), dataset.get('classes')
    if classes is not None:  # a list, or the name of a file of names, which mmdet's data sets read
        # a data set that is not derived from mmdet's takes a list as it is
        names = getattr(dataset_class, 'get_classes', lambda names: names)(classes)
        yield 'data set of the config', _names(names)
    for key in ('classes', 'class_names'):
        yield f'config ({key})', _names(cfg.get(key))
    yield DEFAULT_NAMES, _names(getattr(dataset_class, 'CLASSES', None))


def names_in_checkpoint(meta: Mapping[str, Any]) -> list[list[str]]:
    """Return the lists of class names in the `meta` of a checkpoint, mmengine's first."""
    dataset_meta = meta.get('dataset_meta') or {}
    listed = [_names(dataset_meta.get(key)) for key in ('classes', 'CLASSES')]
    return [names for names in (*listed, _names(meta.get('CLASSES'))) if names]


def training_notes(model: torch.nn.Module) -> list[str]:
    """Return a note if layers that compute otherwise in a training are in that mode after `eval()`; else [].

    These are normalisation by statistics, and dropout. A `train` of the user's may leave layers so; a graph
    has them as in a test.
    """
    from mmdeploy_ext.lint.check import TRAINED_LAYERS

    names = [
        name for name, part in model.named_modules() if part.training and isinstance(part, TRAINED_LAYERS)
    ]
    if not names:
        return []
    layers = f' and {len(names) - 1} more layers are' if names[1:] else ' is'
    return [f'{names[0]}{layers} in training mode after eval(); the graph has them as in a test']


def class_name_notes(deployment: Deployment) -> list[str]:
    """Return a note if sources of class names do not fit the model or each other; else [].

    Either the first source, whose names mmdet takes, has not as many as the model has classes: the file then
    has those of the first source with as many, else numbers. Or the checkpoint is the first source and has as
    many, and the config, by whose names a data set is evaluated, has as many other ones, or the same ones in
    another order; a config with another number of names is passed over.
    """
    count = deployment.family.num_classes(deployment.model)
    sources = [(source, names) for source, names in _class_sources(deployment) if names]
    if not count or not sources:
        return []
    if len(sources[0][1]) == count:
        return _differing_names(sources)
    fitting = next((source for source, names in sources if len(names) == count), '')
    numbers = f'the file calls its classes class 0 to class {count - 1}'
    words = f'the file calls its classes as the {fitting} does' if fitting else numbers
    source, names = sources[0]
    return [f'{words}: the model has {count}, the {source} names {len(names)}']


def _differing_names(sources: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Return a note on the first source in the config whose names differ from those of the checkpoint."""
    (first, names), *later_sources = sources
    if first != 'checkpoint':
        return []
    for source, listed in later_sources:
        if source not in ('checkpoint', DEFAULT_NAMES) and len(listed) == len(names) and listed != names:
            label = next(index for index, name in enumerate(names) if listed[index] != name)
            pair = f'label {label} is {names[label]!r} in the {first} and {listed[label]!r} in the {source}'
            return [f'the file calls its classes as the {first} does: {pair}']
    return []


def _names(value: Any) -> list[str]:
    """Return a list of names as texts; an empty one for anything that is no list."""
    return [str(name) for name in value] if isinstance(value, list | tuple) else []


def companion_checks(folder: Path, companions: Mapping[str, str]) -> list[Check]:
    """Compare the text files beside the graphs with those that an export writes, whatever ends their lines.

    Args:
        folder: folder of the graphs.
        companions: name of a file -> expected text, as `Family.companions` returns it.
    """
    checks = []
    for name, expected in companions.items():
        path, detail = folder / name, ''
        text = path.read_text(encoding='utf-8', errors='replace') if path.is_file() else None
        if text is None:
            detail = 'is not there'
        elif text != expected:
            pairs = zip(text.splitlines(), expected.splitlines(), strict=False)
            lines = (f'{got!r}, expected {line!r}' for got, line in pairs if got != line)
            detail = next(lines, 'has another number of lines, or ends otherwise')
        checks.append(Check(f'{name} as the export writes it', not detail, detail))
    return checks


def hash_checks(deployment: Any, recorded: Mapping[str, str], is_same: bool) -> tuple[list[Check], list[str]]:
    """Compare the hashes of checkpoint and config that a file records; return checks, and notes.

    Args:
        deployment: the config and checkpoint.
        recorded: 'checkpoint' and 'config' -> hash in the file.
        is_same: whether the graph is that of a fresh export: then another hash is a note, and no failure.
    """
    checks, notes = [], []
    for title, file_hash in recorded.items():
        sha256 = getattr(deployment, f'{title}_sha256')
        detail = ''
        if file_hash != sha256:
            detail = f'file says {file_hash[:12]}, this {title} is {sha256[:12]}'
        if detail and is_same:
            notes.append(f'the file was made from another {title} ({detail}); its graph is the same')
        else:
            checks.append(Check(f'made from this {title}', not detail, detail))
    return checks, notes


def asked_checks(options: Mapping[str, Any], expected: Mapping[str, Any]) -> list[Check]:
    """Return a check per option that the user asked the export for.

    Args:
        options: option -> value in the file's metadata.
        expected: option -> value that the user asked for.
    """
    checks = []
    for name, value in expected.items():
        recorded = options.get(name)
        detail = f'asked for {value}, the file says {recorded}'
        checks.append(Check(f'{name} as asked for', _plain(recorded) == _plain(value), detail))
    return checks


def settings_check(cfg: Any, overrides: Mapping[str, Any]) -> Check:
    """Check that a config, with the overrides of the command line, has the overrides of a file.

    The proof does not apply the file's overrides by itself: the user has to give them again. Those that
    change neither the model nor its test pipeline, as paths, need not be there.

    Args:
        cfg: mmcv's config.
        overrides: key with dots -> value, `cfg_options` of the file.
    """
    differing = _differing_settings(cfg, overrides)
    return Check('settings as in the config', not differing, differing)


def refuse_other_settings(cfg: Any, overrides: Mapping[str, Any], path: object) -> None:
    """Refuse a file that was exported with overrides which neither the config nor the command line has.

    Which overrides count is as in `settings_check`.

    Args:
        cfg: mmcv's config, with the overrides of the command line.
        overrides: key with dots -> value, `cfg_options` of the file.
        path: path of the file, for the message.

    Raises:
        UsageError: the message has the options to give.
    """
    if differing := _differing_settings(cfg, overrides):
        raise UsageError(f'{path}: was exported with other settings than this config has: {differing}')


def _differing_settings(cfg: Any, overrides: Mapping[str, Any]) -> str:
    """Return a text about overrides of a file that a config lacks or has otherwise, with a remedy, or ''.

    One within a part that a later override replaces has no effect: mmcv drops it.
    """
    cfg = cfg.get('as_read', cfg)  # overrides are of the config before a family translated it
    if not _changes_export(cfg, overrides):  # together: `_delete_` alone would take away what follows it
        return ''
    keys = list(overrides)
    in_effect = {
        key: overrides[key]
        for place, key in enumerate(keys)
        if not any(key.startswith(f'{later}.') for later in keys[place + 1 :])
    }
    settings = {key: _like(setting_at(cfg, key), value) for key, value in in_effect.items()}
    differing_keys = [
        key
        for key, value in in_effect.items()
        if settings[key] != value and _changes_export(cfg, {key: value})
    ]
    differing = '; '.join(
        f'{key}: the file says {overrides[key]}, the config '
        f'{"has no such key" if settings[key] is _MISSING else settings[key]}'
        for key in differing_keys
    )
    return f'{differing[:300]}; where that is meant, give {cfg_options(overrides)}'


def _changes_export(cfg: Any, overrides: Mapping[str, Any]) -> bool:
    """Return whether overrides change what is exported: the model or its test pipeline, and no path.

    One that the config has no place for counts as such.
    """
    from mmdeploy_ext.core.config import config_sha256

    changed = copy.deepcopy(cfg)
    try:
        changed.merge_from_dict(copy.deepcopy(dict(overrides)))
    except (KeyError, TypeError):  # a list is shorter, or a number is in the place of a dict
        return True
    return config_sha256(changed) != config_sha256(cfg)


def _like(setting: Any, override: Any) -> Any:
    """Return a setting as plain types; of a dict the keys of an override, which is merged in."""
    if isinstance(override, dict) and hasattr(setting, 'get'):
        return {key: _like(setting.get(key, _MISSING), value) for key, value in override.items()}
    return _plain(setting)


_MISSING = object()


def setting_at(cfg: Any, key: str) -> Any:
    """Return the value of a config under a key with dots, `_MISSING` if there is none."""
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


def differing_contract(recorded: GraphSpec, contract: GraphSpec | None) -> str:
    """Return how the contract in a file differs from the family's; '' if it does not.

    All fields are compared: a proof uses the tolerances, runtimes names and axes, and readers units and
    meanings.

    Args:
        recorded: the contract in the file.
        contract: the one that the family states for a file with these options; None if it has no such graph.
    """
    if contract is None:
        return f'the family has no graph {recorded.name!r} with the options in the file'
    differing = []
    for title in ('inputs', 'outputs'):
        ours, theirs = (
            {tensor.name: dataclasses.asdict(tensor) for tensor in getattr(spec, title)}
            for spec in (contract, recorded)
        )
        for name in dict.fromkeys([*ours, *theirs]):
            if name not in ours or name not in theirs:
                differing.append(f'{name}: only {"the file" if name in theirs else "the family"} has it')
            elif theirs[name] != ours[name]:
                differing.append(f'{name}: {unequal_entries(theirs[name], ours[name], "family")}')
        if not differing and list(theirs) != list(ours):
            orders = f'the file has the order {", ".join(theirs)}, the family {", ".join(ours)}'
            differing.append(f'{title}: {orders}')
    for name in ('state', 'name'):
        file_value, family_value = getattr(recorded, name), getattr(contract, name)
        if file_value != family_value:
            differing.append(f'{name}: the file says {file_value}, the family {family_value}')
    return '; '.join(differing)[:300]


def unequal_entries(recorded: Mapping[str, Any], expected: Mapping[str, Any], source: str = 'config') -> str:
    """Return a text about the entries of two dicts that differ; '' if none does.

    They are compared as JSON: an entry None differs from no entry, and True from 1.

    Args:
        recorded: entries in the file.
        expected: entries that it should have.
        source: what the text calls the expected side.
    """
    file_texts, texts = (
        {key: json.dumps(value, sort_keys=True) for key, value in side.items()}
        for side in (recorded, expected)
    )
    return '; '.join(
        f'{key}: the file says {recorded.get(key, "nothing")}, the {source} {expected.get(key, "nothing")}'
        for key in dict.fromkeys([*expected, *recorded])
        if file_texts.get(key) != texts.get(key)
    )[:300]


def normalisation_notes(deployment: Deployment) -> list[str]:
    """Return notes on `--mean` and `--std`, if they replace those of the config."""
    config_rule = deployment.family.preprocess_rule(deployment.cfg)
    return [
        f'pictures are normalised with {name} {list(getattr(deployment.rule, name))} (--{name}), not with '
        f'that of the config, {list(getattr(config_rule, name))}; PyTorch ran with the same'
        for name in ('mean', 'std')
        if tuple(getattr(deployment.rule, name)) != tuple(getattr(config_rule, name))
    ]


def override_notes(deployment: Deployment, metadata: Metadata, subject: str = 'the file was') -> list[str]:
    """Return a note on the overrides of the config that a file was exported with; `subject` begins it.

    It also has those that PyTorch ran with; [] if there are neither.
    """
    both = metadata.options.get('cfg_options') or {}, deployment.cfg_options
    if not any(both):
        return []
    listed = [', '.join(f'{key}={value}' for key, value in overrides.items()) or 'none' for overrides in both]
    return [f'{subject} exported with --cfg-options {listed[0]}; PyTorch ran with {listed[1]}']


def stale_reason(recorded: Metadata, current: Metadata) -> str:
    """Return why a file has to be exported again; '' if it does not.

    Class names are compared, as the config's hash has only its model and test pipeline, and so is the code of
    the model's classes (`Metadata.model_classes`). Overrides of the config are left out: those that decide
    the graph are in that hash.

    Args:
        recorded: the metadata of the file.
        current: the metadata that a new export would have.
    """
    options, file_options = ({**metadata.options, 'cfg_options': None} for metadata in (current, recorded))
    facts = {
        'config': recorded.config_sha256 != current.config_sha256,
        'checkpoint': recorded.checkpoint_sha256 != current.checkpoint_sha256,
        'export options': options != file_options,
        'versions': recorded.versions != current.versions,
        'source of its classes': recorded.model_classes != current.model_classes,
        'contract': differing_contract(recorded.spec, current.spec),
        'list of class names': tuple(recorded.classes) != tuple(current.classes),
    }
    differing = [title for title, differs in facts.items() if differs]
    return f'stale: another {" and ".join(differing)}' if differing else ''
