"""Compiled operators of mmcv give the same for channels_last and strided tensors."""

import pytest
import torch

from mmdeploy_ext.upstream import compat

compat.apply()
ops = pytest.importorskip('mmcv.ops')
GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.rand(*shape, generator=GENERATOR)


MAPS, REGIONS = drawn(2, 8, 9, 11), torch.tensor([[0, 1.0, 1, 6, 7], [1, 0, 2, 8, 8]])
TURNED = torch.tensor([[0, 4.0, 4, 6, 3, 0.3], [1, 3, 5, 4, 4, 1.0]])
OPERATORS = dict(
    dcn=(
        lambda *tensors: ops.deform_conv2d(*tensors, 1, 1, 1, 1, 1),
        MAPS,
        drawn(2, 18, 9, 11),
        drawn(6, 8, 3, 3),
    ),
    dcn_v2=(
        lambda *tensors: ops.modulated_deform_conv2d(*tensors, 1, 1, 1, 1, 1),
        *(MAPS, drawn(2, 18, 9, 11), drawn(2, 9, 9, 11), drawn(6, 8, 3, 3), drawn(6)),
    ),
    roi_align=(lambda *tensors: ops.roi_align(*tensors, (3, 3), 1.0, 2), MAPS, REGIONS),
    roi_align_rotated=(lambda *tensors: ops.roi_align_rotated(*tensors, (3, 3), 1.0, 2), MAPS, TURNED),
    feature_align=(  # the memory of its result is laid out as that of its input
        lambda *tensors: ops.rotated_feature_align(*tensors, 1 / 8, 1),
        *(MAPS, drawn(2, 9, 11, 5) * 40),
    ),
    nms_rotated=(lambda *tensors: ops.nms_rotated(*tensors, 0.1)[0], drawn(20, 5) * 9, drawn(20)),
)


@pytest.mark.parametrize('name', OPERATORS)
def test_a_kernel_reads_tensors_of_any_layout(name):
    operator, *tensors = OPERATORS[name]
    expected = operator(*tensors)
    for index, tensor in enumerate(tensors):
        strided = torch.zeros([*tensor.shape[:-1], 2 * tensor.shape[-1]])[..., ::2].copy_(tensor)
        layouts = [strided]
        if tensor.dim() == 4:
            layouts.append(tensor.contiguous(memory_format=torch.channels_last))
        for laid_out in layouts:
            result = operator(*tensors[:index], laid_out, *tensors[index + 1 :])
            torch.testing.assert_close(result, expected)


def test_attention_that_a_repository_calls_by_itself_runs_on_a_cpu():
    values, shapes, starts = (
        drawn(2, 9 * 11 + 20, 2, 4),
        torch.tensor([[9, 11], [4, 5]]),
        torch.tensor([0, 99]),
    )
    places, weights = drawn(2, 7, 2, 2, 3, 2), drawn(2, 7, 2, 2, 3)
    extension = ops.multi_scale_deform_attn.ext_module
    result = extension.ms_deform_attn_forward(values, shapes, starts, places, weights, im2col_step=64)
    plain = ops.multi_scale_deform_attn.multi_scale_deformable_attn_pytorch
    torch.testing.assert_close(result, plain(values, shapes, places, weights))
