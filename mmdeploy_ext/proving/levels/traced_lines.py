"""Lines of the user's code that choose by what an export writes as a constant, so that inputs have to judge.

A graph has the way that the traced example took: an `if` on values is not in it, nor is one on sizes in a
file of any size. A fresh export takes the same way, so equal graphs say nothing about the others.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmdeploy_ext.core.foreign_functions import foreign_functions
from mmdeploy_ext.core.model_classes import files_of_users_classes
from mmdeploy_ext.core.source_code import PACKAGE_FOLDERS
from mmdeploy_ext.exporting.deployment import prepare_fixed
from mmdeploy_ext.families.images import run_stage
from mmdeploy_ext.proving.inputs.pictures import other_view
from mmdeploy_ext.proving.interceptions import interceptions
from mmdeploy_ext.proving.traced_code import TracedLine, lines_of_module, users_symbolics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.contract.stages import Graph, Stage
    from mmdeploy_ext.core.outer_containers import OuterContainers
    from mmdeploy_ext.exporting.deployment import Deployment

LARGER = 128
"""Pixels by which a second picture is higher, so that sizes differ; a multiple of what any part asks for.

It is wider by twice as many.
"""


def observed_inputs(
    deployment: Deployment, options: Options, image_bgr: np.ndarray, other_batch: int = 1
) -> list[dict[str, np.ndarray]]:
    """Return the inputs of two runs of a model of pictures, by name.

    They are a picture, and another view of it, which is larger if sizes are dynamic. `border` (B, 2), the
    pixels of padding above and to the left of each picture, is among them, also if it is zero.

    Args:
        deployment: the model.
        options: options of the export, with height and width resolved, pixels.
        image_bgr: the picture (h, w, 3) uint8.
        other_batch: how often the second run has its picture.
    """
    family, runs = deployment.family, []
    larger = LARGER if options.dynamic else 0
    for view, extra, batch in ((image_bgr, 0, 1), (other_view(image_bgr), larger, other_batch)):
        size = options.height + extra, options.width + 2 * extra
        image = prepare_fixed(deployment.rule, view, *size)
        feeds = family.feeds([image] * batch, rescale=True)
        feeds.setdefault('border', np.zeros((batch, 2), np.float32))  # left out of feeds where it is zero
        runs.append(feeds | family.inner_inputs(deployment.model, feeds, options.form))
    return runs


def traced_lines(
    chain: Sequence[Stage],
    runs: Sequence[Mapping[str, np.ndarray]],
    exporter: str,
    any_size: bool,
    is_stateless: bool = True,
    followed: Iterable[Callable[..., Any]] = (),
    containers: OuterContainers | None = None,
) -> list[TracedLine]:
    """Return the lines of the user's code in a chain of modules that choose by values, or by sizes.

    State that runs change or keep is among them, and so is whatever else a `TracedLine` stands for.

    Stages without code of the user's are only run, as far as later ones need their outputs.

    Args:
        chain: the modules as PyTorch runs them, see `ImageFamily.stages`.
        runs: the inputs of the chain, name -> array, of two runs; of other sizes if these may differ.
        exporter: the exporter of the file, 'torchscript' or 'dynamo', for stages that have none of their own;
            what it follows is left out.
        any_size: whether sizes may differ, so that lines that choose by them count.
        is_stateless: whether attributes of the modules that runs change count. Changed parameters, changed
            functions, classes and globals of the user's, and drawn random numbers count in any case.
        followed: functions that a verdict names by itself if they differ (`Family.followed_functions`). Of
            these the random numbers that they draw are left out, and nothing else.
        containers: what the user's modules held before the very first run; None: that is not known.
    """
    followed = list(followed)
    files_of = [files_of_users_classes(stage.module) for stage in chain]
    has_users = [has_users_code(stage.module) for stage in chain]
    lines: list[TracedLine] = []
    feeds = [dict(run) for run in runs]
    for index, (stage, files) in enumerate(zip(chain, files_of, strict=True)):
        if not any(has_users[index:]):
            break
        if has_users[index]:
            observed = _ObservedStage(
                stage, stage.exporter or exporter, any_size, is_stateless, followed, containers
            )
            lines += observed.lines(feeds, files)
        if any(has_users[index + 1 :]):
            for arrays in feeds:
                arrays.update(run_stage(stage, arrays))
    return list(dict.fromkeys(lines))


def traced_lines_of_graphs(
    graphs: Iterable[Graph],
    exporter: str,
    followed: Iterable[Callable[..., Any]] = (),
    containers: OuterContainers | None = None,
) -> list[TracedLine]:
    """Return the lines of the user's code in the graphs of a model of frames or sweeps that choose by values.

    Each graph runs on the example that it is traced on. What `traced_lines` returns besides is among them,
    but not attributes of the modules that runs change. Lines that choose by sizes, such as the number of
    voxels, are not found, nor are those in a finished graph, which has no stages.

    Args:
        graphs: the graphs of the model.
        exporter: the exporter of the files, as of `traced_lines`.
        followed: as of `traced_lines`.
        containers: likewise.
    """
    lines, followed = [], list(followed)
    for graph in graphs:
        example = {name: tensor.cpu().numpy() for name, tensor in graph.example.items()}
        stages = [dataclasses.replace(stage, name=stage.name or graph.name) for stage in graph.stages]
        lines += traced_lines(
            stages,
            [example, example],
            exporter,
            any_size=False,
            is_stateless=False,
            followed=followed,
            containers=containers,
        )
    return list(dict.fromkeys(lines))


def has_users_code(module: torch.nn.Module) -> bool:
    """Return whether a module has classes of the user's, or calls what is in a library function's place.

    A plugin may have put one into `torch.nn.functional` or into a module of mmdet, have registered another
    form of an operator with PyTorch's exporter, or something that acts on every model.
    """
    if files_of_users_classes(module) or users_symbolics() or interceptions():
        return True
    kinds = dict.fromkeys(base for part in module.modules() for base in type(part).__mro__)
    methods = (value for kind in kinds for value in vars(kind).values() if inspect.isfunction(value))
    return bool(foreign_functions(methods))


@dataclasses.dataclass(frozen=True)
class _ObservedStage:
    """A stage with the exporter and the settings of `traced_lines`."""

    stage: Stage
    exporter: str
    any_size: bool
    is_stateless: bool
    followed: Sequence[Callable[..., Any]]
    containers: OuterContainers | None

    def lines(self, feeds: Sequence[Mapping[str, np.ndarray]], files: Iterable[Path]) -> list[TracedLine]:
        """Return the lines of the stage; one that says so if the stage cannot be observed."""
        module = self.stage.module
        parameter = next(module.parameters(), None)
        device = torch.device('cpu') if parameter is None else parameter.device
        inputs, other_inputs = (
            tuple(torch.from_numpy(arrays[name]).to(device) for name in self.stage.inputs) for arrays in feeds
        )
        places = {file if file.parent.name in PACKAGE_FOLDERS else file.parent for file in files}
        try:
            return lines_of_module(
                module,
                inputs,
                other_inputs,
                self.exporter,
                self.any_size,
                places,
                self.is_stateless,
                self.followed,
                self.containers,
            )
        except Exception as error:  # the user's code may do with a watched size what no plain number minds
            return [TracedLine(self.stage.name, 0, f'{type(error).__name__}: {error}'[:200], 'values')]
