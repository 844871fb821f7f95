"""StreamPETR's detector: images to features, frames to scenes, and training clips through one memory.

Glossary: B batch, T frames of a training clip, N cameras, M images of all these, H, W their size in px, C
channels, h, w feature map.

Source: exiawsh/StreamPETR 95f6470, models/detectors/petr3d.py. Differs in: nothing is changed in place, and
frames without gradient leave the mode as they found it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmcv.runner import auto_fp16
from mmdet.models import DETECTORS
from mmdet3d.core import bbox3d2result
from mmdet3d.models.detectors.mvx_two_stage import MVXTwoStageDetector
from torch import Tensor, nn

from mmdeploy_ext.core.errors import ConfigError, DataError
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.models.catalogue import registered_if_named
from mmdeploy_ext.models.streampetr.steps import token_centers

PER_FRAME = ('gt_bboxes_3d', 'gt_labels_3d', 'gt_bboxes', 'gt_labels', 'centers2d', 'depths', 'img_metas')
"""Keys of a training batch that are lists [B][T]."""


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode and without gradients; then `train` sets the model's own mode again.

    A part that was in another mode than the model gets that of the model, unless its `train` prevents it.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


class GridMask(nn.Module):
    """Hide all of a batch of training images but one random grid of stripes, with probability `prob`.

    Source: GridMask Data Augmentation (Chen et al., 2020); the ranges of its random numbers, and that the
    stripes stay, are PETR's (`models/utils/grid_mask.py`).
    """

    prob = 0.7

    def forward(self, x: Tensor) -> Tensor:
        """Return images (M, 3, H, W) under a grid, or the same tensor if none is drawn."""
        if not self.training or torch.rand(()).item() > self.prob:
            return x
        return x * self.draw(*x.shape[-2:]).to(x)

    def draw(self, height: int, width: int) -> Tensor:
        """Return a random grid (H, W), 1 for pixels that stay; its period is drawn from 2..H - 1."""
        period = int(torch.randint(2, max(height, 3), ()))
        thickness = min(max(int(period * 0.5 + 0.5), 1), period - 1)
        starts = [int(torch.randint(0, period, ())) for _ in range(2)]
        torch.randint(0, 1, ())  # not used: the grids of a seed of torch stay as they were

        def in_stripes(extent: int, start: int) -> Tensor:  # the grid is 1.5 times as large as the image
            large = int(1.5 * extent)
            offset = torch.arange(extent) + (large - extent) // 2 - start
            return (offset >= 0) & (offset // period < large // period) & (offset % period < thickness)

        rows, columns = in_stripes(height, starts[0]), in_stripes(width, starts[1])
        return (rows[:, None] | columns).float()


@registered_if_named(DETECTORS)
class Petr3D(MVXTwoStageDetector):
    """Camera-only detector that runs a scene frame by frame.

    Args:
        use_grid_mask: hide a random grid of the training images.
        num_frame_head_grads, num_frame_backbone_grads, num_frame_losses: frames of a training clip, counted
            from its end, with gradients in the head, in the backbone, and with losses.
        stride: px per cell of the feature level that is used.
        position_level: which level of the neck is used.
        aux_2d_only: the 2D head only helps training; False, which samples tokens by it, is refused.
        single_test: not used; upstream's configs may give it.
        modules: backbone, neck and heads, as mmdet3d's detectors take them; `pts_bbox_head` is StreamPETR's.

    Raises:
        ConfigError: `aux_2d_only=False`, another head, another `stride` than the head's, or more frames with
            losses than with gradients in the head.
    """

    def __init__(
        self,
        use_grid_mask: bool = False,
        num_frame_head_grads: int = 2,
        num_frame_backbone_grads: int = 2,
        num_frame_losses: int = 2,
        stride: int = 16,
        position_level: int = 0,
        aux_2d_only: bool = True,
        single_test: bool = False,
        **modules: Any,
    ) -> None:
        super().__init__(**modules)
        if not aux_2d_only:
            raise ConfigError(
                f'{type(self).__name__}: aux_2d_only=False (focal token sampling) is not supported'
            )
        if not hasattr(self.pts_bbox_head, 'stride'):
            # PETR and PETRv2 have a detector of the same type, see `Offer.beside`
            raise ConfigError(
                f'{type(self).__name__}: pts_bbox_head is {type(self.pts_bbox_head).__name__}, expected a '
                'head of StreamPETR; import the plugin of the repository that the config comes from'
            )
        if stride != self.pts_bbox_head.stride:
            raise ConfigError(
                f"{type(self).__name__}: stride is {stride}, the head's is {self.pts_bbox_head.stride}; "
                'give both the same'
            )
        if num_frame_losses > num_frame_head_grads:
            raise ConfigError(
                f'num_frame_losses: got {num_frame_losses}, expected at most num_frame_head_grads = '
                f'{num_frame_head_grads}: a frame without gradients has no losses'
            )
        self.grid_mask = GridMask()
        self.use_grid_mask = use_grid_mask
        self.num_frame_head_grads, self.num_frame_losses = num_frame_head_grads, num_frame_losses
        self.num_frame_backbone_grads = num_frame_backbone_grads
        self.stride, self.position_level = stride, position_level
        self.prev_scene_token: str | None = None

    def extract_img_feat(self, img: Tensor) -> Tensor:
        """Return features (B, N, C, h, w) of normalised images (B, N, 3, H, W)."""
        return self._map_images(img.unsqueeze(1)).squeeze(1)

    def forward(self, return_loss: bool = True, **data: Any) -> Any:
        """Train (`return_loss`) or test, as mmcv's runners call it."""
        return self.forward_train(**data) if return_loss else self.forward_test(**data)

    def forward_test(self, img_metas: list, rescale: bool = False, **data: Any) -> list[dict]:
        """Unwrap the one augmentation that the test pipeline makes, and run; boxes are in m.

        The metas are [one augmentation][one sample]; data has [one augmentation] of `img` (1, N, 3, H, W)
        and, each with a batch or list axis of 1, of the calibration and pose keys. `rescale` is not used. For
        the result see `simple_test`. DataError: several augmentations or samples.
        """
        if not isinstance(img_metas, list) or len(img_metas) != 1:
            raise DataError('Petr3D tests one augmentation: img_metas has to be a list of one list')
        img = data.pop('img')[0]
        single = {key: values[0][0].unsqueeze(0) for key, values in data.items()}
        return self.simple_test(img_metas[0], img=img, **single)

    def simple_test(self, img_metas: list[dict], img: Tensor, **data: Tensor) -> list[dict]:
        """Detect in one frame (B = 1): return a list of one dict, `pts_bbox` -> a dict on the CPU.

        It has `boxes_3d` of the type in the metas, `scores_3d` and `labels_3d`, see `get_bboxes` of the head.
        `img` is (N, 3, H, W) or (1, N, 3, H, W), normalised; `data` are further tensors of the sample, see
        `run_frame`. DataError: a batch of several samples.
        """
        img = img.unsqueeze(0) if img.dim() == 4 else img
        if img.shape[0] != 1:
            raise DataError(
                f'Petr3D tests one sample at a time, since scenes are streams; got a batch of {img.shape[0]}'
            )
        outputs = self.run_frame(img_metas, tap('img', img), **data)
        samples = self.pts_bbox_head.get_bboxes(outputs, img_metas)
        return [{'pts_bbox': bbox3d2result(*boxes_scores_labels)} for boxes_scores_labels in samples]

    def run_frame(self, img_metas: list[dict], img: Tensor, **data: Tensor) -> dict[str, Any]:
        """Return the head's outputs by name for one frame (1, N, 3, H, W).

        Another `scene_token` of its metas than that of the last frame starts a new stream. `data` has
        `timestamp` (1,) float64 s, `ego_pose`, `ego_pose_inv` (1, 4, 4), LiDAR to global and back, and what
        else the head takes: `lidar2img` and `intrinsics` (1, N, 4, 4).
        """
        scene_token = img_metas[0]['scene_token']
        is_new = scene_token != self.prev_scene_token
        if is_new:
            self.prev_scene_token = scene_token
            self.pts_bbox_head.reset_memory()
        data['prev_exists'] = img.new_full((1,), float(not is_new))
        for name in ('timestamp', 'ego_pose', 'ego_pose_inv', 'prev_exists'):
            tap(name, data[name])
        return self.pts_bbox_head(self.extract_img_feat(img), img_metas, **data)

    def forward_train(self, **data: object) -> dict[str, Tensor]:
        """Return the losses of one batch; the first one after a test starts without memory.

        Args:
            data: as the data loader gives it. Tensors: `img` (B, T, N, 3, H, W), `lidar2img`, `intrinsics`,
                `extrinsics` (B, T, N, 4, 4), `timestamp` (B, T) float64, `ego_pose`, `ego_pose_inv`
                (B, T, 4, 4), LiDAR to global and back, `prev_exists` (B, T); others (B, T, ...) are ignored.
                Lists [B][T]: `gt_bboxes_3d`, `gt_labels_3d`, `img_metas`. Lists [B][T][N], which a detector
                without 2D head may leave out: `gt_bboxes`, `gt_labels`, `centers2d`, `depths`.

        Returns:
            `frame_{i}_{name}` of every frame i with losses, such as `frame_7_d0.loss_bbox`; names as in
            `training.head_losses` and `FocalHead.loss`.
        """
        if self.prev_scene_token is not None:  # the memory is that of a test, such as a run's evaluation
            self.prev_scene_token = None
            self.pts_bbox_head.reset_memory()
        present = [key for key in PER_FRAME if data.get(key) is not None]
        annotations = {key: list(zip(*data.pop(key), strict=True)) for key in present}  # [B][T] to [T][B]
        tensors = {key: value for key, value in data.items() if isinstance(value, torch.Tensor)}
        tensors['img_feats'] = self.extract_frames(tensors.pop('img'))
        return self.obtain_history_memory(annotations, tensors)

    def extract_frames(self, img: Tensor) -> Tensor:
        """Return features (B, T, N, C, h, w) of (B, T, N, 3, H, W); gradients for the last frames alone."""
        first = max(img.shape[1] - self.num_frame_backbone_grads, 0)
        recent = self._map_images(img[:, first:])
        if first == 0:
            return recent
        with without_gradients(self):
            previous = self._map_images(img[:, :first])
        return torch.cat([previous, recent], dim=1)

    @auto_fp16(apply_to=('img',), out_fp32=True)
    def _map_images(self, img: Tensor) -> Tensor:
        flat = img.flatten(0, 2)
        if self.use_grid_mask:
            flat = self.grid_mask(flat)
        maps = self.img_backbone(flat)
        maps = list(maps.values()) if isinstance(maps, dict) else maps
        if self.with_img_neck:
            maps = self.img_neck(maps)
        level = maps[self.position_level]
        # ONNX has no unflatten before opset 13
        return level.reshape(*img.shape[:3], *level.shape[1:])

    def obtain_history_memory(
        self, annotations: dict[str, list], tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Run the frames in turn and return their losses; see `forward_train`.

        Annotations are lists [T][B], tensors (B, T, ...), `img_feats` among them.
        """
        frames, losses = tensors['img_feats'].shape[1], {}
        for i in range(frames):
            data = {key: value[:, i] for key, value in tensors.items()}
            truth = {key: value[i] for key, value in annotations.items()}
            frame_losses = self.forward_pts_train(
                truth,
                data,
                requires_grad=i >= frames - self.num_frame_head_grads,
                return_losses=i >= frames - self.num_frame_losses,
            )
            losses.update({f'frame_{i}_{key}': value for key, value in frame_losses.items()})
        return losses

    def forward_pts_train(
        self, truth: dict[str, list], data: dict[str, Tensor], requires_grad: bool, return_losses: bool
    ) -> dict[str, Tensor]:
        """Run the heads on one frame of B samples; return its losses, none without `return_losses`.

        `truth` has the lists [B] of `PER_FRAME`, `data` the tensors (B, ...) of the frame with `img_feats`.
        Without `requires_grad` the head is not trained on this frame: it runs as in a test.
        """
        img_metas = list(truth['img_metas'])
        if not requires_grad:
            with without_gradients(self):
                outs_roi = {'topk_indexes': None}
                outs = self.pts_bbox_head(img_metas=img_metas, topk_indexes=None, **data)
        else:
            outs_roi = self.forward_roi_head(img_metas, **data)
            outs = self.pts_bbox_head(img_metas=img_metas, topk_indexes=outs_roi['topk_indexes'], **data)
        if not return_losses:
            return {}
        losses = self.pts_bbox_head.loss(truth['gt_bboxes_3d'], truth['gt_labels_3d'], outs)
        if self.with_img_roi_head:
            flat = [truth[key] for key in ('gt_bboxes', 'gt_labels', 'centers2d', 'depths')]
            losses.update(self.img_roi_head.loss(*flat, outs_roi, img_metas))
        return losses

    def forward_roi_head(self, img_metas: list[dict], **data: Tensor) -> dict[str, Tensor | None]:
        """Return the 2D head's outputs by name of a frame; if it does not run, `topk_indexes` is None."""
        if not (self.with_img_roi_head and self.training):
            return {'topk_indexes': None}
        return self.img_roi_head(self.prepare_location(img_metas, data['img_feats']), **data)

    def prepare_location(self, img_metas: list[dict], img_feats: Tensor) -> Tensor:
        """Return token centres (1, h, w, 2), x, y relative to the padded image, of a map (..., h, w)."""
        height, width = img_metas[0]['pad_shape'][0][:2]
        centers = token_centers((height, width), self.stride, 1, img_feats.device)
        return (centers / centers.new_tensor([width, height])).view(1, *img_feats.shape[-2:], 2)


@registered_if_named(DETECTORS)
class Petr3DPTH(Petr3D):
    """The name that the deployment fork's `_pth` configs use."""


@registered_if_named(DETECTORS)
class Petr3DONNX(Petr3D):
    """The name that the deployment fork's `_onnx` configs use."""
