"""Any detector of single images, by a trace of its own `simple_test`."""

import dataclasses
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.builder import DETECTORS
from mmdet.models.detectors import BaseDetector
from torch import nn

from mmdeploy_ext.base.config import refused_by_name
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.base.source_code import place_of_line
from mmdeploy_ext.exporting.copy import copied
from mmdeploy_ext.exporting.postprocess.suppression import capped
from mmdeploy_ext.exporting.substitution import configs_in
from mmdeploy_ext.exporting.traced.functions import limits_of
from mmdeploy_ext.exporting.traced.mode import EACH, Caps, Escape
from mmdeploy_ext.exporting.traced.whole import (
    CANDIDATES,
    INPUTS,
    LAYOUTS,
    OF_BATCH,
    SIZE,
    Layout,
    Network,
    Whole,
    example,
    layout_of,
    layouts_of,
    outline_of,
)
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import detector_parts, image_graphs, pasting
from mmdeploy_ext.families.common.mmdet_reference import metas_of, tested
from mmdeploy_ext.families.common.options import PASTE_MASKS
from mmdeploy_ext.families.first_run import INTERNAL, own_forward, picture_channels
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.no_family import has_sensors
from mmdeploy_ext.families.synthetic.weights import draw
from mmdeploy_ext.families.traced.reference import TracedReference
from mmdeploy_ext.families.traced.runtime import TracedFacts
from mmdeploy_ext.graphs.passes.grid_sample import replace_grid_sample
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.options import COUNTERS, LARGEST_K, LIMITS, MAX_CANDIDATES, Options
from mmdeploy_ext.spec.tensors import VALID, Graph, GraphSpec, Stage, TensorSpec
from mmdeploy_ext.upstream.models.building import has_head, head_of
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint

TASKS = (
    ({'dets', 'labels'}, 'bbox2d'),
    ({'dets', 'labels', 'masks'}, 'boxed_mask'),
    ({'scores', 'labels', 'masks'}, 'mask'),
)
"""Outputs of a test path -> task."""
SIDES = (128, 160, 192)
"""Sides of the pictures of two traces, times the model's multiple over 32."""
STEPS = 1, 2, 4, 8, 16, 32, 64, 128
"""Divisors of sides that are tried."""
_MULTIPLES: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


