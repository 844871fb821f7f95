"""The training step of the detector: T frames in turn through one memory, losses on the last ones.

Source: StreamPETR `models/detectors/petr3d.py`. Letters: B batch, T frames, N cameras, C channels.
Differs in: nothing is changed in place, and the frames without gradient leave the mode as they found it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmcv.runner import auto_fp16
from torch import Tensor, nn

from mmdeploy_ext.core.errors import ConfigError

from .grid_mask import GridMask
from .rays import token_centers

PER_FRAME = ('gt_bboxes_3d', 'gt_labels_3d', 'gt_bboxes', 'gt_labels', 'centers2d', 'depths', 'img_metas')


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode and without gradients; the mode is put back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


class Petr3DTraining:
    """What training adds to the detector; `Petr3D` inherits it beside mmdet3d's detector class.

    Uses `img_backbone`, `img_neck`, `pts_bbox_head`, `img_roi_head` and the attributes of `init_training`.
    """

    def init_training(
        self,
        use_grid_mask: bool = False,
        num_frame_head_grads: int = 2,
        num_frame_backbone_grads: int = 2,
        num_frame_losses: int = 2,
        stride: int = 16,
        position_level: int = 0,
        aux_2d_only: bool = True,
        single_test: bool = False,
    ) -> None:
        """Set the options under upstream's names.

        Args:
            use_grid_mask: hide a random grid of the training images.
            num_frame_head_grads: last frames of a sample whose head is trained.
            num_frame_backbone_grads: last frames whose backbone is trained.
            num_frame_losses: last frames that have losses.
            stride: px per token.
            position_level: which map of the neck is used.
            aux_2d_only: do not run the 2D head in a test; without this it chooses the tokens there too.
            single_test: kept for configs; nothing reads it, upstream neither.

        Raises:
            ConfigError: more frames with losses than with gradients.
        """
        if num_frame_losses > num_frame_head_grads:
            raise ConfigError(
                f'num_frame_losses: got {num_frame_losses}, expected at most num_frame_head_grads = '
                f'{num_frame_head_grads}: a frame without gradients has no losses'
            )
        self.grid_mask = GridMask(True, True, rotate=1, offset=False, ratio=0.5, mode=1, prob=0.7)
        self.use_grid_mask = use_grid_mask
        self.num_frame_head_grads = num_frame_head_grads
        self.num_frame_backbone_grads = num_frame_backbone_grads
        self.num_frame_losses = num_frame_losses
        self.stride, self.position_level = stride, position_level
        self.aux_2d_only, self.single_test = aux_2d_only, single_test

    def forward_train(self, **data: object) -> dict[str, Tensor]:
        """Return the losses of one batch.

        Args:
            data: as the data loader gives it. Tensors: `img` (B, T, N, 3, H, W), `lidar2img`, `intrinsics`,
                `extrinsics` (B, T, N, 4, 4), `timestamp` (B, T) float64, `ego_pose`, `ego_pose_inv`
                (B, T, 4, 4), `prev_exists` (B, T); others (B, T, ...) are ignored. Lists [B][T]:
                `gt_bboxes_3d`, `gt_labels_3d`, `img_metas`. Lists [B][T][N], which a detector without 2D head
                may leave out: `gt_bboxes`, `gt_labels`, `centers2d`, `depths`.

        Returns:
            `frame_{i}_{name}` of every frame i with losses; names as in `losses.head_losses` and
            `FocalHead.loss`.
        """
        given = [key for key in PER_FRAME if data.get(key) is not None]
        annotations = {key: list(zip(*data.pop(key), strict=True)) for key in given}  # [B][T] to [T][B]
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

        Args:
            annotations: lists [T][B].
            tensors: (B, T, ...), `img_feats` among them.
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
        """Run the heads on one frame; return its losses, none without `return_losses`.

        Args:
            truth: annotations of B samples.
            data: (B, ...) tensors of the frame.
            requires_grad: whether the head is trained on this frame; if not, it runs as in a test.
            return_losses: whether the frame has losses.
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
        """Return what the 2D head gives for a frame; where it does not run `topk_indexes` is None."""
        if not self.with_img_roi_head or (self.aux_2d_only and not self.training):
            return {'topk_indexes': None}
        return self.img_roi_head(self.prepare_location(img_metas, data['img_feats']), **data)

    def prepare_location(self, img_metas: list[dict], img_feats: Tensor) -> Tensor:
        """Return token centres (1, h, w, 2), x, y in parts of the padded image, of a map (..., h, w)."""
        height, width = img_metas[0]['pad_shape'][0][:2]
        centers = token_centers((height, width), self.stride, 1, img_feats.device)
        return (centers / centers.new_tensor([width, height])).view(1, *img_feats.shape[-2:], 2)
