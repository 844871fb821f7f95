"""`index.html` of a kit: runs its inputs in a browser and judges the outputs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.base.files import external_locations, replaced_folder
from mmdeploy_ext.bench.kit import web_library
from mmdeploy_ext.bench.kit.contents import read_manifest
from mmdeploy_ext.runtime.tasks import bbox2d, boxed_mask, mask, task_module
from mmdeploy_ext.spec import matching
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL

if TYPE_CHECKING:
    from mmdeploy_ext.bench.kit.contents import KitGraph

SOURCES = Path(__file__).with_name('web')
INDEX = 'index.html'
PLACE = 'web'
LIBRARY = f'{PLACE}/ort'
TASKS = ('bbox2d', 'boxed_mask', 'mask', 'panoptic')
"""Tasks with results that the page compares; of a module it compares tensors."""


def bars_of(task: str | None) -> dict[str, float]:
    """The proof's float32 tolerances by name, as in the manifest."""
    bars = dict(
        rtol=DEFAULT_RTOL, low_alone=matching.ALLOWED_LOW_ALONE, low_alone_share=matching.MAX_LOW_ALONE_SHARE
    )
    if task not in TASKS:
        return bars
    rules = mask if task == 'panoptic' else task_module(task)
    scores = rules.match_detections.keywords
    return bars | dict(
        score_thr=scores['score_thr'],
        score_bar=scores['score_bar'],
        iou_bar=bbox2d.IOU_BAR if task == 'bbox2d' else mask.IOU_BAR,
        box_iou_bar=bbox2d.IOU_BAR,
        pair_iou=bbox2d.PAIR_IOU if task == 'bbox2d' else mask.PAIR_IOU,
        corner_eps=bbox2d.CORNER_EPS,
        flipped_pixels=mask.FLIPPED_PIXELS,
        sliver=boxed_mask.SLIVER,
        sliver_iou=boxed_mask.SLIVER_IOU,
    )


def write_page(folder: Path, graph: KitGraph, task: str | None) -> dict[str, float]:
    """Write the page into a kit, without onnxruntime-web; return its tolerances.

    No page and {} for files below float32, external weights and result classes of a family.
    """
    is_exact = graph.metadata is None or graph.metadata.precision == 'fp32'
    if not is_exact or task not in (None, *TASKS) or external_locations(folder / graph.file):
        return {}
    shutil.copyfile(SOURCES / INDEX, folder / INDEX)
    (folder / PLACE).mkdir()
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in ('.js', '.css'):
            shutil.copyfile(source, folder / PLACE / source.name)
    return bars_of(task)


def check_page(kit: Path) -> None:
    """Raise DataError for no kit, a changed one, or one without a page."""
    if INDEX not in read_manifest(kit).files:
        raise DataError(
            f'{kit}: has no page; a page needs a kit of one float32 file with its weights inside and no '
            'memory, with colour images as inputs and upright boxes, masks, segments or tensors as '
            'results'
        )


def add_library(kit: Path) -> None:
    """Write onnxruntime-web into a kit, so that any web server can show it."""
    check_page(kit)
    with replaced_folder(kit / LIBRARY) as folder:
        web_library.unpack(folder)
