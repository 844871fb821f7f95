"""Level 1, too: was a file made from this config and checkpoint, and does it say of itself what they say?

Needs neither torch nor onnx.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.verify.verdict import Check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.deploy import Deployment
    from mmdeploy_ext.metadata import Metadata
    from mmdeploy_ext.spec import GraphSpec, TensorSpec

JUDGED = ('groups', 'compare', 'unused', 'default')
"""Fields of a tensor's contract by which a proof judges; sizes, types and words for people are not."""


def provenance(
    deployment: Deployment, metadata: Metadata, rule: Any, contract: GraphSpec | None
) -> list[Check]:
    """Tell whether a file was made from this checkpoint and config, and says of itself what they say.

    Runners take the file's word for how pictures are prepared, for class names and for thresholds, so that a
    right graph with another rule is not the same model. The proof takes its word for tolerances, so these
    have to be the family's own.

    Args:
        deployment: the config and checkpoint.
        metadata: of the file.
        rule: how pictures become the input, by the config.
        contract: what the family states for a file with these options; None where it has no such graph.
    """
    checks = []
    for title, written, here in (
        ('checkpoint', metadata.checkpoint_sha256, deployment.checkpoint_sha256),
        ('config', metadata.config_sha256, deployment.config_sha256),
    ):
        checks.append(
            Check(
                f'made from this {title}',
                written == here,
                '' if written == here else f'file says {written[:12]}, this {title} is {here[:12]}',
            )
        )
    facts = deployment.family.postprocess_facts(deployment.model)
    told = (
        ('preprocessing', metadata.preprocess.to_json(), rule.to_json()),
        ('classes', dict(classes=metadata.classes), dict(classes=deployment.classes)),
        ('post-processing', metadata.postprocess, facts),
    )
    for title, written, here in told:
        differing = _differing(written, here)
        checks.append(Check(f'{title} as in the config', not differing, differing))
    differing = differing_contract(metadata.spec, contract)
    return [*checks, Check('tolerances as the family states them', not differing, differing)]


def differing_contract(written: GraphSpec, here: GraphSpec | None) -> str:
    """Return how the contract in a file differs from the family's, in what a proof judges by.

    Args:
        written: in the metadata of the file.
        here: what the family states for a file with these options; None where it has no such graph.

    Returns:
        '' when they agree.
    """
    if here is None:
        return f'the family has no graph {written.name!r} with the options in the file'
    found = []
    for title in ('inputs', 'outputs'):
        ours, theirs = (
            {tensor.name: _judged(tensor) for tensor in getattr(spec, title)} for spec in (here, written)
        )
        for name in dict.fromkeys([*ours, *theirs]):
            if name not in ours or name not in theirs:
                found.append(f'{name}: only {"the file" if name in theirs else "the family"} has it')
            elif theirs[name] != ours[name]:
                found.append(f'{name}: {_differing(theirs[name], ours[name], "family")}')
    if written.state != here.state:
        found.append(f'state: the file says {written.state}, the family {here.state}')
    return '; '.join(found)[:300]


def _judged(tensor: TensorSpec) -> dict[str, Any]:
    content = dataclasses.asdict(tensor)
    return {name: content[name] for name in JUDGED}


def _differing(written: Mapping[str, Any], here: Mapping[str, Any], source: str = 'config') -> str:
    """Return which facts differ, compared as JSON has them."""
    written, here = (json.loads(json.dumps(side)) for side in (written, here))
    return '; '.join(
        f'{key}: the file says {written.get(key)}, the {source} {here.get(key)}'
        for key in dict.fromkeys([*here, *written])
        if written.get(key) != here.get(key)
    )[:300]


def normalisation_notes(deployment: Deployment) -> list[str]:
    """Say where pictures are not normalised as the config says, which is an option of the export."""
    given = deployment.family.preprocess_rule(deployment.cfg)
    return [
        f'pictures are normalised with {name} {list(getattr(deployment.rule, name))} (--{name} of the '
        f'export), not with that of the config, {list(getattr(given, name))}; PyTorch ran with the same'
        for name in ('mean', 'std')
        if tuple(getattr(deployment.rule, name)) != tuple(getattr(given, name))
    ]


def override_notes(deployment: Deployment, metadata: Metadata, files: str = 'the file was') -> list[str]:
    """Say which overrides of the config a file was exported with, and whether PyTorch ran with the same."""
    from mmdeploy_ext.deploy import plain_options

    def listed(overrides: Mapping[str, Any]) -> str:
        return ', '.join(f'{key}={value}' for key, value in overrides.items()) or 'none'

    written = metadata.options.get('cfg_options') or {}
    here = plain_options(dict(deployment.cfg_options))
    if not written and not here:
        return []
    same = 'the same' if written == here else f'--cfg-options {listed(here)}'
    return [f'{files} exported with --cfg-options {listed(written)}; PyTorch ran with {same}']
