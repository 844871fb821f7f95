"""Entries of a model's settings that decide which rows become results: limits of their number, thresholds.

They are constants of a graph. A picture with 90 results does not show that a limit is 99 instead of 100, so a
proof gives other values to the model, exports its post-processing with them, and compares both.

A list is what upstream's test path has at one of its steps: rows of boxes or masks, such as the proposals;
see `families/images.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.core.errors import ConfigError

if TYPE_CHECKING:
    import torch


class Kind(enum.Enum):
    """The thing that an entry decides."""

    CANDIDATES = enum.auto()
    """How many rows enter a suppression."""
    ROWS = enum.auto()
    """How many rows a list has at most."""
    SCORE = enum.auto()
    """Which score a row needs."""
    OVERLAP = enum.auto()
    """The IoU that decides whether a row suppresses another."""
    SHARE = enum.auto()
    """Another share, 0..1, such as what a pixel of a mask has to reach."""
    COVERED = enum.auto()
    """The share of a mask, 0..1, that better ones may cover, without those left out for it."""
    NUMBER = enum.auto()
    """Any positive number, whole or not."""
    SIDE = enum.auto()
    """How long the sides of a box have to be, pixels."""
    AREA = enum.auto()
    """How many pixels a segment of stuff needs."""
    SWITCH = enum.auto()
    """Whether something is done."""


KINDS = dict(
    nms_pre=Kind.CANDIDATES,
    deploy_nms_pre=Kind.CANDIDATES,
    nms_post=Kind.CANDIDATES,
    top_k=Kind.CANDIDATES,
    max_per_img=Kind.ROWS,
    score_thr=Kind.SCORE,
    conf_thr=Kind.SCORE,
    filter_thr=Kind.SCORE,
    min_score=Kind.SCORE,
    iou_threshold=Kind.OVERLAP,
    iou_thr=Kind.OVERLAP,
    nms_thr=Kind.OVERLAP,
    mask_thr=Kind.SHARE,
    mask_thr_binary=Kind.SHARE,
    mask_overlap=Kind.COVERED,
    sigma=Kind.NUMBER,
    stuff_area_limit=Kind.AREA,
    min_bbox_size=Kind.SIDE,
)
"""Entries of mmdet's `test_cfg`, and of `nms` in it, that mean the same in all families that use `limits_of`.

