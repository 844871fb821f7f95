"""What a graph cannot show of the user's code, named beside a verdict and judged by nobody."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Untraced:
    """A method, line or step of the user's that the comparison of graphs does not cover.

    Attributes:
        subject: name and place, such as `MyHead.get_bboxes (plugin/head.py:120)` or `plugin/neck.py:8`.
        reason: what is known of it, such as `compared by its results` or `PyTorch warns "..."`.
    """

    subject: str
    reason: str

    @property
    def text(self) -> str:
        """The line of the verdict."""
        return f'{self.subject}: {self.reason}'
