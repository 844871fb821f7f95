"""The head of H-DETR, some of whose queries only train, and its mixed selection, computed as PyTorch does."""

import copy

import torch
from mmdet.models.dense_heads import DeformableDETRHead
from mmdet.models.utils import transformer as mmdet_transformer

from mmdeploy_ext.families.common.query_networks import NETWORKS
from mmdeploy_ext.families.query import postprocess, supported_parts
from toy_query import SIZE, images, seeded

ONE_TO_ONE = 25


def decoder_with(transformer, **changes):
    """Return a hook that gives a decoder other arguments: those of the forks' own `forward`."""
    return transformer.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: (
            args,
            kwargs | {key: change(kwargs) for key, change in changes.items()},
        ),
        with_kwargs=True,
    )


class HybridBranchDeformableDETRHead(DeformableDETRHead):
    """Queries behind the first ones see each other alone, and give results of a training."""

    def forward(self, maps, metas):
        mask = torch.zeros(self.num_query, self.num_query, dtype=torch.bool)
        mask[ONE_TO_ONE:, :ONE_TO_ONE] = mask[:ONE_TO_ONE, ONE_TO_ONE:] = True
        with decoder_with(self.transformer, attn_masks=lambda kwargs: [mask, None]):
            logits, boxes, *rest = super().forward(maps, metas)
        return logits[:, :, :ONE_TO_ONE], boxes[:, :, :ONE_TO_ONE], *rest


class MixedTransformer(mmdet_transformer.DeformableDetrTransformer):
    """The contents of its queries are learned; their positions are those of tokens."""

    def forward(self, *args, **kwargs):
        learned = self.learned.weight[:, None].expand(-1, len(args[0][0]), -1)
        with decoder_with(self, query=lambda kwargs: learned):
            return super().forward(*args, **kwargs)


def test_the_network_gives_what_the_head_gives_in_a_test():
    model = copy.deepcopy(seeded('two_stage'))
    head, transformer = model.bbox_head, model.bbox_head.transformer
    head.__class__, head.num_query_one2one = HybridBranchDeformableDETRHead, ONE_TO_ONE
    learned = torch.nn.Embedding(head.num_query, 256)
    with torch.no_grad():
        learned.weight.copy_(torch.randn(head.num_query, 256, generator=torch.Generator().manual_seed(3)))
    transformer.__class__, transformer.learned, head.query_embedding = MixedTransformer, learned, learned
    transformer.mixed_selection = head.mixed_selection = True
    first, second = images(2)
    pictures = torch.stack([torch.from_numpy(image.tensor) for image in (first, second)])
    metas = [dict(batch_input_shape=SIZE, img_shape=(*image.img_shape, 3)) for image in (first, second)]
    sizes = torch.tensor([image.img_shape for image in (first, second)], dtype=torch.float32)
    network = NETWORKS[supported_parts.kind_of(model.bbox_head)](model)
    with torch.no_grad():
        logits, boxes, *_ = model.bbox_head(model.extract_feat(pictures), metas)
        outputs = network(pictures, sizes)
    assert torch.allclose(outputs[0], logits[-1], atol=1e-4)
    assert torch.allclose(outputs[1], boxes[-1], atol=1e-5)
    queries = logits.shape[2]
    assert postprocess.pairs(model.bbox_head) == queries * 6
