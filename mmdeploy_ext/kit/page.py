"""The page of a kit, `index.html`, which runs its inputs in a browser and judges the outputs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.spec import DEFAULT_RTOL
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.core.files import external_locations
from mmdeploy_ext.core.folders import replaced_folder
from mmdeploy_ext.kit import web_library
from mmdeploy_ext.kit.contents import read_manifest
from mmdeploy_ext.tasks import bbox2d, boxed_mask, mask, matching, task_module

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.kit.contents import KitGraph

SOURCES = Path(__file__).with_name('web')
INDEX = 'index.html'
PLACE = 'web'
"""Folder of the page's scripts and style in a kit."""
LIBRARY = f'{PLACE}/ort'
"""Folder of onnxruntime-web in a kit."""
TASKS = ('bbox2d', 'boxed_mask', 'mask', 'panoptic')
"""Tasks whose results the page compares; of a module, which has none, it compares tensors."""


def bars_of(task: str | None) -> dict[str, float]:
    """Return the proof's bars for float32 by name, as the manifest has them."""
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
    """Write the page into the folder of a kit, without the library that runs the model; return its bars.

    Files in less than float32, files with their weights beside them, and results of a task of one family
    alone get no page, and the bars are {}.
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


def has_page(manifest: Mapping[str, Any]) -> bool:
    """Return whether a kit has a page, by the `files` of its manifest."""
    return INDEX in manifest['files']


def check_page(kit: Path) -> dict[str, Any]:
    """Return the manifest of the kit in a folder; DataError: it is no kit, was changed, or has no page."""
    manifest = read_manifest(kit)
    if not has_page(manifest):
        raise DataError(
            f'{kit}: has no page; kits of one file in float32, without a memory and with its weights inside, '
            f'have one, if their results are upright boxes, masks or segments, or tensors'
        )
    return manifest


def add_library(kit: Path) -> None:
    """Write onnxruntime-web into the folder of a kit, which any web server can show then."""
    check_page(kit)
    with replaced_folder(kit / LIBRARY) as folder:
        web_library.unpack(folder)
