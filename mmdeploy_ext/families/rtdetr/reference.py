"""RT-DETR in PyTorch, unpatched: what a proof compares the graphs with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.contract.spec import DEFAULT_RTOL
from mmdeploy_ext.families.parts.mmdet_reference import boxes_of_classes, metas_of, tested
from mmdeploy_ext.families.rtdetr import samples
from mmdeploy_ext.families.rtdetr.graphs import RAW_NAMES
from mmdeploy_ext.families.rtdetr.runtime import check_tokens
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections


def tensors(
    model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, tokens: torch.Tensor | None = None, **_: Any
) -> dict[str, np.ndarray]:
    """Return the tensors of `raw`; `tokens` (B, Q) are taken instead of the best when given."""
    with torch.no_grad():
        images = _to_model(model, feeds['images'])
        outputs = model.decoder(model.extract_feat(images), tokens)
    return {name: tensor.cpu().numpy() for name, tensor in zip(RAW_NAMES, outputs, strict=True)}


def choose_as(
    model: nn.Module,
    feeds: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    ties_rtol: float = DEFAULT_RTOL,
) -> dict[str, np.ndarray]:
    """See `ImageFamily.choose_as`: tokens that differ from the best ones by ties only are taken over.

    The same tokens in another order are the same rows in another order; where a tie at the cut makes
    another set of tokens, PyTorch runs with that set. Images without ties keep their reference.
    """
    chosen, best = outputs.get('tokens'), reference['tokens']
    result = {name: array.copy() for name, array in reference.items()}
    if chosen is None or chosen.shape != best.shape or chosen.dtype != np.int64:
        return result
    differs = (chosen != best).any(1)
    if differs.any():
        differs &= tied_selection(_token_scores(model, feeds['images']), best, chosen, ties_rtol)
    other_sets = differs & (np.sort(chosen) != np.sort(best)).any(1)
    if other_sets.any():
        tokens = _to_model(model, np.where(other_sets[:, None], chosen, best))
        rerun = tensors(model, feeds, 'raw', tokens)
    for image in np.flatnonzero(differs):
        rows = np.argsort(best[image])[np.argsort(np.argsort(chosen[image]))]
        for name, array in result.items():
            array[image] = rerun[name][image] if other_sets[image] else array[image][rows]
    return result


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
    """Return the results of the detector's own test path."""
    samples.feeds(images, rescale)  # refuses pictures that were padded
    check_tokens((len(images), *images[0].tensor.shape), int(model.decoder.num_queries))
    return [boxes_of_classes(result) for result in tested(model, images, metas_of(images), rescale)]


def tied_selection(
    scores: np.ndarray, best: np.ndarray, chosen: np.ndarray, rtol: float = DEFAULT_RTOL
) -> np.ndarray:
    """Return (B,) bool: whether chosen tokens (B, Q) are the `best` ones (B, Q), ties in any order.

    At every rank the score, of (B, N) of all tokens, has to be that of the reference, within `rtol` of the
    largest score, and no token may be there twice.
    """
    tied = []
    for image, (wanted, got) in enumerate(zip(best, chosen, strict=True)):
        inside = bool(((got >= 0) & (got < scores.shape[1])).all())
        if not inside or len(set(got.tolist())) < len(got):
            tied.append(False)
            continue
        gaps = np.abs(scores[image][got] - scores[image][wanted])
        tied.append(bool((gaps <= rtol * np.abs(scores[image]).max()).all()))
    return np.asarray(tied)


def _token_scores(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Return (B, N): the largest class logit of every token."""
    decoder = model.decoder
    with torch.no_grad():
        maps = decoder.project(model.extract_feat(_to_model(model, images)))
        return decoder.tokens(maps)[1].amax(-1).cpu().numpy()


def _to_model(model: nn.Module, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements='W')).to(next(model.parameters()).device)
