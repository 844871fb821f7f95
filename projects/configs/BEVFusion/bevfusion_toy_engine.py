# bevfusion_toy.py with 20 channels of the cameras' map: a thread of NVIDIA's engine adds up 10. Not trained.
_base_ = ['./bevfusion_toy.py']
model = dict(encoders=dict(camera=dict(vtransform=dict(out_channels=20))), fuser=dict(in_channels=[20, 96]))
