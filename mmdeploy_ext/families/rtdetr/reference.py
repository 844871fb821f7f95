"""RT-DETR in PyTorch, unpatched: the reference of proofs.

Glossary: B batch, Q queries, N tokens of the encoder, from which queries are chosen.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.contract.spec import DEFAULT_RTOL
from mmdeploy_ext.families.parts.mmdet_reference import box_detections
from mmdeploy_ext.families.rtdetr import graphs
from mmdeploy_ext.families.rtdetr.graphs import RAW_NAMES
from mmdeploy_ext.families.rtdetr.runtime import check_tokens
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections


def tensors(
    model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, tokens: torch.Tensor | None = None, **_: Any
) -> dict[str, np.ndarray]:
    """Return the outputs of the form `raw` by name.

    `feeds` hold `images`; `form` and other options of the file are not used. Queries are the best tokens, or
    those with the indices `tokens` (B, Q), if these are not None.
    """
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
    """Return the reference of the engine's tokens, if they differ from the best ones by ties only.

    For the arguments see `ImageFamily.choose_as`. The same tokens in another order are the same rows in
    another order; if ties with the last chosen token make another set of tokens, PyTorch runs with that set.
    Images without ties keep their reference.
    """
    selected, best = outputs.get('tokens'), reference['tokens']
    result = {name: array.copy() for name, array in reference.items()}
    if selected is None or selected.shape != best.shape or selected.dtype != np.int64:
        return result
    differs = (selected != best).any(1)
    if differs.any():
        with torch.no_grad():
            maps = model.decoder.project(model.extract_feat(_to_model(model, feeds['images'])))
            token_scores = model.decoder.tokens(maps)[1].amax(-1).cpu().numpy()  # the largest class logits
        differs &= tied_selection(token_scores, best, selected, ties_rtol)
    other_sets = differs & (np.sort(selected) != np.sort(best)).any(1)
    if other_sets.any():
        tokens = _to_model(model, np.where(other_sets[:, None], selected, best))
        rerun = tensors(model, feeds, 'raw', tokens)
    for image in np.flatnonzero(differs):
        rows = np.argsort(best[image])[np.argsort(np.argsort(selected[image]))]
        for name, array in result.items():
            array[image] = rerun[name][image] if other_sets[image] else array[image][rows]
    return result


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
    """Return the results of the detector's own test path; with `rescale` in pixels of the originals.

    ShapeError: pictures that the graph does not take, see `graphs.feeds` and `runtime.check_tokens`.
    """
    graphs.feeds(images, rescale)  # refuses pictures that were padded
    check_tokens((len(images), *images[0].tensor.shape), int(model.decoder.num_queries))
    return box_detections(model, images, rescale)


def maps_of(model: nn.Module, images: Sequence[PreparedImage]) -> list[torch.Tensor]:
    """Return the maps (B, D, h, w) of the encoder, the finest first; D is the width of its embedding."""
    with torch.no_grad():
        return list(model.extract_feat(_to_model(model, np.stack([image.tensor for image in images]))))


def tied_selection(
    scores: np.ndarray, best: np.ndarray, selected: np.ndarray, rtol: float = DEFAULT_RTOL
) -> np.ndarray:
    """Return (B,) bool: whether the selected tokens (B, Q) are the `best` ones (B, Q), ties in any order.

    Tokens are indices, `scores` (B, N) the scores of all tokens. At every rank the score of the selected
    token has to be that of the best one, within `rtol` of the largest absolute score of the image, and no
    token may be selected twice.
    """
    tied = []
    for of_tokens, best_of_image, tokens in zip(scores, best, selected, strict=True):
        inside = bool(((tokens >= 0) & (tokens < len(of_tokens))).all())
        if not inside or len(set(tokens.tolist())) < len(tokens):
            tied.append(False)
            continue
        gaps = np.abs(of_tokens[tokens] - of_tokens[best_of_image])
        tied.append(bool((gaps <= rtol * np.abs(of_tokens).max()).all()))
    return np.asarray(tied)


def _to_model(model: nn.Module, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements='W')).to(next(model.parameters()).device)
