"""Export and prove the toy fork, then prove its files against heads with one method changed; JSON on stdout.

`python prove.py CONFIG FOLDER CHANGE...`, in the folder that has `projects/`; the names of changes are those
of classes below.
"""

import json
import sys

import torch

from mmdeploy_ext import compat

compat.apply()

from mmdeploy_ext.core.config import load_config  # noqa: E402 - the patches first

FRAMES = 3
CFG = load_config(sys.argv[1])

from mmdeploy_ext.families import model as deploy  # noqa: E402
from mmdeploy_ext.families.base import FAMILIES, find_family  # noqa: E402
from mmdeploy_ext.families.files import export_files  # noqa: E402
from mmdeploy_ext.proving import ladder  # noqa: E402
from mmdeploy_ext.proving.inputs.samples import proof_samples  # noqa: E402
from mmdeploy_ext.proving.levels.drive_run import SHORT_DRIVE  # noqa: E402
from projects.mmdet3d_plugin import NMSFreeCoder, Petr3D, StreamPETRHead  # noqa: E402


class ScaledOutputs(StreamPETRHead):
    """What the branches and the memory take of the decoder is larger."""

    def post_update_memory(self, data, rec_ego_pose, all_cls_scores, all_bbox_preds, outs_dec, mask_dict):
        """Keep other rows."""
        super().post_update_memory(
            data, rec_ego_pose, all_cls_scores, all_bbox_preds, outs_dec * 1.05, mask_dict
        )


class Rays(StreamPETRHead):
    """The rays of the tokens end elsewhere."""

    def position_embeding(self, data, memory_centers, topk_indexes, img_metas):
        """Shift the centres."""
        return super().position_embeding(data, memory_centers + 0.01, topk_indexes, img_metas)


class Heights(StreamPETRHead):
    """Boxes stand a little higher."""

    def get_bboxes(self, preds_dicts, img_metas, rescale=False):
        """Move the boxes."""
        results = super().get_bboxes(preds_dicts, img_metas, rescale)
        for boxes, _, _ in results:
            boxes.tensor[:, 2] += 0.1 * boxes.tensor[:, 5]
        return results


class Sizes(NMSFreeCoder):
    """Boxes are larger."""

    def decode(self, preds_dicts):
        """Scale the boxes."""
        decoded = super().decode(preds_dicts)
        for entry in decoded:
            entry['bboxes'][:, 3:6] *= 1.1
        return decoded


class NoReset(Petr3D):
    """A new scene goes on with the memory of the last one."""

    def simple_test_pts(self, img_metas, **data):
        """Give all frames one scene."""
        return super().simple_test_pts([dict(img_metas[0], scene_token='one')], **data)


def seeded_checkpoint(path):
    """Save weights by which results differ from query to query."""
    torch.manual_seed(0)
    model = find_family(CFG).build(CFG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.pts_bbox_head.named_parameters():
            if name.endswith(('gamma.weight', 'beta.weight')):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
            if name.startswith(('cls_branches', 'reg_branches')) and value.dim() > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / value.shape[1]) ** 0.5)
            if name.startswith('cls_branches') and name.endswith('.6.bias'):
                value.fill_(-1.5)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(CLASSES=CFG.class_names)), path)
    return path


def judged(deployment, paths, frames):
    """Return what the ladder says of files."""
    verdict, _ = ladder.prove(deployment, paths, frames, bars=SHORT_DRIVE)
    return dict(title=verdict.title, methods=verdict.untraced, reasons=verdict.failures)


def main():
    """Print the verdicts by the name of the change; '' is the fork as it is."""
    folder = sys.argv[2]
    deployment = deploy.load(sys.argv[1], seeded_checkpoint(f'{folder}/seeded.pth'))
    paths, _ = export_files(deployment, FAMILIES['streampetr'].choose(), f'{folder}/files')
    frames, _ = proof_samples(deployment, FRAMES)
    verdicts = {'': judged(deployment, paths, frames)}
    model = deployment.model
    for name in sys.argv[3:]:
        changed = globals()[name]
        parts = (model, model.pts_bbox_head, model.pts_bbox_head.bbox_coder)
        part = next(part for part in parts if isinstance(part, changed.__bases__))
        part.__class__, original = changed, type(part)
        verdicts[name] = judged(deployment, paths, frames)
        part.__class__ = original
    print(json.dumps(verdicts))


if __name__ == '__main__':
    main()
