"""One of two gloo processes of test_compat: mmdet's own distributed test loop, then its own training loop.

usage: RANK=... ddp_worker.py OUT_DIR
"""

import os
import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdeploy_ext import compat

compat.apply()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmcv.parallel import DataContainer  # noqa: E402
from mmcv.runner import get_dist_info, init_dist  # noqa: E402
from mmcv.utils import Config  # noqa: E402
from mmdet.apis import multi_gpu_test, train_detector  # noqa: E402
from mmdet.datasets import build_dataloader  # noqa: E402
from mmdet.utils import build_ddp  # noqa: E402

CONFIG = dict(
    log_level='WARNING',
    seed=0,
    device='cpu',
    gpu_ids=range(2),
    find_unused_parameters=True,
    data=dict(train={}, val={}, test={}, train_dataloader=dict(samples_per_gpu=1, workers_per_gpu=0)),
    optimizer=dict(type='AdamW', lr=1e-2),
    optimizer_config=dict(grad_clip=dict(max_norm=1)),
    lr_config=dict(policy='step', warmup='linear', warmup_iters=1, step=[1]),
    runner=dict(type='EpochBasedRunner', max_epochs=2),
    checkpoint_config=dict(interval=1),
    log_config=dict(interval=1, hooks=[dict(type='TextLoggerHook')]),
    workflow=[('train', 1)],
    resume_from=None,
    load_from=None,
)


class Images(torch.utils.data.Dataset):
    """Five 4 x 4 images; every pixel of image i is i."""

    CLASSES = ('thing',)
    flag = np.zeros(5, dtype=np.uint8)

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return dict(
            img=DataContainer(torch.full((1, 4, 4), float(index)), stack=True),
            img_metas=DataContainer(dict(index=index), cpu_only=True),
        )


class Model(torch.nn.Module):
    """A 1 x 1 convolution with mmdet's interface, and a layer that no loss reaches."""

    def __init__(self):
        super().__init__()
        self.conv, self.unused = torch.nn.Conv2d(1, 1, 1), torch.nn.Linear(2, 2)
        torch.nn.init.zeros_(self.conv.weight)

    def forward(self, img, img_metas, return_loss=True, rescale=False):
        assert isinstance(img, torch.Tensor) and isinstance(img_metas[0], dict), 'a DataContainer came'
        return self.conv(img).mean() if return_loss else [float(image.sum()) for image in img]

    def train_step(self, data, optimizer):
        loss = self(**data)
        return dict(loss=loss, log_vars=dict(loss=loss.item()), num_samples=len(data['img']))


def main(out_dir: Path):
    os.chdir(out_dir)
    os.environ['LOCAL_RANK'] = os.environ['RANK']  # as torchrun does on one machine
    init_dist('pytorch')
    rank, world_size = get_dist_info()
    loader = build_dataloader(Images(), samples_per_gpu=1, workers_per_gpu=0, dist=True, shuffle=False)
    tested = build_ddp(Model(), 'cpu', device_ids=[0], broadcast_buffers=False)
    results = multi_gpu_test(tested, loader)

    model = Model()
    train_detector(model, Images(), Config(CONFIG | dict(work_dir='work')), distributed=True)
    weights = [None] * world_size
    torch.distributed.all_gather_object(weights, model.conv.weight.item())
    if rank == 0:
        Path('results.pkl').write_bytes(pickle.dumps(results))
        Path('weights.pkl').write_bytes(pickle.dumps(weights))
    torch.distributed.barrier()


if __name__ == '__main__':
    main(Path(sys.argv[1]))
