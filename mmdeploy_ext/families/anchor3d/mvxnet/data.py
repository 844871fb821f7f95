"""The frames of MVX-Net."""

from mmdeploy_ext.families.anchor3d.mvxnet.samples import dumped, frame, generated, moments
from mmdeploy_ext.families.sequence_data import SequenceData
from mmdeploy_ext.families.synthetic.kitti import generated_dataset


class MvxNetData(SequenceData):
    frame, moments, dumped_frame = staticmethod(frame), staticmethod(moments), staticmethod(dumped)
    generated_sweeps, generated_dataset = staticmethod(generated), staticmethod(generated_dataset)
