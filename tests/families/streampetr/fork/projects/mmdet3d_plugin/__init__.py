"""A plugin like that of exiawsh/StreamPETR: its class names, methods and memory, on layers of toy size.

Written for tests. The layers are built by the head of mm2onnx; what runs them is here.
"""

import torch
from mmcv.runner import BaseModule
from mmdet.core.bbox import BaseBBoxCoder
from mmdet.core.bbox.builder import BBOX_CODERS
from mmdet.models import DETECTORS, HEADS
from mmdet3d.core import bbox3d2result
from mmdet3d.models.detectors.mvx_two_stage import MVXTwoStageDetector

from mmdeploy_ext.models.streampetr import head as layers

from .functions import (
    denormalize_bbox,
    inverse_sigmoid,
    locations,
    memory_refresh,
    nerf_positional_encoding,
    pos2posemb1d,
    pos2posemb3d,
    topk_gather,
    transform_reference_points,
)

FIELDS = ('embedding', 'reference_point', 'timestamp', 'egopose', 'velo')


@BBOX_CODERS.register_module()
class NMSFreeCoder(BaseBBoxCoder):
    """The best pairs of query and class as boxes."""

    def __init__(self, pc_range, post_center_range, max_num, num_classes, voxel_size=None):
        self.pc_range, self.post_center_range, self.max_num = pc_range, post_center_range, max_num
        self.num_classes, self.score_threshold = num_classes, None

    def encode(self):
        """Boxes are encoded by the losses."""

    def decode_single(self, cls_scores, bbox_preds):
        """Return the boxes of one sample."""
        scores, indexes = cls_scores.sigmoid().view(-1).topk(self.max_num)
        boxes = denormalize_bbox(bbox_preds[indexes // self.num_classes], self.pc_range)
        limits = torch.tensor(self.post_center_range)
        mask = ((boxes[:, :3] >= limits[:3]) & (boxes[:, :3] <= limits[3:])).all(1)
        if self.score_threshold:
            mask &= scores >= self.score_threshold
        return dict(bboxes=boxes[mask], scores=scores[mask], labels=(indexes % self.num_classes)[mask])

    def decode(self, preds_dicts):
        """Return the boxes of each sample, of the last layer."""
        last = zip(preds_dicts['all_cls_scores'][-1], preds_dicts['all_bbox_preds'][-1], strict=True)
        return [self.decode_single(*outputs) for outputs in last]


class Transformer(BaseModule):
    """The decoder, with the arguments in the repository's order."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, memory, tgt, query_pos, pos_embed, attn_masks, temp_memory, temp_pos):
        """Return the outputs of all layers, and the image tokens."""
        sequences = tgt, query_pos, memory, pos_embed, temp_memory, temp_pos
        outs_dec = self.decoder(*(rows.transpose(0, 1) for rows in sequences), attn_masks)
        return outs_dec.transpose(1, 2), memory


@HEADS.register_module()
class StreamPETRHead(BaseModule):
    """A head with its memory in five attributes, in global coordinates."""

    def __init__(self, train_cfg=None, test_cfg=None, **settings):
        super().__init__()
        ours = layers.StreamPETRHead(**settings)
        for name, value in vars(ours).items():
            if not name.startswith('_') and not hasattr(self, name):
                setattr(self, name, value)
        for name, layer in (*ours.named_children(), *ours.named_parameters(recurse=False)):
            setattr(self, name, layer)
        self.transformer = Transformer(ours.transformer.decoder)
        self.reset_memory()

    def reset_memory(self):
        """Forget the rows."""
        for field in FIELDS:
            setattr(self, f'memory_{field}', None)

    def pre_update_memory(self, data):
        """Bring the rows into the frame of the picture."""
        x = data['prev_exists']
        if self.memory_embedding is None:
            shapes = (self.embed_dims,), (3,), (1,), (4, 4), (2,)
            for field, shape in zip(FIELDS, shapes, strict=True):
                setattr(self, f'memory_{field}', x.new_zeros(len(x), self.memory_len, *shape))
        else:
            inverse = data['ego_pose_inv']
            self.memory_timestamp += data['timestamp'].view(-1, 1, 1)
            self.memory_egopose = inverse.unsqueeze(1) @ self.memory_egopose
            self.memory_reference_point = transform_reference_points(self.memory_reference_point, inverse)
            for field in FIELDS:
                rows = getattr(self, f'memory_{field}')[:, : self.memory_len]
                setattr(self, f'memory_{field}', memory_refresh(rows, x))
        count, low, high = self.num_propagated, self.pc_range[:3], self.pc_range[3:]
        points = self.pseudo_reference_points.weight * (high - low) + low
        self.memory_reference_point[:, :count] += (1 - x).view(-1, 1, 1) * points
        self.memory_egopose[:, :count] += (1 - x).view(-1, 1, 1, 1) * torch.eye(4)

    def post_update_memory(self, data, rec_ego_pose, all_cls_scores, all_bbox_preds, outs_dec, mask_dict):
        """Put the best queries in front, and bring all rows into the global frame."""
        best = all_cls_scores[-1].sigmoid().topk(1, dim=-1).values
        indexes = best.topk(self.topk_proposals, dim=1).indices
        boxes = topk_gather(all_bbox_preds[-1], indexes)
        times = torch.zeros_like(boxes[..., :1], dtype=torch.float64)
        rows = topk_gather(outs_dec[-1], indexes), boxes[..., :3], times
        rows = *rows, topk_gather(rec_ego_pose, indexes), boxes[..., -2:]
        for field, new in zip(FIELDS, rows, strict=True):
            setattr(self, f'memory_{field}', torch.cat([new, getattr(self, f'memory_{field}')], dim=1))
        pose = data['ego_pose']
        self.memory_reference_point = transform_reference_points(self.memory_reference_point, pose)
        self.memory_timestamp -= data['timestamp'].view(-1, 1, 1)
        self.memory_egopose = pose.unsqueeze(1) @ self.memory_egopose

    def position_embeding(self, data, memory_centers, topk_indexes, img_metas):
        """Encode the rays of the tokens."""
        intrinsics = data['intrinsics']
        focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], -1).abs() / 1e3
        tokens = memory_centers.shape[1] * memory_centers.shape[2]
        focal = focal.repeat(1, tokens, 1)
        height, width = img_metas[0]['pad_shape'][0][:2]
        centers = memory_centers.flatten(0, 2) * memory_centers.new_tensor([width, height])
        depth = self.coords_d.view(1, -1, 1).expand(len(centers), -1, 1)
        points = torch.cat([centers[:, None] * depth.clamp(min=1e-5), depth, torch.ones_like(depth)], -1)
        matrices = data['lidar2img'].inverse().flatten(0, 1).repeat_interleave(tokens, dim=0)
        points = torch.einsum('tij,tdj->tdi', matrices, points)[None, ..., :3]
        low, high = self.position_range[:3], self.position_range[3:]
        points = (points - low) / (high - low)
        cone = torch.cat([focal, points[:, :, -1], points[:, :, -30]], -1)
        return self.position_encoder(inverse_sigmoid(points.flatten(-2))), cone

    def temporal_alignment(self, query_pos, tgt, reference_points):
        """Put the propagated rows behind the queries."""
        low, high, count = self.pc_range[:3], self.pc_range[3:], self.num_propagated
        points = (self.memory_reference_point - low) / (high - low)
        temp_pos = self.query_embedding(pos2posemb3d(points, self.embed_dims // 2))
        temp_memory = self.memory_embedding
        poses = torch.eye(4).expand(*query_pos.shape[:2], 4, 4)
        still = torch.zeros_like(reference_points[..., :3])
        motion = nerf_positional_encoding(torch.cat([still, poses[..., :3, :].flatten(-2)], -1))
        tgt, query_pos = self.ego_pose_memory(tgt, motion), self.ego_pose_pe(query_pos, motion)
        motion = [self.memory_velo, self.memory_timestamp, self.memory_egopose[..., :3, :].flatten(-2)]
        motion = nerf_positional_encoding(torch.cat(motion, -1).float())
        temp_pos = self.ego_pose_pe(temp_pos, motion)
        temp_memory = self.ego_pose_memory(temp_memory, motion)
        query_pos = query_pos + self.time_embedding(pos2posemb1d(still[..., :1], self.embed_dims))
        ages = pos2posemb1d(self.memory_timestamp, self.embed_dims).float()
        temp_pos = temp_pos + self.time_embedding(ages)
        tgt = torch.cat([tgt, temp_memory[:, :count]], 1)
        query_pos = torch.cat([query_pos, temp_pos[:, :count]], 1)
        reference_points = torch.cat([reference_points, points[:, :count]], 1)
        poses = torch.eye(4).expand(1, tgt.shape[1], 4, 4)
        return tgt, query_pos, reference_points, temp_memory[:, count:], temp_pos[:, count:], poses

    def prepare_for_dn(self, batch_size, reference_points, img_metas):
        """Return the points of the learned queries; there are no others in a test."""
        return reference_points.unsqueeze(0).repeat(batch_size, 1, 1), None, None

    def forward(self, memory_center, img_metas, topk_indexes=None, **data):
        """Run a frame."""
        self.pre_update_memory(data)
        features = data['img_feats'].permute(0, 1, 3, 4, 2).flatten(1, 3)
        pos_embed, cone = self.position_embeding(data, memory_center, topk_indexes, img_metas)
        memory = self.spatial_alignment(self.memory_embed(features), cone)
        pos_embed = self.featurized_pe(pos_embed, memory)
        points, mask, mask_dict = self.prepare_for_dn(len(features), self.reference_points.weight, img_metas)
        query_pos = self.query_embedding(pos2posemb3d(points, self.embed_dims // 2))
        tgt = torch.zeros_like(query_pos)
        tgt, query_pos, points, *rows = self.temporal_alignment(query_pos, tgt, points)
        outs_dec, _ = self.transformer(memory, tgt, query_pos, pos_embed, mask, *rows[:2])
        classes, boxes = [], []
        for level, outputs in enumerate(outs_dec):
            code = self.reg_branches[level](outputs)
            centers = (code[..., :3] + inverse_sigmoid(points)).sigmoid()
            centers = centers * (self.pc_range[3:] - self.pc_range[:3]) + self.pc_range[:3]
            classes.append(self.cls_branches[level](outputs))
            boxes.append(torch.cat([centers, code[..., 3:]], -1))
        scores, boxes = torch.stack(classes), torch.stack(boxes)
        self.post_update_memory(data, rows[2], scores, boxes, outs_dec, mask_dict)
        return dict(all_cls_scores=scores, all_bbox_preds=boxes, dn_mask_dict=None)

    def get_bboxes(self, preds_dicts, img_metas, rescale=False):
        """Return boxes that stand on the centre of their bottom."""
        results = []
        for preds, meta in zip(self.bbox_coder.decode(preds_dicts), img_metas, strict=True):
            boxes = preds['bboxes'].clone()
            boxes[:, 2] -= boxes[:, 5] * 0.5
            boxes = meta['box_type_3d'](boxes, boxes.shape[-1])
            results.append([boxes, preds['scores'], preds['labels']])
        return results


@DETECTORS.register_module()
class Petr3D(MVXTwoStageDetector):
    """Features of all cameras, and a head with a memory."""

    def __init__(self, stride=16, position_level=0, **settings):
        modules = {name: value for name, value in settings.items() if isinstance(value, dict)}
        super().__init__(**modules)
        self.stride, self.position_level, self.prev_scene_token = stride, position_level, None

    def extract_img_feat(self, img, len_queue=1):
        """Return the features of one level."""
        maps = self.img_neck(self.img_backbone(img.flatten(0, 1)))
        level = maps[self.position_level]
        return level.view(1, len(level), *level.shape[1:])

    def forward(self, return_loss=True, **data):
        """Test; this toy does not train."""
        return self.forward_test(**data)

    def forward_test(self, img_metas, rescale, **data):
        """Take the one augmentation."""
        data = {key: value[0] if key == 'img' else value[0][0].unsqueeze(0) for key, value in data.items()}
        return self.simple_test(img_metas[0], **data)

    def prepare_location(self, img_metas, **data):
        """Return the centres of the tokens, as parts of the picture."""
        height, width = img_metas[0]['pad_shape'][0][:2]
        return locations(data['img_feats'].flatten(0, 1), self.stride, height, width)

    def forward_roi_head(self, location, **data):
        """Return that all tokens are taken."""
        return dict(topk_indexes=None)

    def simple_test_pts(self, img_metas, **data):
        """Run the head, and forget the memory where a scene begins."""
        location = self.prepare_location(img_metas, **data)
        is_new = img_metas[0]['scene_token'] != self.prev_scene_token
        if is_new:
            self.prev_scene_token = img_metas[0]['scene_token']
            self.pts_bbox_head.reset_memory()
        data['prev_exists'] = data['img'].new_tensor([float(not is_new)])
        outs = self.pts_bbox_head(location, img_metas, None, **data)
        return [bbox3d2result(*boxes) for boxes in self.pts_bbox_head.get_bboxes(outs, img_metas)]

    def simple_test(self, img_metas, **data):
        """Return the boxes of a frame."""
        data['img_feats'] = self.extract_img_feat(data['img'])
        return [dict(pts_bbox=boxes) for boxes in self.simple_test_pts(img_metas, **data)]