MaskFormer's `iou_thr` is none of them: it is a share of a mask.
"""
FEWER_CANDIDATES = 19
"""Rows of each level that are chosen at most when limits are lowered: most coarse levels have more. None of
them is suppressed then, so that the list shows the choice itself; those of five levels are less than 100,
mmdet's usual limit of results."""
NO_SUPPRESSION = 1.0
"""No IoU is larger. A suppression by overlaps that reach its threshold needs more, see `Limit.keeps_all`."""
NEVER = {Kind.SCORE: 2.0}
"""Kind -> value that lets no row pass: no score is as large."""
RAISED, LEAST_RAISED = 0.1, 2
"""By how much of itself, and at least by how many rows, a limit is raised."""
OTHER_SHARE, OTHER_NUMBER = 0.8, 1.25
"""A share is multiplied by the first when limits are lowered, its distance to 1 when they are raised; a
number or an area is divided by the second, or multiplied."""
FEW_ROWS = 100
"""Rows of a list to which a model is limited where it runs for something else than what becomes of each row.
mmdet's heads of regions take 1,000 proposals, and with them most of the seconds of a run."""
LONGER = 6.0
"""Pixels. By how much longer sides have to be where limits are raised."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """An entry of the settings that a live model reads.

    Attributes:
        config: the settings, or the `vars` of a module that has the entry as an attribute.
        key: key of the entry.
        kind: kind of the decision.
        head: what messages call the part of the model that reads it, '' if there is only one.
        list: name of the list of rows that it limits, see `ImageFamily.lists`; '' are the results.
        default: value if the entry is missing.
        available: largest possible number of rows.
        minimum: smallest value that the model takes.
        of_list_alone: whether a proof can change it only where it compares the list `list` and no results,
            since the steps behind the list take as many rows as the model's own value leaves.
        never: value that lets no row pass, if it is not that of `NEVER`.
        keeps_all: of a threshold of overlaps, the value with which nothing is suppressed.
    """

    config: dict[str, Any]
    key: str
    kind: Kind
    head: str = ''
    list: str = ''
    default: Any = None
    available: int = 10**9
    minimum: int = 1
    of_list_alone: bool = False
    never: float | None = None
    keeps_all: float = NO_SUPPRESSION

    @property
    def value_without_rows(self) -> float | None:
        """Value that lets no row pass, None if there is none."""
        return NEVER.get(self.kind) if self.never is None else self.never

    @property
    def value(self) -> Any:
        """The value that the model reads."""
        return self.config.get(self.key, self.default)

    @property
    def name(self) -> str:
        """The name of the entry in messages."""
        return f'{self.head}.{self.key}' if self.head else self.key

    def is_same_entry(self, limit: Limit) -> bool:
        """Return whether another limit is the same entry of the same settings."""
        return self.config is limit.config and self.key == limit.key

    @property
    def leaves_out(self) -> bool:
        """Whether the entry may leave anything out: one of None and limits of 0 rows and below do not."""
        counts = self.kind in (Kind.CANDIDATES, Kind.ROWS)
        return self.value is not None and (self.value > 0 or not counts)


def limits_of(model: torch.nn.Module) -> list[Limit]:
    """Return the entries of `KINDS` that heads of a detector have in their `test_cfg`, in order of the heads.

    The detector itself is left out: its heads have the settings that are read. So are entries without an
    effect, such as an `nms_pre` of 0. Settings that several heads share give each entry once, with the name
    of the last of these heads.

    ConfigError: a head makes its settings anew whenever they are read, so that no limit of it can be changed.
    """
    heads = {name: getattr(head, 'test_cfg', None) for name, head in model.named_modules() if name}
    configs = {name: config for name, config in heads.items() if isinstance(config, dict)}
    modules = dict(model.named_modules())
    for name, config in configs.items():
        if modules[name].test_cfg is not config:
            raise ConfigError(
                f'{name}: the test_cfg of {type(modules[name]).__name__} is another object whenever it is '
                f'read, so that a proof cannot try other limits; keep it in an attribute'
            )
    limits = [limit for name, config in configs.items() for limit in entries_of(config, name)]
    if len(configs) == 1:
        limits = [dataclasses.replace(limit, head='') for limit in limits]
    return list({(id(limit.config), limit.key): limit for limit in limits}.values())


def entries_of(config: dict[str, Any], head: str, name: str = '') -> list[Limit]:
    """Return the entries of `KINDS` in the settings of a head that limit the list `name`, at any depth.

    `head` is what messages call the head, such as 'bbox_head' or 'rpn'; with '' they leave it out. Entries
    that leave nothing out, or are no numbers, are not returned.
    """
    limits = []
    for key, value in config.items():
        if key in KINDS and isinstance(value, int | float):
            limit = Limit(config, key, KINDS[key], head, name)
            if limit.leaves_out:
                limits.append(limit)
        elif isinstance(value, dict):
            limits += entries_of(value, head, name)
    return limits


@contextlib.contextmanager
def changed(values: Iterable[tuple[Limit, Any]]) -> Iterator[None]:
    """Inside the block the limits of a model have other values.

    `values` are pairs of a limit and its new value; of several for one entry the last counts.
    """
    with contextlib.ExitStack() as stack:
        for limit, value in values:
            stack.enter_context(replaced_entry(limit.config, limit.key, value))
        yield


def with_few_rows(limits: Iterable[Limit], name: str) -> list[tuple[Limit, int]]:
    """Return the limits of the rows of list `name` that are above `FEW_ROWS`, each with that as new value.

    [] if none is, and for '', the name of the results. A limit that only a comparison of its own list may
    change is left out.
    """
    return [
        (limit, FEW_ROWS)
        for limit in limits
        if name and limit.list == name and limit.kind is Kind.ROWS and not limit.of_list_alone
        if limit.value > FEW_ROWS
    ]


def lowered(limit: Limit) -> Any:
    """Return the value of an entry while limits are lowered.

    That is fewer candidates or rows, `FEWER_CANDIDATES` at most, but no fewer than `minimum`; or a smaller
    share, number or area. An IoU becomes one that suppresses nothing; sides of boxes and switches stay.
    Thresholds of scores are not meant: a trial chooses them by the scores of its picture.
    """
    if limit.kind is Kind.OVERLAP:
        return limit.keeps_all
    if limit.kind in (Kind.SHARE, Kind.COVERED):
        return limit.value * OTHER_SHARE
    if limit.kind is Kind.NUMBER:
        return limit.value / OTHER_NUMBER
    if limit.kind is Kind.AREA:
        return type(limit.value)(limit.value / OTHER_NUMBER)
    if limit.kind in (Kind.SIDE, Kind.SWITCH):
        return limit.value
    return max(min(FEWER_CANDIDATES, limit.value - 1), limit.minimum)


def raised(limit: Limit) -> Any:
    """Return the value of an entry while limits are raised.

    That is more candidates or rows, `available` at most, or a larger share (that of an IoU, too), number or
    area. Sides become longer, and a switch is set the other way. Thresholds of scores are not meant, see
    `lowered`.
    """
    if limit.kind in (Kind.OVERLAP, Kind.SHARE, Kind.COVERED):
        return 1 - (1 - limit.value) * OTHER_SHARE
    if limit.kind is Kind.NUMBER:
        return limit.value * OTHER_NUMBER
    if limit.kind is Kind.AREA:
        return type(limit.value)(limit.value * OTHER_NUMBER)
    if limit.kind is Kind.SIDE:
        return max(limit.value, 0) + LONGER
    if limit.kind is Kind.SWITCH:
        return not limit.value
    return min(limit.value + max(int(limit.value * RAISED), LEAST_RAISED), limit.available)
