"""The `mm2onnx.*` entries of a file, read: JSON that passes its schema, or an error that names the entry."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mmdeploy_ext.contract.metadata_schema import BACKBONE_ENTRIES, FIELDS, FILE_ENTRIES, options_of_backbone
from mmdeploy_ext.contract.registry import registered
from mmdeploy_ext.contract.schema import Check, Mismatch
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.printable import printable

PREFIX = 'mm2onnx.'
GRAPH_RULES = 5
"""Number of the rules by which files are written; a new one whenever the same model gives another graph, or
metadata of another form. Files of another number are refused: there is one way to read a file."""


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


def entries_of(listed: Iterable[Any], path: object) -> dict[str, str]:
    """Return the `metadata_props` of a file as a dict; ModelFileError: one of ours is there twice.

    Which of two values counts would depend on who reads the file. Entries have a `key` and a `value`.
    """
    props: dict[str, str] = {}
    for entry in listed:
        if entry.key in props and entry.key.startswith(PREFIX):
            raise damaged(path, entry.key.removeprefix(PREFIX), 'is there twice')
        props[entry.key] = entry.value
    return props


def check_names(props: Mapping[str, str], path: object, entries: Mapping[str, bool] = FILE_ENTRIES) -> None:
    """Refuse a file that states what today's exports do not: other graph rules, or entries of another name.

    What an entry that nothing compares says would be taken by whoever reads it first.

    Args:
        props: `metadata_props` of the file.
        path: of the file, for the message.
        entries: `FILE_ENTRIES`, or `BACKBONE_ENTRIES` of a file that `export_scn.py` writes.

    Raises:
        ModelFileError: not written by mm2onnx, by other rules, without an entry, or with one too many.
    """
    if f'{PREFIX}family' not in props:
        tool = 'pytorch2onnx.py' if entries is FILE_ENTRIES else 'export_scn.py'
        raise ModelFileError(
            f'{path}: has no mm2onnx metadata ({PREFIX}family is missing); export it with '
            f'tools/deployment/{tool}'
        )
    rules = read_entry(props, 'rules', path) if f'{PREFIX}rules' in props else 'not stated'
    if rules != GRAPH_RULES:
        raise ModelFileError(
            f'{path}: its {PREFIX}rules are {rules}, expected {GRAPH_RULES}: another version wrote it; '
            f'export it again'
        )
    if missing := [name for name, needed in entries.items() if needed and PREFIX + name not in props]:
        raise damaged(path, missing[0], 'is missing')
    names = [key.removeprefix(PREFIX) for key in props if key.startswith(PREFIX)]
    if unknown := [name for name in names if name not in entries]:
        raise damaged(path, unknown[0], f'no export writes it; expected {", ".join(entries)}')


def read_entry(props: Mapping[str, str], name: str, path: object, check: Check | None = None) -> Any:
    """Return one entry of a file's metadata, by its name without prefix, checked.

    `check` is of its value, where it is not the usual one. ModelFileError: it is no JSON, or of another type,
    range or length; the message names the key.
    """
    try:
        value = json.loads(props.get(PREFIX + name, ''))
        if '\\ud' in props.get(PREFIX + name, '').lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = printable(error.object[error.start : error.end])
        raise damaged(path, name, f"has '{half}', which is half a character") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, name, f'is not JSON: {error}') from error
    return check_entry(value, name, path, check)


def check_entries(props: Mapping[str, str], path: object) -> None:
    """Check all entries of a sparse file, whatever reads them.

    For errors see `check_names` and `read_entry`.
    """
    of_detector = f'{PREFIX}preprocess' in props
    check_names(props, path, FILE_ENTRIES if of_detector else BACKBONE_ENTRIES)
    checks = {} if of_detector else dict(options=options_of_backbone)
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


def checked_facts(facts: dict[str, Any], family: str, path: object) -> Facts:
    """Return the facts of a file that pass the check of its family, if it has one.

    ModelFileError: names the key.
    """
    registration = registered().get(family)
    if registration is not None and registration.postprocess is not None:
        check_entry(facts, 'postprocess', path, registration.postprocess)
    return _facts(facts, f'{path}: mm2onnx.postprocess')


def _facts(values: dict[str, Any], where: str) -> Facts:
    """Return a dict and those in it, all of which say where a key is missing."""
    found = {
        key: _facts(value, f'{where}.{key}') if isinstance(value, dict) else value
        for key, value in values.items()
    }
    return Facts(found, where)
