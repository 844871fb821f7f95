"""A config whose test pipeline pads before it normalises, so that the mean decides about the padding."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
OWN_MEAN = ['--mean', '11', '12', '13']
"""Words of a command line: another mean than that of the config."""


def write_config(folder: Path) -> str:
    """Write the config, of the toy ATSS, into a folder, and return its path."""
    path = folder / 'padded_first.py'
    path.write_text(
        f'_base_ = {str(REPOSITORY / "configs/demo/atss_toy.py")!r}\n'
        "steps = [dict(type='Resize', keep_ratio=True), dict(type='Pad', size_divisor=32, pad_val=128),\n"
        "         dict(type='Normalize', mean=[1., 2., 3.], std=[4., 5., 6.], to_rgb=True),\n"
        "         dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])]\n"
        "data = dict(test=dict(pipeline=[dict(type='LoadImageFromFile'),\n"
        "    dict(type='MultiScaleFlipAug', img_scale=(160, 128), flip=False, transforms=steps)]))\n"
    )
    return str(path)
