"""The toy StreamPETR as files, by the family's own modules and contracts; and its frames for the runtime."""

from __future__ import annotations

import copy
import dataclasses
import functools

import numpy as np
import onnx
import torch

import toy_streampetr as toy
from mmdeploy_ext.contract.metadata import Metadata
from mmdeploy_ext.contract.spec import Stage
from mmdeploy_ext.exporting.export import export_stages
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.streampetr.facts import StreamPetrFacts
from mmdeploy_ext.preprocess.cameras import MultiViewRule
from mmdeploy_ext.runtime.frames import Frame

RULE = MultiViewRule(
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
    to_rgb=True,
    source=(90, 160),
    scale=0.6,
    resized=(54, 96),
    crop=(22, 0),
    size=(toy.HEIGHT, toy.WIDTH),
    size_divisor=32,
)
FACTS = StreamPetrFacts(
    num_classes=toy.NUM_CLASSES,
    max_num=20,
    post_center_range=tuple(toy.POSITION_RANGE),
    score_threshold=None,
    memory_len=toy.MEMORY_LEN,
    topk_proposals=toy.NUM_PROPAGATED,
    num_propagated=toy.NUM_PROPAGATED,
)


@functools.cache
def model(seed: int = 0):
    """Return a seeded toy in evaluation mode whose scores are spread, so that its top-k has no near-ties."""
    built = toy.build(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in built.pts_bbox_head.named_parameters():
            if name.endswith(('gamma.weight', 'beta.weight')):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
            if name.startswith(('cls_branches', 'reg_branches')) and value.dim() > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / value.shape[1]) ** 0.5)
            if name.startswith('cls_branches') and name.endswith('.6.bias'):
                value.fill_(-1.5)
    return built


def write(
    folder, contract: str = 'deploy', seed: int = 0, checkpoint: str = 'd' * 64, **options
) -> list[str]:
    """Write the toy's files and return their paths."""
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mmdeploy_ext.consumers.streampetr_fork import export
    from mmdeploy_ext.families.streampetr import graphs, spec

    chosen = FAMILIES['streampetr'].choose(contract=contract, **options)
    detector = model(seed)
    size = spec.sizes(detector, toy.NUM_CAMS, toy.HEIGHT, toy.WIDTH, chosen.layers)
    shape, every = (toy.NUM_CAMS, toy.HEIGHT, toy.WIDTH), chosen.layers == 'all'
    if contract == 'deploy':
        modules = dict(
            extract_img_feat=graphs.ExtractImgFeat(detector),
            position_embedding=graphs.RigEmbedding(detector, *shape),
            pts_head_memory=graphs.PtsHeadMemory(detector, every),
        )
        specs = {name: getattr(spec, name)(size, chosen) for name in modules}
    else:
        cls = export.ForkFrame10 if chosen.fork_version == '1.0' else export.ForkFrame
        modules, specs = dict(fork=cls(detector, every, *shape)), dict(fork=export.fork_spec(size, chosen))
    return [
        _write(folder, name, module, specs[name], chosen, checkpoint, seed)
        for name, module in modules.items()
    ]


EXPORTED: dict[tuple[str, int, str], bytes] = {}
"""Graph, seed and options -> file: each is exported once."""


def _export(name, module, contract, options, seed) -> onnx.ModelProto:
    key = name, seed, repr(options)
    if key not in EXPORTED:
        EXPORTED[key] = _trace(module, contract, options).SerializeToString()
    return onnx.load_from_string(EXPORTED[key])


def _trace(module, contract, options) -> onnx.ModelProto:
    example = {
        tensor.name: torch.full(tensor.axes, 0.5, dtype=getattr(torch, tensor.dtype))
        for tensor in contract.inputs
    }
    stage = Stage('', module.eval(), tuple(contract.input_names), tuple(contract.output_names))
    return export_stages([stage], example, contract, options)


def _write(folder, name, module, contract, options, checkpoint, seed) -> str:
    proto = _export(name, module, contract, options, seed)
    metadata = Metadata(
        family='streampetr',
        form=name,
        spec=contract,
        preprocess=RULE,
        classes=tuple(f'class {label}' for label in range(toy.NUM_CLASSES)),
        postprocess=FACTS,
        options=options.to_json(),
        config='toy.py',
        config_sha256='c' * 64,
        checkpoint_sha256=checkpoint,
        versions={},
    )
    onnx.helper.set_model_props(proto, metadata.to_props())
    path = folder / f'{name}.onnx'
    onnx.save(proto, path)
    return str(path)


def frame(index: int, scene: str = 'scene0', seed: int | None = None) -> Frame:
    """Return the frame that `toy_streampetr.test_inputs(index, ...)` is."""
    data = toy.test_inputs(index, index if seed is None else seed, scene)
    one = {key: data[key][0][0].numpy() for key in ('lidar2img', 'intrinsics', 'ego_pose', 'ego_pose_inv')}
    return Frame(
        images=data['img'][0][0].numpy(),
        timestamp_s=float(data['timestamp'][0][0]),
        scene_token=scene,
        name=f'{scene}_{index}',
        **{key: value.astype(np.float64) for key, value in one.items()},
    )


def far(frame: Frame, metres: float, seconds: float) -> Frame:
    """Return a frame of the same drive elsewhere on the map and at another time."""
    pose = frame.ego_pose.copy()
    pose[:2, 3] += metres
    return dataclasses.replace(
        frame, ego_pose=pose, ego_pose_inv=None, timestamp_s=frame.timestamp_s + seconds
    )


def eager(frames: list[Frame], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[dict]:
    """Run the unpatched model over frames; per frame its outputs and the state after it, global, in numpy."""
    detector = model(seed) if dtype == torch.float32 else copy.deepcopy(model(seed)).to(dtype)
    detector.prev_scene_token = None
    detector.pts_bbox_head.reset_memory()
    results = []
    meta = toy.test_inputs()['img_metas'][0][0]
    with torch.no_grad():
        for item in frames:
            keys = ('lidar2img', 'intrinsics', 'ego_pose', 'ego_pose_inv')
            data = {key: torch.from_numpy(getattr(item, key)).to(dtype)[None] for key in keys}
            data['timestamp'] = torch.tensor([item.timestamp_s], dtype=torch.float64)
            image = torch.from_numpy(item.images).to(dtype)[None]
            metas = [dict(meta, scene_token=item.scene_token)]
            outputs = detector.run_frame(metas, image, **data)
            state = {key: value.numpy() for key, value in detector.pts_bbox_head.memory._asdict().items()}
            bboxes, scores, labels = detector.pts_bbox_head.get_bboxes(outputs, metas)[0]
            results.append(
                dict(
                    all_cls_scores=outputs['all_cls_scores'].numpy(),
                    all_bbox_preds=outputs['all_bbox_preds'].numpy(),
                    state=state,
                    boxes=bboxes.tensor.numpy(),
                    scores=scores.numpy(),
                    labels=labels.numpy(),
                )
            )
    return results
