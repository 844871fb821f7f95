"""Limits of how many boxes enter the suppressions: which ones a model takes, and what they make constant."""

import math
from collections.abc import Mapping

from torch import nn

from mmdeploy_ext.contract.option import Options
from mmdeploy_ext.contract.options import LIMITS
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.exporting.postprocess.suppression import SoftNmsConfig, capped, nms_config
from mmdeploy_ext.families.parts import detector_parts
from mmdeploy_ext.families.two_stage import boxes
from mmdeploy_ext.families.two_stage.proposals import generator_of, is_guided, is_staged, thresholds

COUNTS = dict(candidates='max_candidates', proposal_candidates='max_proposals')
"""Outputs of files with constant shapes -> the option that limits what they count."""


def check(heads: Mapping[str, nn.Module], options: Options) -> None:
    """Refuse (UsageError) limits that have no effect alone, or are larger than what there is."""
    given = {name: options[name] for name in LIMITS if options.get(name)}
    if not given:
        return
    first = f'--{next(iter(given)).replace("_", "-")} {next(iter(given.values()))}'
    if options.dynamic:
        raise UsageError(f'{first}: its shapes are constant; export it without --dynamic-export')
    if 'roi_head' not in heads:
        if 'max_candidates' in given:
            raise UsageError(f'{first}: proposals are the results of this model; use --max-proposals')
    elif isinstance(boxes.thresholds(heads['roi_head'].test_cfg), SoftNmsConfig):
        raise UsageError(f'{first}: soft_nms takes turns in a Loop; export it without limits of candidates')
    elif len(given) < len(LIMITS):
        raise UsageError(
            f'{first}: the shapes are constant with --max-proposals and --max-candidates together; give both'
        )
    for name, there in _there(heads, options).items():
        if given.get(name, 0) > there:
            raise UsageError(
                f'--{name.replace("_", "-")} {given[name]}: the model has only {there} candidates at '
                f'{options.height} x {options.width}'
            )


def check_proposals(head: nn.Module, options: Options) -> None:
    """Refuse (UsageError) options that guided anchors, or anchors of several stages, do not take."""
    if is_guided(head):
        detector_parts.check_one_image(head, options)
    if options.get('max_proposals') and (is_guided(head) or is_staged(head)):
        raise UsageError(f'--max-proposals {options.max_proposals}: {type(head).__name__} exports without')


def _there(heads: Mapping[str, nn.Module], options: Options) -> dict[str, int]:
    """Return option -> how many boxes can enter the suppression that it limits."""
    rpn_head, roi_head = heads['rpn_head'], heads.get('roi_head')
    generator, most = generator_of(rpn_head), thresholds(rpn_head).nms_pre
    anchors = sum(
        capped(math.ceil(options.height / stride[1]) * math.ceil(options.width / stride[0]) * of_cell, most)
        for stride, of_cell in zip(generator.strides, generator.num_base_priors, strict=True)
    )
    found = dict(max_proposals=anchors)
    if roi_head is not None:
        rows = rows_of(options.max_proposals, rpn_head)
        found['max_candidates'] = rows * int(boxes.last_head(roi_head).num_classes)
    return found


def rows_of(cap: int, head: nn.Module) -> int:
    """Return how many results a suppression with a cap has; `head` is of proposals or of regions."""
    return capped(cap, nms_config(head.test_cfg).max_per_img)
