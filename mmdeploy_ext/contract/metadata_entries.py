"""The `mm2onnx.*` entries of a file, read: JSON that passes its schema, or an error that names the entry."""

import json
from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.contract.families import FORMER, POSTPROCESS
from mmdeploy_ext.contract.metadata_schema import FIELDS, SPARSE_OPTIONS
from mmdeploy_ext.contract.schema import Check, Mismatch
from mmdeploy_ext.core.errors import ModelFileError

PREFIX = 'mm2onnx.'


class Facts(dict):
    """A dict of what a file says, in which a key that is not there is an error of the file.

    Attributes:
        where: what to say before 'has no KEY'.
    """

    def __init__(self, values: Any, where: str = 'the metadata') -> None:
        super().__init__(values)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise ModelFileError(f'{self.where} has no {key!r}; export it again')

    def __reduce__(self) -> tuple[Any, ...]:
        """Let other processes have it."""
        return Facts, (dict(self), self.where)


def damaged(path: object, name: str, error: object) -> ModelFileError:
    """Return the error of one entry."""
    return ModelFileError(
        f'{path}: its mm2onnx metadata is damaged ({PREFIX}{name}: {error}); export it again'
    )


def read_entry(
    props: Mapping[str, str], name: str, path: object, default: str = '', check: Check | None = None
) -> Any:
    """Return one entry of a file's metadata, by its name without prefix, checked.

    `default` is JSON that stands for an entry which is not there; `check` is of its value, where it is not
    the usual one. ModelFileError: it is no JSON, or of another type, range or length; the message names the
    key.
    """
    try:
        value = json.loads(props.get(PREFIX + name, default))
    except (ValueError, RecursionError) as error:
        raise damaged(path, name, f'is not JSON: {error}') from error
    return check_entry(value, name, path, check)


def check_entries(props: Mapping[str, str], path: object) -> None:
    """Check all entries of a sparse file, whatever reads them; for errors see `read_entry`."""
    checks = {} if f'{PREFIX}preprocess' in props else dict(options=SPARSE_OPTIONS)
    for name in FIELDS:
        if PREFIX + name in props:
            read_entry(props, name, path, check=checks.get(name))


def check_entry(value: Any, name: str, path: object, check: Check | None = None) -> Any:
    """Return a value that passes a check, by default that of its entry; for errors see `read_entry`."""
    try:
        (check or FIELDS[name])(value, '')
    except (Mismatch, OverflowError, RecursionError) as error:
        raise damaged(path, name, error) from error
    return value


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
