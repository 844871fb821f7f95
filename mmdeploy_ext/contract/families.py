"""Options and metadata of single families: a module each, found by the name of the family.

A module may have

- `OPTIONS`: what can be chosen about its graphs, besides what is in `contract/options.py`,
- `POSTPROCESS`: a check of what its files tell their consumer (`postprocess` of the metadata). A key that a
  graph does not need may be missing; what reads it says so.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mmdeploy_ext.contract.option import Option
from mmdeploy_ext.contract.options import IMAGE, OF_SOME
from mmdeploy_ext.families import OPTION_MODULES

MODULES: dict[str, ModuleType] = {
    name: importlib.import_module(module) for name, module in OPTION_MODULES.items()
}
"""Name of a family -> its module."""


def _have(attribute: str) -> dict[str, Any]:
    """Return name of a family -> attribute of its module, of those that have it."""
    return {name: vars(module)[attribute] for name, module in MODULES.items() if attribute in vars(module)}


def _own_options() -> tuple[Option, ...]:
    """Return each option once; the families that have it stand before the help of those of `OF_SOME`.

    One of which families have choices of their own has the choices of all.
    """
    of_name: dict[str, dict[str, Option]] = {}
    for family, options in OPTIONS.items():
        for option in options:
            of_name.setdefault(option.name, {})[family] = option
    every = [(_joint(families), ', '.join(families)) for families in of_name.values()]
    return tuple(
        dataclasses.replace(one, help=f'{names}: {one.help}') if one.group == OF_SOME else one
        for one, names in every
    )


def _joint(families: Mapping[str, Option]) -> Option:
    """Return one option of those of one name; that they differ in more than their choices shows its test."""
    first, *others = families.values()
    if all(other == first for other in others):
        return first
    choices = dict.fromkeys(choice for option in families.values() for choice in option.choices)
    text = '; '.join(f'{family}: {option.help}' for family, option in families.items())
    return dataclasses.replace(first, choices=tuple(choices), help=text)


OPTIONS: dict[str, tuple[Option, ...]] = _have('OPTIONS')
"""Family -> its own options; a family that has none is not there."""
DETECTOR = (*IMAGE, *_own_options())
"""What `pytorch2onnx.py` takes."""
POSTPROCESS = _have('POSTPROCESS')
"""Family -> check of what its files tell their consumer."""
