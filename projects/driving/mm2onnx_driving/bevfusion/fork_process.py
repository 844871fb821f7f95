"""The program of `fork.ForkProcess`: runs mit-han-lab's BEVFusion or a fork by its own code.

Glossary: N cameras, H, W pictures of the network, D depth bins, h, w cells of a feature map, X, Y cells of
the bird's-eye view, P points, V values per point, K classes, Q queries.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdeploy_ext.base.source_code import model_classes
from mmdeploy_ext.runtime.calibration import MATRICES
from mmdeploy_ext.upstream import compat
from mmdeploy_ext.upstream.compat.operator_forms import executed_operators

compat.apply()

import torch  # noqa: E402 - after the patches

from mmdeploy_ext.exporting.last_test import LastTest  # noqa: E402 - imports torch

TURN = 0.3


def build_by_repository(cfg: Any) -> torch.nn.Module:
    from mmdet3d.models import build_model

    cfg.model.pretrained = None
    cfg.model.train_cfg = None
    camera = cfg.model.encoders.get('camera')
    if camera:
        camera.backbone.init_cfg = None  # the weights that training starts from; the checkpoint has all
    return build_model(cfg.model, test_cfg=cfg.get('test_cfg')).eval()


class ForkModel:
    """The model of a repository, on the CPU, in evaluation mode.

    Attributes:
        general: patches of `compat` applied before the repository was imported.
        captured: tensors of the last run by name, kept by hooks.
    """

    def __init__(
        self, root: str, cfg: Mapping[str, Any], steps: list[dict[str, Any]], checkpoint: str
    ) -> None:
        import mmdet.models  # noqa: F401 - patches that it takes are none of the repository

        self.general = compat.effective()  # patches in force before the repository is imported
        import mmdet3d
        from mmcv import ConfigDict
        from mmcv.runner import load_checkpoint

        self.root = Path(root).resolve()
        package = Path(mmdet3d.__file__ or '').resolve()
        if not package.is_relative_to(self.root):
            raise ImportError(f'mmdet3d is {package}, not the copy in {self.root}')
        self.cfg = ConfigDict(cfg)
        self.steps = steps
        self.model = build_by_repository(self.cfg)
        if checkpoint:
            load_checkpoint(self.model, checkpoint, map_location='cpu', strict=True)
        self.captured: dict[str, torch.Tensor] = {}
        self.test = LastTest(self.model)
        self._watch()

    def _watch(self) -> None:
        encoders = self.model.encoders
        if 'lidar' in encoders:
            encoders['lidar']['backbone'].register_forward_hook(
                lambda module, inputs, output: self.captured.update(bev=output)
            )
        if 'camera' not in encoders:
            return
        transform = encoders['camera']['vtransform']
        pool = transform.bev_pool

        def watched_pool(geometry: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
            self.captured['cells'] = cells_of(geometry, transform)
            return pool(geometry, features)

        transform.bev_pool = watched_pool
        transform.forward = geometry_in_float64(transform.forward)
        if hasattr(transform, 'dtransform'):

            def keep_depth(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
                depth = inputs[0].float()
                self.captured['depth'] = depth
                return (depth,)

            transform.dtransform.register_forward_pre_hook(keep_depth)

    def facts(self) -> dict[str, Any]:
        """Return the model's classes, patches, and box convention."""
        patches = [patch for patch in compat.effective() if patch not in self.general]
        return dict(
            root=str(self.root),
            classes=[entry.to_json() for entry in model_classes(self.model)],
            patches=[dict(name=patch.name, reason=patch.reason) for patch in patches],
            box_convention=box_convention(),
        )

    def weight_shapes(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {key: np.array(tensor.shape, np.int64) for key, tensor in self.model.state_dict().items()}

    def step(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return boxes, scores and labels of one frame, and the tensors of `_watch`.

        Args:
            arrays: `points` (P, V) float32, x, y, z in metres first; with cameras `images` (N, 3, H, W)
                float32, normalised, and `MATRICES` as in `FusedFrame`.

        Returns:
            `boxes` (n, 7 or 9), z at the bottom, sizes and yaw by `box_convention`, `scores` (n,), `labels`
                (n,) int64; `bev` (1, channels, X, Y) with a LiDAR, `cells` (N, D, h, w) with cameras, `depth`
                (N, 1, H, W) with depth maps.
        """
        from mmdet3d.core import LiDARInstance3DBoxes

        data = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        matrices = {name: data[name][None] for name in MATRICES if name in data}
        if 'camera2lidar' in data:  # the car's frame is that of the LiDAR
            matrices.update(
                camera2ego=matrices['camera2lidar'], lidar2camera=torch.linalg.inv(matrices['camera2lidar'])
            )
        names = 'camera2ego', 'lidar2ego', 'lidar2camera', *MATRICES
        matrices = {name: matrices.get(name, torch.eye(4)[None]) for name in names}
        self.captured.clear()
        (results,) = self.test.run(
            return_loss=False,
            rescale=True,
            img=data['images'][None] if 'images' in data else None,
            points=[data['points']],
            metas=[dict(box_type_3d=LiDARInstance3DBoxes)],
            depths=None,
            **matrices,
        )
        captured = {name: value.detach().numpy() for name, value in self.captured.items()}
        return captured | boxes_of_result(results)

    def moment(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return a moment's `points` (P, V), matrices of `Collect3D`, and with cameras `img` (N, 3, H, W).

        `arrays` holds its `index` in the file `infos`.
        """
        from mmcv import ConfigDict
        from mmdet3d.datasets import build_dataset

        source = dict(self.cfg.data.test)
        modality = dict(source.get('modality') or {}, use_camera='camera' in self.model.encoders)
        source.update(ann_file=str(arrays['infos']), pipeline=self.steps, modality=modality, test_mode=True)
        sample = build_dataset(ConfigDict(source)).prepare_test_data(int(arrays['index']))
        values = {name: getattr(value, 'data', value) for name, value in sample.items()}
        return {name: value.numpy() for name, value in values.items() if isinstance(value, torch.Tensor)}

    def boxes_of(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return `boxes`, `scores` and `labels` of the last frame by the test path with the head's queries.

        Args:
            arrays: `score` (1, K, Q) probabilities, `reg` (1, 2, Q) centres in cells; raw `height` (1, 1, Q),
                `dim` (1, 3, Q) logarithms, `rot` (1, 2, Q) sine and cosine, `vel` (1, 2, Q).
        """
        head = self.model.heads['object']
        values = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        values['center'], score = values.pop('reg'), values.pop('score')
        values.update(heatmap=score.double().logit(), query_heatmap_score=torch.ones_like(score))

        def given(*args: Any, **kwargs: Any) -> tuple[list[dict[str, torch.Tensor]]]:
            head.query_labels = score.argmax(1)
            return ([values],)

        (results,) = self.test.again({'heads.object.forward': given})
        return boxes_of_result(results)


REQUESTS: Mapping[str, Callable[[ForkModel, Mapping[str, np.ndarray]], dict[str, np.ndarray]]] = dict(
    boxes_of=ForkModel.boxes_of,
    moment=ForkModel.moment,
    step=ForkModel.step,
    weight_shapes=ForkModel.weight_shapes,
)


def boxes_of_result(result: Mapping[str, Any]) -> dict[str, np.ndarray]:
    boxes, scores, labels = (result[name] for name in ('boxes_3d', 'scores_3d', 'labels_3d'))
    rows = dict(boxes=boxes.tensor, scores=scores.float(), labels=labels.long())
    return {name: value.detach().numpy() for name, value in rows.items()}


def cells_of(geometry: torch.Tensor, transform: torch.nn.Module) -> torch.Tensor:
    """Return the cell `x * Y + y` (N, D, h, w) of points (1, N, D, h, w, 3), metres; X * Y outside.

    The grid is `bx`, `dx` and `nx` of `transform`, the repository's view transform.
    """
    indices = ((geometry[0] - (transform.bx - transform.dx / 2.0)) / transform.dx).long()
    count = transform.nx.long()
    inside = ((indices >= 0) & (indices < count)).all(-1)
    return torch.where(inside, indices[..., 0] * count[1] + indices[..., 1], count[0] * count[1])


def geometry_in_float64(forward: Any) -> Any:
    """Return a view transform's `forward` that computes places of points in float64.

    In float32, rounding decides the cell of points near a border, and it differs between machines.
    """

    def widened(value: Any) -> Any:
        if isinstance(value, list):
            return [widened(entry) for entry in value]
        is_float32 = isinstance(value, torch.Tensor) and value.dtype == torch.float32
        return value.double() if is_float32 else value

    @functools.wraps(forward)
    def transformed(features: torch.Tensor, *args: Any, **options: Any) -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return forward(
                features, *map(widened, args), **{name: widened(value) for name, value in options.items()}
            )
        finally:
            torch.set_default_dtype(before)

    return transformed


def box_convention() -> str:
    from mmdet3d.core import LiDARInstance3DBoxes

    long_box = torch.tensor([[0.0, 0.0, 0.0, 4.0, 1.0, 1.0, TURN]])
    x, y = LiDARInstance3DBoxes(long_box).corners[0, :, :2].double().unbind(1)
    return '1.x' if float((x * y).sum()) > 0 else '0.x'  # turned to the left, the long side rises


def line_of(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    first = Path(os.environ.get('PYTHONPATH', '').partition(os.pathsep)[0]).resolve()
    last = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(first)] or frames
    return f'{last[-1].filename}:{last[-1].lineno}'


def run(fork: ForkModel, request: Mapping[str, Any]) -> dict[str, Any]:
    with np.load(request['input']) as arrays:
        np.savez(request['output'], **REQUESTS[request['method']](fork, dict(arrays)))
    return dict(operators=list(executed_operators))


def main(argv: list[str] | None = None) -> int:
    (job,) = sys.argv[1:] if argv is None else argv
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    torch.set_num_threads(1)

    def answer(make: Any) -> bool:
        try:
            content = make()
        except Exception as error:  # whatever the repository's code raises
            content = dict(error=f'{type(error).__name__}: {error} ({line_of(error)})')
        print(json.dumps(content), file=answers, flush=True)
        return 'error' not in content

    fork: list[ForkModel] = []

    def begin() -> dict[str, Any]:
        fork.append(ForkModel(**pickle.loads(Path(job).read_bytes())))
        return fork[0].facts()

    if not answer(begin):
        return 1
    for line in sys.stdin:
        answer(functools.partial(run, fork[0], json.loads(line)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
