"""A rule: the pitfall, what the exporters do with it, and the fix."""

import dataclasses
from collections.abc import Mapping, Sequence

from mmdeploy_ext.core.errors import UsageError

RIGHT = 'right'
WRONG = 'wrong on other inputs'
WRONG_AT_ONCE = 'wrong'
FAILS = 'fails on other inputs'
REFUSED = 'refused'
UNRUNNABLE = 'refused by the engine'

EXPORTERS = ('torchscript', 'dynamo')
SEVERITIES = ('note', 'warning', 'error')


@dataclasses.dataclass(frozen=True)
class Rule:
    """One known pitfall: what is done, what goes wrong, what to write instead.

    Attributes:
        outcomes: exporter -> what happens on this stack.
        otherwise: severity where the exporter does the right thing: 'note' or 'warning'.
    """

    id: str
    title: str
    why: str
    fix: str
    outcomes: Mapping[str, str]
    otherwise: str = 'note'

    def severity(self, exporters: Sequence[str]) -> str:
        """Return 'error' where one of the exporters goes wrong with it, else `otherwise`."""
        return 'error' if any(self.outcomes[name] != RIGHT for name in exporters) else self.otherwise


def check_exporters(exporters: Sequence[str]) -> None:
    """Refuse an unknown exporter with a UsageError that gives those that there are."""
    if not exporters or not set(exporters) <= set(EXPORTERS):
        raise UsageError(f'exporters {list(exporters)}: expected some of {", ".join(EXPORTERS)}')