class TracedFamily(ImageFamily):
    name = 'traced'
    task = 'bbox2d'
    forms = ('full', 'decode', 'raw', 'post')
    reference = TracedReference
    untraced = ('.forward', 'forward_test')
    reads_ori_shape = True
    has_box_masks = False

    def claims(self, cfg: Any) -> Claim:
        detector = DETECTORS.get(str(cfg.model.get('type')))
        is_detector = detector is not None and issubclass(detector, BaseDetector)
        return Claim.TEST_PATH if is_detector and not has_sensors(cfg) else Claim.NO

    def for_config(self, cfg: Any) -> 'TracedFamily':
        return type(self)()  # its task is that of one model

    def check(self, cfg: Any, options: Options) -> None:
        with refused_by_name(cfg):
            if options.exporter != 'torchscript':
                raise UsageError(f'--exporter {options.exporter}: a traced test path needs torchscript')
            if limits := [name for name in LIMITS if options[name]]:
                typed = f'--{limits[0].replace("_", "-")} {options[limits[0]]}'
                if options.dynamic:
                    raise UsageError(f'{typed}: requires constant shapes; omit --dynamic-export')
                if limits != limits_for(cfg):
                    needed = ' and '.join(f'--{name.replace("_", "-")}' for name in limits_for(cfg))
                    raise UsageError(f'{typed}: constant shapes of this model need {needed}')
                if has_soft_nms(detector_parts.test_cfg_of(cfg)):
                    raise UsageError(f'{typed}: soft_nms is a Loop; omit the limits of candidates')
        detector_parts.check(cfg.model, options)
        pasting.check(mask_threshold(detector_parts.test_cfg_of(cfg, may_be_list=True)), options)

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        super().load_weights(model, checkpoint)
        vars(model).pop(LAYOUTS, None)
        layouts_of(model).is_loaded = True

    def sorted_levels(self, cfg: Any, options: Options) -> dict[str, list[int]]:
        head = head_of_priors(cfg)
        key = detector_parts.nms_pre_key(cfg, 'rpn' if cfg.model.get('rpn_head') else '')
        if head is None or (head.test_cfg.get(key.rpartition('.')[2]) or 0) <= 0:
            return {}
        generator, classes = head.prior_generator, 1 if cfg.model.get('rpn_head') else head.num_classes
        cells = (
            math.ceil(options.height / stride[1]) * math.ceil(options.width / stride[0])
            for stride in generator.strides
        )
        priors = zip(cells, generator.num_base_priors, strict=True)
        return {key: [count * of_cell * classes for count, of_cell in priors]}

    def most_candidates(self, cfg: Any, options: Options) -> dict[str, int]:
        if head_of_priors(cfg) is None or has_soft_nms(detector_parts.test_cfg_of(cfg)):
            return {}
        return dict.fromkeys(limits_for(cfg), LARGEST_K)  # an NMS takes fewer boxes where it has fewer

    def layout(self, model: nn.Module, size: tuple[int, int] | None = None, traced: bool = False) -> Layout:
        """Return what two traces say of a model; before its weights load, what one run says unless `traced`.

        `size` (H, W) is tried if the model does not run at a small one. ConfigError: the test path fails, or
        its results are of no known kind.
        """
        found = layouts_of(model)
        traced = traced or found.is_loaded or True in found
        if traced not in found:
            step = max(detector_parts.multiple(model), 32)
            height, *other = (-(-side // step) * step for side in SIDES)
            sizes = [(height, height), tuple(other)]
            choices = [sizes] if size is None else [sizes, [size, size]]
            found[traced] = first_layout(model, choices, layout_of if traced else outline_of)
        self.task = task_of(model, found[traced], traced)
        self.has_box_masks = found[traced].has_box_masks
        self.reads_ori_shape = self.task != 'bbox2d' or 'ori_shape' in found[traced].used
        return found[traced]

    def caps(self, model: nn.Module, options: Options) -> Caps | None:
        """Return the limits of boxes in a graph of constant shapes."""
        if not options.max_candidates:
            return None
        limits = [int(value) for config in configs_in(model) for value in limits_of(config).values()]
        rpn_cfg = getattr(getattr(model, 'rpn_head', None), 'test_cfg', {})
        return Caps(
            candidates=options.max_candidates,
            proposals=options.max_proposals,
            wanted=int(limits_of(rpn_cfg).get('max_per_img', -1)),
            results=self.rows(model, options),
            sorted=max(options.max_candidates, options.max_proposals, *limits),
            plugin_classes=self.num_classes(model) if options.nms_plugin else 0,
        )

    def rows(self, model: nn.Module, options: Options) -> int:
        """Return the constant number of results in a graph of batches; 0 for a graph of one image."""
        if options.max_candidates:
            return capped(options.max_candidates, self.max_per_img(model))
        is_of_image = options.form == 'decode' or self.layout(model).end is not None
        if options.batch == 1 and (is_of_image or not options.dynamic):
            return 0
        cut, rows = self.layout(model).cut, max(self.max_per_img(model), 0)
        if options.batch != 1 and not (cut.calls and rows):
            reason = cut.refusal if not cut.calls else 'test_cfg has no max_per_img'
            raise UsageError(
                f'--batch-size {options.batch}: this test path takes one image at a time ({reason}); '
                'expected max_per_img in test_cfg, and a network of modules before the results'
            )
        return rows if cut.calls else 0

    def max_per_img(self, model: nn.Module) -> int:
        """Return the entry of the head's `test_cfg`, or -1."""
        part = getattr(model, 'roi_head', None) or (head_of(model) if has_head(model) else model)
        test_cfg = getattr(part, 'test_cfg', None) or getattr(model, 'test_cfg', None) or {}
        return numbers(test_cfg).get('max_per_img', -1)

    def multiple(self, model: nn.Module) -> int:
        """Return the divisor of both sides with which the user's test path runs."""
        if model not in _MULTIPLES:
            least = detector_parts.multiple(model)
            steps = [step for step in STEPS if step % least == 0] or [least]
            sides = ([-(-side // step) * step + step for side in SIDES[:2]] for step in steps[:-1])
            fitting = (step for step, size in zip(steps[:-1], sides, strict=True) if runs(model, *size))
            _MULTIPLES[model] = next(fitting, steps[-1])
        return _MULTIPLES[model]

    def spec(self, model: nn.Module, options: Options) -> GraphSpec:
        spec = self._traced_spec(model, options)
        if not options.paste_masks:
            return spec
        if not self.layout(model).has_box_masks:
            options.refuse([PASTE_MASKS], 'the results have no masks in the frame of boxes')
        outputs = {tensor.name: tensor for tensor in spec.outputs}
        outputs['masks'] = pasting.pasted_output(*outputs['masks'].axes[:2])
        inputs = (tensor for tensor in spec.inputs if tensor.name != 'ori_shape')
        sizes = pasting.size_inputs(options, spec.inputs[0].axes[0])
        return GraphSpec(spec.name, (*inputs, *sizes), tuple(outputs.values()))

    def _traced_spec(self, model: nn.Module, options: Options) -> GraphSpec:
        layout = self.layout(model, (options.height, options.width))
        batch = 'B' if options.dynamic else options.batch
        check_form(layout, options)
        rows = 0 if options.form == 'raw' else self.rows(model, options)
        if options.form != 'raw' and not rows:
            batch = 1
        size = ('H', 'W') if options.dynamic else (options.height, options.width)
        multiple = self.multiple(model) if options.dynamic else 1
        meaning = 'normalised images, padded bottom and right'
        image = TensorSpec('input', 'float32', (batch, 3, *size), meaning, multiple=multiple)
        name = f'traced/{options.form}'
        if options.form == 'raw':
            return GraphSpec(name, (image,), (*self._maps(model, batch, options), _valid(1)))
        others = (
            *image_graphs.optional_inputs(batch, clips=True, bordered=True),
            image_graphs.mask_inputs(batch, ZERO)[1],
        )
        others = {tensor.name: tensor for tensor in others}
        inputs, used = [image], layout.read if options.form == 'decode' else layout.used
        for name_of_input in INPUTS[1:]:
            if name_of_input in used or name_of_input in ALWAYS:
                unused = name_of_input not in used
                inputs.append(dataclasses.replace(others[name_of_input], unused=unused))
        if options.form == 'decode':
            return GraphSpec(name, tuple(inputs), (*CANDIDATES_OF_IMAGE, _valid(1)))
        if options.form == 'post':
            reads_size = options.dynamic and not {'img_shape', 'ori_shape'}.isdisjoint(used)
            inputs[0] = dataclasses.replace(image, unused=not reads_size)
            inputs += self._maps(model, batch, options)
        if layout.end:
            return GraphSpec(name, tuple(inputs), (*arguments_of(layout), _valid(1)))
        outputs = self._outputs(layout, batch, rows or 'n')
        for option, counter in COUNTERS.items():
            if options[option] and layout.suppresses:
                meaning = f'boxes in front of NMS; of more than {options[option]} the rest was dropped'
                outputs.append(TensorSpec(counter, 'int64', (batch,), meaning, compare='detections'))
        return GraphSpec(name, tuple(inputs), tuple(outputs))

    def _outputs(self, layout: Layout, batch: int | str, rows: int | str) -> list[TensorSpec]:
        outputs = []
        for name, (dtype, rank) in layout.outputs.items():
            axes = (batch, rows, *LAST.get((name, dtype), [f'{name}_{axis}' for axis in range(2, rank)]))[
                :rank
            ]
            outputs.append(TensorSpec(name, dtype, axes, MEANINGS.get(name, ''), compare='detections'))
        return outputs

    def _maps(self, model: nn.Module, batch: int | str, options: Options) -> list[TensorSpec]:
        """Return the maps between the files of the forms `raw` and `post`."""
        maps = []
        for name, shape in zip(*self.shapes(model, options.height, options.width), strict=True):
            sides = [f'{name}_h', f'{name}_w'] if options.dynamic else shape[2:]
            maps.append(TensorSpec(name, 'float32', (batch, shape[1], *sides), 'a map of your network'))
        return maps

    def shapes(
        self, model: nn.Module, height: int, width: int
    ) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
        """Return names and shapes of the maps of the network, for one image."""
        image = next(model.parameters()).new_zeros(1, picture_channels(model), height, width)
        with torch.no_grad():
            *maps, _, _ = Network(model, cut := self.layout(model).cut)(image)
        return cut.names, [tuple(one.shape) for one in maps]

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        (graph,) = super().graphs(model, options)
        if options.form != 'post':
            return [graph]
        tensors = example(model, (options.height, options.width), 0, INPUTS)
        given = dict(zip(INPUTS, tensors, strict=True))
        cut = self.layout(model).cut
        with torch.no_grad():
            *maps, _, _ = Network(model, cut)(given['input'])
        given |= zip(cut.names, maps, strict=True)
        of_batch = {
            name: one.expand(options.batch, *one.shape[1:]).contiguous() if one.dim() > 1 else one
            for name, one in given.items()
        }
        example_of_spec = {name: of_batch[name] for name in graph.spec.input_names}
        return [dataclasses.replace(graph, example=example_of_spec)]

    def stages(self, model: nn.Module, options: Options) -> list[Stage]:
        stages = self._traced_stages(model, options)
        if options.grid_sample == 'gather':
            stages = [dataclasses.replace(stage, passes=(replace_grid_sample,)) for stage in stages]
        threshold = mask_threshold(getattr(model, 'test_cfg', None) or {})
        return pasting.with_pasting(stages, options, threshold)

    def _traced_stages(self, model: nn.Module, options: Options) -> list[Stage]:
        spec, layout, rows = self._traced_spec(model, options), self.layout(model), self.rows(model, options)
        inputs, cut = tuple(tensor.name for tensor in spec.inputs), layout.cut
        names, maps = tuple(tensor.name for tensor in spec.outputs), (*cut.names, *OF_BATCH)
        network = Stage('network', Network(model, cut), ('input',), maps)
        if options.form == 'raw':
            return [dataclasses.replace(network, outputs=(*cut.names, SIZE, VALID))]
        if options.form == 'decode':
            borders = layout.candidates[:-2]
            whole = Whole(model, names, inputs, borders, form='decode')
            return [Stage('whole', whole, inputs, (*names, *borders))]
        if layout.end:
            whole = Whole(model, names, inputs, layout.borders, end=layout.end)
            return [Stage('whole', whole, inputs, (*names, *layout.borders))]
        caps = self.caps(model, options)
        borders = layout.borders if not rows else ()  # those of constant shapes are padded
        each_image = rows > 0 and caps is None
        if each_image and cut.calls:
            borders = tuple(f'{EACH}{name}' for name in layout.steady)
        outputs = (*names, *borders)
        if not cut.calls:
            return [Stage('whole', Whole(model, names, inputs, borders, None, rows, caps), inputs, outputs)]
        inputs = inputs if options.form == 'post' else (*inputs[1:], *maps)
        results = Whole(model, names, inputs, borders, cut, rows, caps)
        behind = Stage('postprocess', results, inputs, outputs, each_image=each_image)
        return [behind] if options.form == 'post' else [network, behind]

    def facts(self, model: nn.Module) -> TracedFacts:
        layout, test_cfg = self.layout(model, traced=True), numbers(getattr(model, 'test_cfg', None) or {})
        return TracedFacts(
            num_classes=self.num_classes(model) or None,
            max_per_img=self.max_per_img(model),
            mask_thr=mask_threshold(test_cfg) if layout.has_box_masks else None,
            test_cfg=test_cfg,
            escapes=tuple(map(line_of, layout.escapes)),
            difference=layout.difference,
            ends_in='' if layout.end is None else f'{layout.end.path}() ({layout.end.line})',
        )

    def num_classes(self, model: nn.Module) -> int:
        roi_head = getattr(model, 'roi_head', None)
        heads = getattr(roi_head, 'bbox_head', None) or getattr(roi_head, 'mask_head', None)
        if heads is not None:
            head = heads[-1] if isinstance(heads, nn.ModuleList) else heads
            return int(head.num_classes)
        return super().num_classes(model) if has_head(model) else 0

    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        if self.has_box_masks:
            return image_graphs.feeds_with_sizes(images, rescale)
        feeds = image_graphs.feeds(images, rescale)
        return image_graphs.mask_feeds(images, rescale) | feeds if self.reads_ori_shape else feeds


def first_layout(
    model: nn.Module,
    choices: Sequence[Sequence[tuple[int, int]]],
    make: Callable[[nn.Module, Sequence[tuple[int, int]]], Layout],
) -> Layout:
    """Return the layout at the first pair of sizes that runs, with weights of the model or drawn ones.

    Weights that are not loaded yet may give boxes that a kernel refuses.
    """
    failure: ConfigError | None = None
    for sizes in choices:
        for is_drawn in (False, True):
            tried = model
            if is_drawn:
                tried = copied(model)
                tried.load_state_dict(
                    {name: value.clone() for name, value in model.state_dict().items()}, assign=True
                )
                with torch.no_grad():
                    draw(tried, 0)
            try:
                with own_forward(model, f'an image of {sizes[0][0]} x {sizes[0][1]}'):
                    return make(tried, sizes)
            except ConfigError as error:
                failure = failure or error
                if INTERNAL not in str(error):
                    break
    raise failure


def runs(model: nn.Module, height: int, width: int) -> bool:
    """Return whether the user's test path runs on a black image of this size."""
    image = np.zeros((picture_channels(model), height, width), np.float32)
    prepared = PreparedImage(image, (height, width), np.ones(4, np.float32), (height, width))
    try:
        tested(model, [prepared], metas_of([prepared]), rescale=True)
    except Exception as error:
        return INTERNAL in str(error)  # of boxes of weights that are not loaded yet
    return True


def limits_for(cfg: Any) -> list[str]:
    """Return the options that make all shapes of a model constant."""
    return [name for name in LIMITS if name == MAX_CANDIDATES.name or cfg.model.get('rpn_head')]


def head_of_priors(cfg: Any) -> nn.Module | None:
    """Return the head whose boxes an NMS suppresses first, or None."""
    key, settings = 'bbox_head', detector_parts.test_cfg_of(cfg)
    if cfg.model.get('rpn_head'):
        key, settings = 'rpn_head', settings.get('rpn')
    head = detector_parts.tested_head(cfg, key, settings) if cfg.model.get(key) else None
    return head if getattr(head, 'prior_generator', None) is not None else None


def mask_threshold(test_cfg: Any) -> float:
    settings = test_cfg if isinstance(test_cfg, Mapping) else {}
    return float(settings.get('rcnn', settings).get('mask_thr_binary', 0.5))


def has_soft_nms(settings: Any) -> bool:
    if not isinstance(settings, Mapping):
        return False
    return settings.get('type') == 'soft_nms' or any(map(has_soft_nms, settings.values()))


def check_form(layout: Layout, options: Options) -> None:
    """Raise UsageError if a test path has no such form."""
    typed = f'--postprocess {options.form}'
    if layout.end and options.max_candidates:
        raise UsageError(f'--max-candidates: the graph ends in {layout.end.path}; omit the option')
    if options.form in ('raw', 'post') and not layout.cut.calls:
        raise UsageError(f'{typed}: the test path has no network of its own ({layout.cut.refusal})')
    if options.form == 'decode' and not layout.candidates:
        raise UsageError(f'{typed}: the test path does not call batched_nms of mmcv; use --postprocess raw')
    if options.form == 'decode' and options.batch != 1:
        raise UsageError(f'{typed} --batch-size {options.batch}: candidates are those of one image')


def _valid(batch: int | str) -> TensorSpec:
    return TensorSpec(VALID, 'bool', (batch,), MEANINGS[VALID], compare='detections')


def arguments_of(layout: Layout) -> list[TensorSpec]:
    """Return the outputs of a graph that ends where code leaves the tensors."""
    return [
        TensorSpec(name, dtype, (1, *(f'{name}_{axis}' for axis in range(1, rank))), layout.end.path)
        for name, (dtype, rank) in layout.outputs.items()
        if name != VALID
    ]


CANDIDATES_OF_IMAGE = tuple(
    TensorSpec(name, dtype, axes, meaning, unit, compare='detections')
    for name, dtype, axes, meaning, unit in (
        (CANDIDATES[0], 'float32', (1, 'n', 4), 'x1 y1 x2 y2 before NMS', 'pixel'),
        (CANDIDATES[1], 'float32', (1, 'n'), 'scores before NMS, in any order', ''),
        (CANDIDATES[2], 'int64', (1, 'n'), 'class indices', ''),
    )
)
ZERO = '0 means the input size'
ALWAYS = ('img_shape', 'scale_factor')
LAST = {('dets', 'float32'): (5,), ('masks', 'bool'): ('h', 'w'), ('masks', 'float32'): ('m', 'm')}
MEANINGS = dict(
    dets='x1 y1 x2 y2 score in descending score order; pixels of the network input, of the original image '
    'when scale_factor is fed',
    labels='class indices',
    scores='scores in descending order',
    masks='masks of the instances at ori_shape (bool), or 0..1 in the frame of their box (float)',
    valid='whether every fact of the traced image that the graph holds is true of this one',
)


def task_of(model: nn.Module, layout: Layout, traced: bool) -> str:
    names = set(layout.outputs) - {VALID}
    for outputs, task in TASKS:
        if names == outputs:
            return task
    if layout.end or not traced:
        return 'bbox2d'
    raise ConfigError(
        f'{type(model).__name__}: its test path returns {", ".join(sorted(names))}; expected boxes and '
        'labels of bbox2result, with or without masks'
    )


def numbers(settings: Any) -> dict[str, Any]:
    """Return the numbers of nested settings."""
    found = {}
    entries = settings if isinstance(settings, Mapping) else dict(enumerate(settings))
    for key, value in entries.items():
        if isinstance(value, Mapping):
            found[str(key)] = numbers(value)
        elif isinstance(value, bool | int | float):
            found[str(key)] = value
    return found


def line_of(escape: Escape) -> str:
    return f'{place_of_line(escape.file)}:{escape.line}: {escape.text}'
