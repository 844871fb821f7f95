"""What the `postprocess` entry of a file holds: checked, by its family, when the file is opened."""

from typing import Any

from mmdeploy_ext.contract.families import FORMER, POSTPROCESS
from mmdeploy_ext.contract.metadata_entries import Facts, check_entry


def current(family: str, facts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the family of a file by its current name, and the facts as it would write them now."""
    name, upgrade = FORMER.get(family, (family, dict))
    return name, upgrade(facts)


def checked_facts(facts: dict[str, Any], family: str, path: object) -> Facts:
    """Return the facts of a file; a family that ships no runtime has any. ModelFileError names the key."""
    if family in POSTPROCESS:
        check_entry(facts, 'postprocess', path, POSTPROCESS[family])
    return _facts(facts, f'{path}: mm2onnx.postprocess')


def _facts(values: dict[str, Any], where: str) -> Facts:
    """Return a dict and those in it, all of which say where a key is missing."""
    found = {
        key: _facts(value, f'{where}.{key}') if isinstance(value, dict) else value
        for key, value in values.items()
    }
    return Facts(found, where)
