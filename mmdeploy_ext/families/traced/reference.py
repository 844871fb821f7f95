"""The user's detector, as mmdet runs it: `forward` of whole images."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.exporting.substitution import substituted
from mmdeploy_ext.exporting.traced.functions import named_results, ranked
from mmdeploy_ext.exporting.traced.mode import BORDERS, EACH
from mmdeploy_ext.exporting.traced.whole import (
    CANDIDATES,
    Cut,
    End,
    Layout,
    Network,
    eager_metas,
    layouts_of,
    leaves,
)
from mmdeploy_ext.families.common.image_graphs import pasted_size
from mmdeploy_ext.families.common.mmdet_reference import (
    boxes_of_classes,
    instances_of_classes,
    metas_of,
    tested,
)
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.metadata import Metadata

ROUNDING = 1e-6
"""Rounding of an IoU."""
NOT_REACHED = np.zeros(0, np.float32)
"""Of a tensor that PyTorch's code does not compute for an input."""


class TracedReference(ImageReference):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.last: tuple[Sequence[PreparedImage], bool] = (), True
        self.image = 0

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Detections] | list[Instances]:
        self.last = images, rescale
        found = []
        for index in range(len(images)):  # one by one, as the file does
            self.image = index
            found.append(self.result())
        if self.end:  # not compared: the rest is the user's code
            empty = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
            return [Detections(*empty) for _ in images]
        return [results_of(result, self.size_of(image)) for result, image in zip(found, images, strict=True)]

    def size_of(self, image: PreparedImage) -> tuple[int, int]:
        """Return h, w of the results."""
        is_pasted = self.layout is not None and self.layout.has_box_masks
        return pasted_size(image, self.last[1]) if is_pasted else tuple(image.ori_shape)

    def result(self) -> Any:
        """Return what the test path gives for the image `self.image` of `self.last`."""
        images, rescale = self.last
        image = images[self.image]
        (meta,) = metas_of([image])
        meta['ori_shape'] = *self.size_of(image), 3
        # the graph divides by a scale of 1 without `scale_factor`
        meta['scale_factor'] = np.asarray(meta['scale_factor'] if rescale else np.ones(4), np.float32)
        (result,) = tested(self.model, [image], [meta], rescale=True)
        return result

    def tensors(
        self,
        feeds: Mapping[str, np.ndarray],
        form: str,
        given: Mapping[str, np.ndarray] = {},
        **_: Any,
    ) -> dict[str, np.ndarray]:
        if self.end is None or not given:
            return self.inner_inputs(feeds, 'post') if form == 'raw' else {}
        with ranked(self.model, {}), self.end.reached(self.model) as found:
            self.results(*self.last)
        return {name: one.cpu().numpy()[None] for name, one in found.items() if name in given}

    @property
    def end(self) -> End | None:
        return self.layout.end if self.layout else None

    def results_left_out(self, options: Mapping[str, Any]) -> str:
        if self.end is None:
            return ''
        return (
            f'{self.end.path}() and what follows run in your code, not in the file: it leaves the tensors at '
            f'{self.end.line}; the arguments of the method are compared'
        )

    def inner_inputs(self, feeds: Mapping[str, np.ndarray], form: str) -> dict[str, np.ndarray]:
        if form != 'post':
            return {}
        with torch.no_grad():
            image = torch.from_numpy(feeds['input']).to(next(self.model.parameters()))
            *maps, _, _ = Network(self.model, self.cut)(image)
        return {name: one.cpu().numpy() for name, one in zip(self.cut.names, maps, strict=True)}

    def file_results(
        self,
        metadata: Metadata,
        outputs: Mapping[str, np.ndarray],
        feeds: Mapping[str, np.ndarray],
        images: Sequence[PreparedImage],
        rescale: bool,
    ) -> list[Detections] | list[Instances] | None:
        given = as_tensors(self.model, outputs)
        if metadata.form == 'decode':
            names = self.layout.candidates[-2:]
            given = {name: given[one][0] for name, one in zip(names, CANDIDATES[:2], strict=True)}
        elif metadata.form != 'raw':
            return None
        with substituted(self.model, self._started(given)):
            return self.results(images, rescale)

    def inner_tensors(
        self, tensors: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Inputs of rankings, thresholds and suppressions, each behind the file's earlier ones.

        Those of another size fail, unless PyTorch's own suppression is at a tie: with another IoU threshold,
        within rounding, it gives the size of the file.
        """
        sides: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None = None
        for overlap in (0.0, ROUNDING, -ROUNDING):
            found, is_whole = self._ranked(tensors, overlap)
            titles = set(map(title_of, found))  # a replaced function may have tensors that PyTorch's has not
            names = [
                name
                for name in tensors
                if name in CANDIDATES or (BORDERS.fullmatch(name) and title_of(name) in titles)
            ]
            expected = {name: found.get(name, NOT_REACHED) for name in names if is_whole or name in found}
            expected = {name: array for name, array in expected.items() if array.size or tensors[name].size}
            sides = sides or (expected, {name: tensors[name] for name in expected})
            if all(array.shape == tensors[name].shape for name, array in expected.items()):
                return expected, {name: tensors[name] for name in expected}
            if not is_whole:
                break
        return sides

    def candidate_bounds(
        self, feeds: Mapping[str, np.ndarray], slack: float, max_candidates: int, max_proposals: int = 0
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        if self.layout and not self.layout.suppresses:
            return {}
        device = next(self.model.parameters()).device
        tensors = {name: torch.from_numpy(np.array(array)).to(device) for name, array in feeds.items()}
        sides = []
        for step, overlap in ((slack, ROUNDING), (-slack, -ROUNDING)):
            images = range(len(tensors['input']))
            sides.append([self._entered(tensors, image, step, overlap, max_proposals) for image in images])
        names = ('candidates', 'proposal_candidates') if max_proposals else ('candidates',)
        least, most = np.min(sides, 0), np.max(sides, 0)
        return {name: (least[:, column], most[:, column]) for column, name in enumerate(names)}

    def _entered(
        self, feeds: Mapping[str, torch.Tensor], image: int, slack: float, overlap: float, most: int
    ) -> tuple[int, int]:
        """Return the boxes of the last NMS and of proposals; `most` proposals count where they are enough."""
        of_image = {name: one[image : image + 1] if one.dim() > 1 else one for name, one in feeds.items()}
        with (
            ranked(self.model, {}, overlap, slack) as mode,
            named_results(self.model),
            torch.no_grad(),
        ):
            self.model.simple_test(of_image['input'], eager_metas(of_image), rescale=True)
        wanted, counts = (self.model.rpn_head.test_cfg.max_per_img if most else 0), [0, 0]
        for proposes, count, kept in mode.entered:
            is_first = proposes and most > 0
            if is_first and 0 < wanted <= kept(most):
                count = min(count, most)
            counts[is_first] = max(counts[is_first], count)
        return tuple(counts)

    def _ranked(
        self, tensors: Mapping[str, np.ndarray], overlap: float
    ) -> tuple[dict[str, np.ndarray], bool]:
        is_whole, given, each = True, as_tensors(self.model, tensors), []
        for index in range(len(self.last[0])):
            self.image = index
            of_image, is_done = self._of_image(given), False
            network = substituted(self.model, self.network(of_image))
            with ranked(self.model, of_image, overlap) as mode, contextlib.suppress(Exception), network:
                self.result()  # mmcv's NMS refuses float64
                is_done = True
            is_whole = is_whole and is_done
            each.append({name: tensor.cpu().numpy() for name, tensor in mode.found.items()})
        found = each[-1]
        if any(name.startswith(EACH) for name in tensors):
            found = stacked(each)
        if CANDIDATES[0] in tensors and (last := mode.suppressed.get(self.layout.candidates[-2])):
            found |= {name: one.cpu().numpy()[None] for name, one in zip(CANDIDATES, last, strict=True)}
        return found, is_whole

    def inner_results(
        self, tensors: Mapping[str, np.ndarray], images: Sequence[PreparedImage]
    ) -> list[tuple[Detections, Detections]]:
        if CANDIDATES[0] not in tensors:
            return []
        return [(candidates(self._ranked(tensors, 0.0)[0]), candidates(tensors))]

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return self._started(as_tensors(self.model, tensors))

    def _started(self, given: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        own = self.model.simple_test

        def simple_test(*args: Any, **kwargs: Any) -> Any:
            of_image = self._of_image(given)
            with ranked(self.model, of_image), substituted(self.model, self.network(of_image)):
                return own(*args, **kwargs)

        return {'simple_test': simple_test}

    def _of_image(self, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the maps and inner tensors of the image that is tested."""
        rows = slice(self.image, self.image + 1)
        of_image = {name: one[rows] if name in self.cut.names else one for name, one in given.items()}
        each = [name for name in given if name.startswith(EACH)]
        return of_image | {name.removeprefix(EACH): given[name][self.image] for name in each}

    @property
    def layout(self) -> Layout | None:
        return layouts_of(self.model).get(True)

    @property
    def cut(self) -> Cut:
        return self.layout.cut if self.layout else Cut({})

    def network(self, given: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return what the network's modules return where a file has its maps, for `substituted`."""
        if any(name not in given for name in self.cut.names):
            return {}
        return self.cut.results(given)

    def borders(self) -> dict[str, Any]:
        def maps(path: str, calls: Sequence[Any]) -> dict[str, torch.Tensor]:
            each = [self.cut.maps(path, result) for result in calls[:: len(calls) // (self.image + 1)]]
            return {name: torch.cat([of_image[name] for of_image in each]) for name in each[0]}

        paths = self.cut.calls
        return {
            f'{path}.forward': functools.partial(maps, path)
            for path in paths
            if set(leaves(paths[path])) & set(self.cut.names)
        }


def candidates(tensors: Mapping[str, np.ndarray]) -> Detections:
    """Return the `CANDIDATES` of one image, best first."""
    found = [tensors[name][0] for name in CANDIDATES if name in tensors]
    boxes, scores, labels = found or (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int))
    order = np.argsort(-scores, kind='stable')
    return Detections(boxes[order], scores[order], labels[order])


def stacked(each: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return inner tensors of all images by name, those that have one size."""
    found = {}
    for name in each[0]:
        arrays = [of_image.get(name, NOT_REACHED) for of_image in each]
        is_steady = len({array.shape for array in arrays}) == 1
        found[f'{EACH}{name}'] = np.stack(arrays) if is_steady else NOT_REACHED
    return found


def title_of(border: str) -> str:
    return border.rpartition('_')[0]


def as_tensors(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    floats = {name: array for name, array in tensors.items() if array.dtype == np.float32}
    like = next(model.parameters(), torch.zeros(()))
    return {name: torch.from_numpy(np.array(array)).to(like) for name, array in floats.items()}


def results_of(result: Any, size: tuple[int, int]) -> Detections | Instances:
    if not isinstance(result, tuple):
        return boxes_of_classes(result)
    return instances_of_classes(*result, size)
